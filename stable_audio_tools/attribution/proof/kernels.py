"""Inner products of gradients, which is all that scores need: by the shipped hooks, or of whole gradients.

Shapes: N tracks, Q queries, D features, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from stable_audio_tools.attribution.features.extract import gradient_features
from stable_audio_tools.attribution.gradients.measurements import measure
from stable_audio_tools.attribution.gradients.numerics import exact_float32
from stable_audio_tools.attribution.gradients.task import DiffusionTask, LatentBatch
from stable_audio_tools.attribution.settings import FeatureSettings
from stable_audio_tools.diffusion.noise import keyed_noise
from stable_audio_tools.errors import StoreError, UsageError
from stable_audio_tools.runtime.files import atomic_path
from stable_audio_tools.runtime.progress import track


@dataclass(frozen=True)
class FeaturePlan:
    """Which gradients: name, settings, the draws of noise they are summed over, and of which full model.

    ``whole`` takes inner products of whole gradients, without any projection: what every projection, dense or
    hooked, is an estimate of.
    """

    name: str
    settings: FeatureSettings
    e_seeds: tuple[int, ...] = (0,)
    checkpoint: int = 0
    whole: bool = False

    @property
    def passes(self) -> int:
        """Passes over every track, whole gradients counted twice."""
        backward = self.settings.K * len(self.settings.measurements)
        return len(self.e_seeds) * backward * (1 + self.whole)


@dataclass(frozen=True)
class Kernels:
    """Inner products, float64.

    Attributes:
        tracks: (N, N).
        cross: (Q, N).
        own: squared lengths of the queries, (Q,).
    """

    tracks: Tensor
    cross: Tensor
    own: Tensor

    @classmethod
    def of(cls, tracks: Tensor, queries: Tensor) -> Kernels:
        """Of feature rows (N, D) and (Q, D)."""
        count = len(tracks) + len(queries)
        product = torch.zeros(count, count, dtype=torch.float64, device=tracks.device)
        # In float32, rounding would show beside what all tracks share, which is a thousand times the rest.
        for parts in zip(tracks.split(8192, dim=1), queries.split(8192, dim=1), strict=True):
            both = torch.cat(parts).double()
            product.addmm_(both, both.T)
        product = product.cpu()
        n = len(tracks)
        return cls(product[:n, :n], product[n:, :n], product.diagonal()[n:].clone())

    def over_spread(self) -> Kernels:
        """Of rows over their root mean square distance from the mean row of the tracks."""
        spread = (self.tracks.diagonal().mean() - self.tracks.mean()).clamp(
            min=torch.finfo(torch.float64).tiny
        )
        return Kernels(self.tracks / spread, self.cross / spread, self.own / spread)

    @staticmethod
    def beside(parts: Sequence[Kernels]) -> Kernels:
        """Of rows that lie beside each other, each measurement with the same say, as in a shipped store."""
        if len(parts) == 1:
            return parts[0]
        evened = [part.over_spread() for part in parts]
        return Kernels(
            torch.stack([part.tracks for part in evened]).sum(0),
            torch.stack([part.cross for part in evened]).sum(0),
            torch.stack([part.own for part in evened]).sum(0),
        )

    def save(self, path: Path) -> None:
        """One file; of the symmetric part one half."""
        upper = self.tracks[tuple(torch.triu_indices(*self.tracks.shape))]
        scale = float(upper.abs().max()) or 1.0  # a measurement may be of any size
        with atomic_path(path) as temporary:
            np.savez_compressed(
                temporary,
                scale=np.array(scale),
                upper=(upper / scale).numpy().astype(np.float32),
                cross=(self.cross / scale).numpy().astype(np.float32),
                own=(self.own / scale).numpy().astype(np.float32),
            )

    @classmethod
    def load(cls, path: Path) -> Kernels:
        """What :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as held:
            scale = float(held["scale"])
            upper, cross, own = (
                torch.from_numpy(held[name]).double() * scale for name in ("upper", "cross", "own")
            )
        n = cross.shape[1]
        if len(upper) != n * (n + 1) // 2:
            raise StoreError(f"{path}: cut off or of another run; delete it and compute the features again")
        tracks = torch.zeros(n, n, dtype=torch.float64)
        tracks[tuple(torch.triu_indices(n, n))] = upper
        return cls(tracks + tracks.T - tracks.diagonal().diag(), cross, own)


