"""What fits a model, what does not, and where in it that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stable_audio_tools.models.checkpoints.kinds import Kind
from stable_audio_tools.models.checkpoints.reading import Checkpoint
from stable_audio_tools.runtime.files import write_json

_MODULES_NAMED = 4


@dataclass(frozen=True)
class LoadReport:
    """What loading did.

    Attributes:
        weights: ``EMA`` or ``online`` after unwrapping, else ``stored``.
        loaded: how many tensors fit.
        missing: what the model has and the file has not; these weights stay fresh.
        unexpected: what the file has and the model has not.
        mismatched: what both have in another shape; these weights stay fresh too.
        fitting: what was loaded.
        shapes: shape in the file and shape in the model of what is mismatched.
    """

    path: Path
    kind: Kind
    weights: str
    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    fitting: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[list[int], list[int]]] = field(default_factory=dict)

    def problems(self) -> str:
        """Missing, unexpected and mismatched keys in words; empty if there are none."""
        return "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in self._parts() if names)

    def summary(self) -> str:
        """How much was loaded, and by module how much was not, in at most four lines."""
        whole = self.loaded + len(self.missing) + len(self.mismatched)
        lines = [f"{self.path}: {self.loaded} of {whole} weights of the model loaded ({self.weights})"]
        lines += [f"  {len(names)} {what}: {_by_module(names)}" for what, names in self._parts() if names]
        return "\n".join(lines)

    def write(self, path: str | Path) -> None:
        """Write the whole report, every key of it, as JSON."""
        write_json(path, self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values: counts by module, and every key that was not loaded."""
        counts = {"loaded": self.fitting, "missing": self.missing}
        counts |= {"unexpected": self.unexpected, "mismatched": self.mismatched}
        modules = sorted({module_of(key) for names in counts.values() for key in names})
        by_module = {what: Counter(map(module_of, names)) for what, names in counts.items()}
        return {
            "checkpoint": str(self.path),
            "kind": self.kind.value,
            "weights": self.weights,
            "loaded": self.loaded,
            "modules": {module: {what: by_module[what][module] for what in counts} for module in modules},
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "mismatched": [
                {"key": key, "found": self.shapes[key][0], "expected": self.shapes[key][1]}
                if key in self.shapes
                else {"key": key}
                for key in self.mismatched
            ],
        }

    def _parts(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.mismatched),
        )


def compare(
    model: nn.Module, state: Mapping[str, Tensor], checkpoint: Checkpoint, weights: str = "stored"
) -> LoadReport:
    """How the keys and shapes of ``state`` fit ``model``, without loading anything."""
    own = model.state_dict()
    shapes = {
        key: (list(state[key].shape), list(value.shape))
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    }
    fitting = tuple(key for key in own if key in state and key not in shapes)
    return LoadReport(
        path=checkpoint.path,
        kind=checkpoint.kind,
        weights=weights,
        loaded=len(fitting),
        missing=tuple(key for key in own if key not in state),
        unexpected=tuple(key for key in state if key not in own),
        mismatched=tuple(shapes),
        fitting=fitting,
        shapes=shapes,
    )


def module_of(key: str) -> str:
    """The module that a report names for a key: its path without the parameter, three steps deep at most."""
    return ".".join(key.split(".")[:-1][:3]) or key


def _by_module(names: Iterable[str]) -> str:
    counts = Counter(map(module_of, names)).most_common()
    more = f" and in {len(counts) - _MODULES_NAMED} more modules" if len(counts) > _MODULES_NAMED else ""
    return ", ".join(f"{count} in {module}" for module, count in counts[:_MODULES_NAMED]) + more


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
