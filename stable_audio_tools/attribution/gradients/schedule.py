"""At which timesteps a sample is measured."""

from __future__ import annotations

from collections.abc import Callable

from stable_audio_tools.errors import UsageError


def uniform(K: int, num_train_steps: int) -> list[int]:
    """K steps spread evenly from 0: for K = 10 of 1,000 these are 0, 100, ..., 900."""
    return [k * num_train_steps // K for k in range(K)]


def cumulative(K: int, num_train_steps: int) -> list[int]:
    """The first K steps, which are the ones with the least noise."""
    return list(range(K))


TIMESTEP_STRATEGIES: dict[str, Callable[[int, int], list[int]]] = {
    "uniform": uniform,
    "cumulative": cumulative,
}


def timesteps(strategy: str, K: int, num_train_steps: int = 1000) -> list[float]:
    """K times in [0, 1), each a whole step divided by ``num_train_steps`` (Zheng et al. 2024, section 4)."""
    if strategy not in TIMESTEP_STRATEGIES:
        raise UsageError(f"unknown timestep strategy {strategy!r}; known: {', '.join(TIMESTEP_STRATEGIES)}")
    return [step / num_train_steps for step in TIMESTEP_STRATEGIES[strategy](K, num_train_steps)]