def kernels_of(
    model: Any, tracks: LatentBatch, queries: LatentBatch, plan: FeaturePlan, batch_size: int = 64
) -> Kernels:
    """Inner products of the gradients of ``model`` that ``plan`` names."""
    names = plan.settings.measurements
    if not plan.whole:
        rows = [projected_gradients(model, batch, plan, batch_size) for batch in (tracks, queries)]
        parts = [both.unflatten(1, (len(names), -1)).unbind(1) for both in rows]
        return Kernels.beside([Kernels.of(*pair) for pair in zip(*parts, strict=True)])
    found = []
    for name in names:
        alone = replace(plan, settings=replace(plan.settings, f=name))
        found.append(
            Kernels.of(*(whole_gradients(model, batch, alone, batch_size) for batch in (tracks, queries)))
        )
    return Kernels.beside(found)


def projected_gradients(model: Any, batch: LatentBatch, plan: FeaturePlan, batch_size: int) -> Tensor:
    """Feature rows (n, D) by the shipped extraction, summed over the draws of noise."""
    gradients = gradient_features(model, plan.settings)
    device = next(model.model.parameters()).device
    total = torch.zeros(len(batch), gradients.dim, device=device)
    with exact_float32(plan.settings.precision == "float32"):
        for e_seed in plan.e_seeds:
            task = DiffusionTask(model, replace(plan.settings, e_seed=e_seed))
            for span in track(list(_spans(len(batch), batch_size)), f"{plan.name}, noise {e_seed}"):
                total[span] += gradients(on_device(batch[span], device), task.passes)
    return total


def whole_gradients(model: Any, batch: LatentBatch, plan: FeaturePlan, batch_size: int) -> Tensor:
    """Whole gradients (n, P) of one measurement, many samples at a time: ``DenseGradients`` makes one by one.

    Raises:
        UsageError: the noise is per track, or guidance is dropped, which this reference does not draw.
    """
    settings = plan.settings
    if settings.noise != "shared" or settings.cfg_dropout_prob:
        raise UsageError("whole gradients are for shared noise without guidance dropout")
    network = model.model
    parameters = {name: p.detach() for name, p in network.named_parameters() if p.is_floating_point()}
    device = next(iter(parameters.values())).device
    task = DiffusionTask(model, settings)
    size = sum(p.numel() for p in parameters.values())
    rows = torch.zeros(len(batch), size, device=device)

    def measured(
        parameters: dict[str, Tensor], latents: Tensor, mask: Tensor, inputs: Any, t: Tensor, noise: Tensor
    ) -> Tensor:
        one = {key: value[None] for key, value in inputs.items()}
        x_t = task.objective.add_noise(latents[None], noise[None], t)
        output = functional_call(network, parameters, (x_t, t), one)
        target = task.objective.target(latents[None], noise[None], t)
        return measure(settings.f, output.float(), target, mask[None])[0, 0]

    each = vmap(grad(measured), in_dims=(None, 0, 0, 0, None, None))
    with exact_float32(), sdpa_kernel(SDPBackend.MATH):
        for span in track(list(_spans(len(batch), batch_size)), f"{plan.name}, whole"):
            part = on_device(batch[span], device)
            pairs = {key: list(pair) for key, pair in part.conditioning.items()}
            inputs = {key: x for key, x in model.get_conditioning_inputs(pairs).items() if x is not None}
            for e_seed in plan.e_seeds:
                for k, time in enumerate(task.times):
                    t = torch.full((1,), time, device=device)
                    noise = keyed_noise(part.latents.shape[1:], "attribution-noise", e_seed, k, device=device)
                    found = each(parameters, part.latents, part.mask, inputs, t, noise)
                    rows[span] += torch.cat([value.flatten(1) for value in found.values()], dim=1)
    return rows


def on_device(batch: LatentBatch, device: torch.device) -> LatentBatch:
    """The batch on another device."""
    pairs = {key: (x.to(device), mask.to(device)) for key, (x, mask) in batch.conditioning.items()}
    return LatentBatch(batch.sample_ids, batch.latents.to(device), batch.mask.to(device), pairs)


def joined(batches: list[LatentBatch]) -> LatentBatch:
    """Batches one after the other."""
    return LatentBatch(
        tuple(name for batch in batches for name in batch.sample_ids),
        torch.cat([batch.latents for batch in batches]),
        torch.cat([batch.mask for batch in batches]),
        {
            key: (
                torch.cat([batch.conditioning[key][0] for batch in batches]),
                torch.cat([batch.conditioning[key][1] for batch in batches]),
            )
            for key in batches[0].conditioning
        },
    )


def taken(batch: LatentBatch, rows: list[int]) -> LatentBatch:
    """Some rows of a batch, in the order of ``rows``."""
    index = torch.tensor(rows, dtype=torch.long)
    pairs = {key: (x[index], mask[index]) for key, (x, mask) in batch.conditioning.items()}
    names = tuple(batch.sample_ids[row] for row in rows)
    return LatentBatch(names, batch.latents[index], batch.mask[index], pairs)


def _spans(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
