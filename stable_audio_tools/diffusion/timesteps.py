"""How timesteps are drawn in training, and how their distribution is shifted for long sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from stable_audio_tools.errors import UsageError
from stable_audio_tools.runtime.device import send
from stable_audio_tools.schema.shifts import (
    DistributionShiftConfig,
    FluxShiftConfig,
    LogSNRShiftConfig,
    ShiftConfig,
)

LOG_SNR_RANGE = (-12.0, 5.0)
"""What timestep features see of the log-SNR."""
LOG_SNR_MARGIN = (
    1e-4  # keeps log-SNR timesteps off the ends, where the target or the input holds no information
)


def _uniform(batch_size: int, generator: torch.Generator) -> Tensor:
    """Uniform on [0, 1], spread over the batch by a scrambled Sobol sequence (Sobol 1967; Owen 1998)."""
    seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
    return SobolEngine(1, scramble=True, seed=seed).draw(batch_size).squeeze(1)


def _logit_normal(batch_size: int, generator: torch.Generator, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Sigmoid of a normal (Esser et al. 2024, section 3.1)."""
    return torch.sigmoid(_normal(batch_size, generator) * std + mean)


def _trunc_logit_normal(
    batch_size: int, generator: torch.Generator, left_trunc: float = 0.075, right_trunc: float = 1.0
) -> Tensor:
    """A logit-normal cut to ``[left_trunc, right_trunc]``, stretched over [0, 1] and flipped."""
    cdf = torch.special.ndtr
    bounds = torch.tensor([left_trunc, right_trunc], dtype=torch.float64)
    low, high = cdf(torch.logit(bounds)).unbind()
    level = low + (high - low) * cdf(_normal(batch_size, generator).double())
    value = torch.sigmoid(torch.special.ndtri(level))
    return (1 - (value - left_trunc) / (right_trunc - left_trunc)).clamp(0, 1).float()


def _log_snr(
    batch_size: int, generator: torch.Generator, mean_logsnr: float = -1.2, std_logsnr: float = 2.0
) -> Tensor:
    """A normal log-SNR; ``t = sigmoid(-logsnr)`` on the straight path (Kingma et al. 2021)."""
    log_snr = _normal(batch_size, generator) * std_logsnr + mean_logsnr
    return torch.sigmoid(-log_snr).clamp(LOG_SNR_MARGIN, 1 - LOG_SNR_MARGIN)


def _normal(batch_size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(batch_size, generator=generator, device=generator.device).cpu()


TIMESTEP_LAWS: dict[str, Callable[..., Tensor]] = {
    "uniform": _uniform,
    "logit_normal": _logit_normal,
    "trunc_logit_normal": _trunc_logit_normal,
    "log_snr": _log_snr,
}


def sample_timesteps(
    law: str,
    batch_size: int,
    *,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    options: Mapping[str, Any] | None = None,
) -> Tensor:
    """Draw ``(batch_size,)`` timesteps in [0, 1], float32.

    Args:
        law: ``uniform``, ``logit_normal``, ``trunc_logit_normal`` or ``log_snr``.
        generator: keyed by the caller, as in ``runtime.seeds.generator("timesteps", seed, step, rank)``.
        device: where the result goes; the draw itself is the same on every device.
        options: numbers of the law, ``timestep_sampler_options`` of the config.

    Raises:
        UsageError: the law or an option is unknown.
    """
    if law not in TIMESTEP_LAWS:
        raise UsageError(f"unknown timestep sampler {law!r}: expected one of {', '.join(TIMESTEP_LAWS)}")
    draw = TIMESTEP_LAWS[law]
    known = draw.__code__.co_varnames[2 : draw.__code__.co_argcount]
    unknown = sorted(set(options or {}) - set(known))
    if unknown:
        expected = ", ".join(known) or "none"
        raise UsageError(
            f"timestep sampler {law!r} has no option {', '.join(unknown)}; its options: {expected}"
        )
    return send(draw(batch_size, generator, **(options or {})), device)


def normalized_log_snr(t: Tensor) -> Tensor:
    """The log-SNR of the straight path at times ``t``, cut to -12..5 and turned to 0..1; 0 and 1 stay.

    Computed in float32: near t = 1 a half-precision time has no log-SNR to speak of.
    """
    log_snr = torch.logit(1 - t.float().clamp(1e-7, 1 - 1e-7))
    return (LOG_SNR_RANGE[1] - log_snr.clamp(*LOG_SNR_RANGE)) / (LOG_SNR_RANGE[1] - LOG_SNR_RANGE[0])


class DistributionShift:
    """Timestep shift by sequence length: longer sequences need more noise to hide them (Esser et al. 2024,
    5.3.2).

    Most multiply the odds ``t / (1 - t)`` by a factor that grows with the length: ``e^mu`` with ``mu`` linear
    in it (``full``; ``use_sine`` then takes ``sin(pi t' / 2)``), or a power of it (``flux``). ``logsnr``
    spaces times evenly in log-SNR.

    Args:
        config: which, and its numbers; None is ``full`` with its defaults.
        of_levels: the shift is one of evenly spaced levels of a sampler, and not of times in training.
    """

    def __init__(self, config: ShiftConfig | None = None, *, of_levels: bool = False) -> None:
        self.config = config or DistributionShiftConfig()
        self.of_levels = of_levels

    def shift(self, t: Tensor, length: int) -> Tensor:
        """Shift timesteps of any shape for sequences of ``length`` latent frames; 0 and 1 stay."""
        config = self.config
        if isinstance(config, LogSNRShiftConfig):
            log_snr = config.logsnr_end - t * (config.logsnr_end - _first_log_snr(config, length))
            shifted = torch.sigmoid(-log_snr)
            return torch.where(t <= 0, torch.zeros_like(t), torch.where(t >= 1, torch.ones_like(t), shifted))
        shifted = self._moebius(t, self._mu(length))
        return torch.sin(shifted * (math.pi / 2)) if self._sine else shifted

    def unshift(self, t: Tensor, length: int) -> Tensor:
        """The inverse of :meth:`shift`."""
        config = self.config
        if isinstance(config, LogSNRShiftConfig):
            log_snr = torch.logit(1 - t)
            return (
                (config.logsnr_end - log_snr) / (config.logsnr_end - _first_log_snr(config, length))
            ).clamp(0, 1)
        if self._sine:
            t = torch.asin(t) * (2 / math.pi)
        return self._moebius(t, -self._mu(length))

    @property
    def _sine(self) -> bool:
        return isinstance(self.config, DistributionShiftConfig) and self.config.use_sine

    def _mu(self, length: int) -> float:
        """The logarithm of the factor."""
        config = self.config
        if isinstance(config, FluxShiftConfig):
            length = min(max(length, config.min_length), config.max_length)
            along = math.log(length / config.min_length) / math.log(config.max_length / config.min_length)
            return (1 - along) * math.log(config.alpha_min) + along * math.log(config.alpha_max)
        if isinstance(config, DistributionShiftConfig):
            slope = (config.max_shift - config.base_shift) / (config.max_length - config.min_length)
            return config.base_shift + slope * (length - config.min_length)
        return 0.0

    @staticmethod
    def _moebius(t: Tensor, mu: float) -> Tensor:
        # The odds t / (1 - t) are multiplied by e^mu; this form of it is exact at both ends.
        factor = math.exp(mu)
        return factor * t / (1 + (factor - 1) * t)


def _first_log_snr(config: LogSNRShiftConfig, length: int) -> float:
    return config.anchor_logsnr - config.rate * math.log2(length / config.anchor_length)
