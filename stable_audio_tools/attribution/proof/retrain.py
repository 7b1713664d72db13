"""Many small models trained at once: their weights lie in stacks, and one step moves all of them.

Each model keeps its own tracks, batches, timesteps, noise and start, keyed by its name and seed, so that what
becomes of it does not depend on which models are trained beside it. The loss is that of training
(``training.loss.diffusion_loss``), through ``torch.func.vmap``.

Shapes: M models, N tracks, B batch, C channels, L latent frames, Q queries, K measured passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from stable_audio_tools.attribution.gradients.task import LatentBatch
from stable_audio_tools.diffusion.noise import keyed_noise
from stable_audio_tools.diffusion.timesteps import DistributionShift, sample_timesteps
from stable_audio_tools.errors import TrainingError
from stable_audio_tools.models.conditioned import NETWORKS
from stable_audio_tools.runtime.progress import track, warn
from stable_audio_tools.runtime.seeds import derive_seed, generator
from stable_audio_tools.schema.model import DiffusionCondModelConfig
from stable_audio_tools.training.loss import diffusion_loss

Stack = dict[str, Tensor]
"""Parameters by name, each (M, ...)."""
CHECK_EVERY = 100
"""Steps from one look at the losses to the next: looking waits for the GPU."""


@dataclass(frozen=True)
class RetrainSettings:
    """How every model is trained. The learning rate rises over the first twentieth and falls as a cosine."""

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 8e-4
    weight_decay: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    precision: str = "float32"
    """``float32``, or ``bfloat16`` autocast. Measurements are in float32."""
    compile: bool = False
    """Compile the step: worth it from some thousand steps on."""


@dataclass(frozen=True)
class Job:
    """One model to train: its name, which keys all its draws, the tracks it sees, and its seed."""

    name: str
    rows: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class NetworkData:
    """Samples as the network takes them.

    Attributes:
        latents: (N, C, L).
        mask: (N, L), 1 where there is audio.
        inputs: conditioning by argument name, each (N, ...).
    """

    latents: Tensor
    mask: Tensor
    inputs: dict[str, Tensor]

    @classmethod
    def of(cls, model: Any, batch: LatentBatch) -> NetworkData:
        """What ``model`` makes of a batch; its conditioners stay as they are in all retraining."""
        pairs = {key: list(pair) for key, pair in batch.conditioning.items()}
        inputs = {key: x for key, x in model.get_conditioning_inputs(pairs).items() if x is not None}
        return cls(batch.latents, batch.mask[:, 0].float(), inputs)

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device) -> NetworkData:
        """On another device."""
        return self._each(lambda x: x.to(device))

    def rows(self, index: Tensor | slice) -> NetworkData:
        """Rows in the shape of ``index``."""
        return self._each(lambda x: x[index])

    def repeated(self, models: int) -> NetworkData:
        """The same samples for each of some models, (M, N, ...), without a copy."""
        return self._each(lambda x: x.expand(models, *x.shape))

    def _each(self, change: Callable[[Tensor], Tensor]) -> NetworkData:
        inputs = {key: change(x) for key, x in self.inputs.items()}
        return NetworkData(change(self.latents), change(self.mask), inputs)


class Retrainer:
    """Trains and measures stacks of models of one config on parts of one training set.

    Args:
        config: the model; ``training`` in it says the law of timesteps, guidance dropout and padding.
        data: the whole training set.
        start: weights of the network to start from; None starts each model from its own draw.
    """

    def __init__(
        self,
        config: DiffusionCondModelConfig,
        data: NetworkData,
        settings: RetrainSettings,
        device: torch.device,
        start: Stack | None = None,
    ) -> None:
        self.config, self.settings, self.device = config, settings, device
        self.data = data.to(device)
        self.start = start
        self.objective = config.model.diffusion.diffusion_objective
        shift = config.model.diffusion.distribution_shift_options
        self.shift = None if shift is None else DistributionShift(shift)
        self.network = fresh_network(config, 0).to(device)
        _use_matmul_for_pointwise(self.network)
        self.losses: Callable[..., Tensor] = self._losses
        if settings.compile:
            self.losses = torch.compile(self._losses, dynamic=False)

    def train(self, jobs: Sequence[Job], description: str = "models") -> Stack:
        """Train all ``jobs`` side by side; returns their stacked weights.

        Raises:
            TrainingError: a loss is not finite at the end; names the model.
        """
        weights = self._initial(jobs)
        draws = [self._draws(job) for job in jobs]
        rows, times, kept = (torch.stack(parts).to(self.device) for parts in zip(*draws, strict=True))
        noises = [generator("proof-noise", job.seed, job.name, device=self._noise_device()) for job in jobs]
        optimizer = torch.optim.AdamW(
            list(weights.values()),
            betas=self.settings.betas,
            weight_decay=self.settings.weight_decay,
            fused=self.device.type == "cuda",
        )
        last = self.settings.steps - 1
        for step in track(range(self.settings.steps), f"{description}: {len(jobs)} at once"):
            for group in optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * _schedule(step, self.settings.steps)
            batch = self.data.rows(rows[:, step])
            for name in ("cross_attn_cond", "prepend_cond"):
                if name in batch.inputs:
                    batch.inputs[name] = batch.inputs[name] * kept[:, step, :, None, None]
            noise = torch.stack(
                [torch.randn(batch.latents.shape[1:], generator=g, device=g.device) for g in noises]
            ).to(self.device)
            losses = self._step_losses(weights, batch, noise, times[:, step])
            optimizer.zero_grad(set_to_none=True)
            losses.sum().backward()
            optimizer.step()
            if step % CHECK_EVERY == 0 or step == last:
                _require_finite(losses, jobs, step)
        return {name: value.detach() for name, value in weights.items()}

    @torch.no_grad()
    def measure(
        self, weights: Stack, queries: NetworkData, times: Sequence[float], draws: int = 1, at_once: int = 32
    ) -> Tensor:
        """The loss of every model on every query, (M, Q, K) float32 on the CPU, K = times x draws.

        Timesteps and noise are the same for all models and queries, so that only the weights differ.
        """
        models = len(next(iter(weights.values())))
        passes = []
        for number, t in enumerate(times):
            for draw in range(draws):
                noise = keyed_noise(queries.latents.shape[1:], "proof-measure", number, draw)
                passes.append((t, noise.to(self.device)))
        rows = []
        for start in range(0, len(queries), at_once):
            part = queries.rows(slice(start, start + at_once)).to(self.device).repeated(models)
            values = []
            for t, noise in passes:
                t_all = torch.full(part.latents.shape[:2], t, device=self.device)
                arguments = (part.latents, noise.expand_as(part.latents), t_all, part.mask, part.inputs)
                with sdpa_kernel(SDPBackend.MATH):
                    values.append(vmap(self._items)(weights, *arguments))
            rows.append(torch.stack(values, dim=-1).float().cpu())
        return torch.cat(rows, dim=1)

    def state_dict(self, weights: Stack, model: int) -> Stack:
        """The state dict of one model's network."""
        own = {name: value[model].clone() for name, value in weights.items()}
        return {**self.network.state_dict(), **own}

    def _initial(self, jobs: Sequence[Job]) -> Stack:
        networks = []
        for job in jobs:
            network = fresh_network(self.config, derive_seed("proof-start", job.seed, job.name))
            if self.start is not None:
                network.load_state_dict(self.start)
            networks.append(network)
        weights, _ = stack_module_state(networks)
        return {name: value.detach().to(self.device).requires_grad_(True) for name, value in weights.items()}

    def _draws(self, job: Job) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, timesteps and what keeps its conditioning, each (steps, B)."""
        steps, size = self.settings.steps, self.settings.batch_size
        draw = generator("proof-batches", job.seed, job.name)
        rows = torch.tensor(job.rows)
        rounds = math.ceil(steps * size / len(rows))
        order = torch.cat([torch.randperm(len(rows), generator=draw) for _ in range(rounds)])[: steps * size]
        options = self.config.training
        times = sample_timesteps(
            options.timestep_sampler,
            steps * size,
            generator=generator("proof-timesteps", job.seed, job.name),
            options=options.timestep_sampler_options,
        )
        if self.shift is not None:
            times = self.shift.shift(times, self.data.latents.shape[-1])
        kept = torch.rand(steps, size, generator=draw) >= options.cfg_dropout_prob
        return rows[order].view(steps, size), times.view(steps, size), kept.float()

    def _step_losses(self, weights: Stack, batch: NetworkData, noise: Tensor, t: Tensor) -> Tensor:
        arguments = (weights, batch.latents, noise, t, batch.mask, batch.inputs)
        try:
            return self.losses(*arguments)
        except Exception as error:
            # What a compiler cannot do on this machine, the plain way can.
            if isinstance(error, torch.OutOfMemoryError) or self.losses == self._losses:
                raise
            warn(f"going on with an uncompiled step ({type(error).__name__}: {str(error)[:300]})")
            self.losses = self._losses
            return self.losses(*arguments)

    def _losses(
        self, weights: Stack, latents: Tensor, noise: Tensor, t: Tensor, mask: Tensor, inputs: Stack
    ) -> Tensor:
        """The training loss of every model, (M,)."""
        # Fused attention is not made for vmap: the CPU's is looped over the models, cuDNN's can be neither
        # compiled nor trusted. A stack's sequences are short.
        with sdpa_kernel(SDPBackend.MATH), self._autocast():
            return vmap(self._mean)(weights, latents, noise, t, mask, inputs)

    def _mean(self, weights: Stack, *sample: Any) -> Any:
        latents, noise, t, mask, inputs = sample
        mask = mask if self.config.training.mask_padding else None
        return self._loss(weights, latents, noise, t, mask, inputs).mean

    def _items(self, weights: Stack, *sample: Any) -> Any:
        latents, noise, t, mask, inputs = sample
        return self._loss(weights, latents, noise, t, mask, inputs).per_item

    def _loss(
        self, weights: Stack, latents: Tensor, noise: Tensor, t: Tensor, mask: Tensor | None, inputs: Stack
    ) -> Any:
        def network(x: Tensor, times: Tensor, **conditioning: Any) -> Tensor:
            output: Tensor = functional_call(self.network, weights, (x, times), conditioning)
            return output

        return diffusion_loss(network, latents, noise, t, inputs, self.objective, mask)  # type: ignore[arg-type]

    def _noise_device(self) -> torch.device:
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def fresh_network(config: DiffusionCondModelConfig, seed: int) -> nn.Module:
    """The diffusion network of ``config`` alone, drawn anew from ``seed``; the global generator stays."""
    diffusion = config.model.diffusion
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return NETWORKS[type(diffusion)](diffusion.config, diffusion.diffusion_objective)


class _PointwiseConv(nn.Conv1d):
    """A convolution of kernel 1 as a matmul: over stacked weights it would be a slow grouped convolution."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.transpose(1, 2), self.weight[..., 0], self.bias).transpose(1, 2)


def _use_matmul_for_pointwise(network: nn.Module) -> None:
    for module in network.modules():
        if type(module) is not nn.Conv1d or module.kernel_size != (1,):
            continue
        if module.groups == 1 and module.stride == (1,) and module.padding == (0,):
            module.__class__ = _PointwiseConv


def _require_finite(losses: Tensor, jobs: Sequence[Job], step: int) -> None:
    broken = [job.name for job, fine in zip(jobs, losses.isfinite().tolist(), strict=True) if not fine]
    if broken:
        raise TrainingError(
            f"model {broken[0]}: its loss is not finite at step {step}, nor that of {len(broken) - 1} more "
            f"of {len(jobs)}; lower the learning rate or train in float32"
        )


def _schedule(step: int, steps: int, warmup: float = 0.05) -> float:
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
