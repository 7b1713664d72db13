"""Pictures of audio and of numbers, as PNG bytes. No pyplot, so no state and no display."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stable_audio_tools.audio.features import hz_to_mel, log_mel
from stable_audio_tools.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 100
_RANGE_DB = 80.0
_TICKS_HZ = (100, 500, 1000, 2000, 5000, 10000, 20000)
_GREY = "#555555"
_BAR = "#3e63dd"


def spectrogram_png(
    audio: Tensor, sample_rate: int, *, title: str | None = None, width_px: int = 640, height_px: int = 200
) -> bytes:
    """The log-mel spectrogram of ``audio`` ``(C, T)``, channels averaged in power; the loudest 80 dB of it.

    Raises:
        UsageError: ``audio`` is empty or not ``(C, T)``.
    """
    if audio.ndim != 2 or audio.shape[-1] == 0:
        raise UsageError(f"a spectrogram needs audio (C, T), found shape {tuple(audio.shape)}")
    audio = audio.detach().to("cpu", torch.float32)
    duration = audio.shape[-1] / sample_rate
    # About two frames a pixel: more cannot be seen, fewer make steps.
    hop = max(32, min(512, audio.shape[-1] // (2 * width_px)))
    decibels = log_mel(audio, sample_rate, hop_length=hop, n_mels=128)
    decibels = 10.0 * torch.log10((10.0 ** (decibels / 10.0)).mean(dim=0))
    top = max(float(decibels.max()), -80.0)

    figure = _figure(width_px, height_px)
    axes = figure.add_subplot()
    highest_mel = float(hz_to_mel(torch.tensor(sample_rate / 2)))
    axes.imshow(
        decibels.float().numpy(),  # autocast to bfloat16 reaches the filters on a CPU
        origin="lower",
        aspect="auto",
        interpolation="bilinear",
        cmap="magma",
        vmin=top - _RANGE_DB,
        vmax=top,
        extent=(0.0, duration, 0.0, highest_mel),
    )
    shown = [tick for tick in _TICKS_HZ if tick < sample_rate / 2]
    axes.set_yticks(
        [float(hz_to_mel(torch.tensor(float(tick)))) for tick in shown],
        [f"{tick // 1000}k" if tick >= 1000 else str(tick) for tick in shown],
    )
    axes.set_xlabel("seconds", fontsize=7, color=_GREY)
    axes.set_ylabel("Hz", fontsize=7, color=_GREY)
    _finish(axes, title)
    return _png(figure)


def lines_png(
    series: Mapping[str, Sequence[float]],
    x: Sequence[float] | None = None,
    *,
    title: str | None = None,
    xlabel: str = "",
    ylabel: str = "",
    width_px: int = 640,
    height_px: int = 320,
) -> bytes:
    """One line for each of ``series``, over ``x`` or over 0, 1, 2, ...; NaN leaves a gap.

    Raises:
        UsageError: a series is not as long as ``x``.
    """
    curves = {
        name: (list(range(len(values))) if x is None else list(x), values) for name, values in series.items()
    }
    return curves_png(
        curves, title=title, xlabel=xlabel, ylabel=ylabel, width_px=width_px, height_px=height_px
    )


def curves_png(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str | None = None,
    xlabel: str = "",
    ylabel: str = "",
    log_y: bool = False,
    width_px: int = 640,
    height_px: int = 320,
) -> bytes:
    """One line for each of ``curves``, positions and values, each with positions of its own; NaN leaves a
    gap.

    Raises:
        UsageError: a curve has not as many values as positions.
    """
    figure = _figure(width_px, height_px)
    axes = figure.add_subplot()
    for name, (positions, values) in curves.items():
        if len(positions) != len(values):
            raise UsageError(f"series {name!r} has {len(values)} values for {len(positions)} positions")
        marker = "o" if len(values) < 30 else None
        axes.plot(list(positions), list(values), label=name, linewidth=1.4, marker=marker, markersize=3)
    if log_y:
        axes.set_yscale("log")
    axes.set_xlabel(xlabel, fontsize=8, color=_GREY)
    axes.set_ylabel(ylabel, fontsize=8, color=_GREY)
    axes.grid(True, linewidth=0.4, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(fontsize=7, frameon=False)
    _finish(axes, title)
    return _png(figure)


def histogram_png(
    values: Sequence[float],
    *,
    title: str | None = None,
    xlabel: str = "",
    ylabel: str = "",
    bins: int = 40,
    width_px: int = 640,
    height_px: int = 240,
) -> bytes:
    """How often values are in each of ``bins`` steps between the smallest and the largest.

    Raises:
        UsageError: there are no values, or one is not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise UsageError(f"a histogram needs finite values, found {len(values)} with {list(values)[:3]}")
    figure = _figure(width_px, height_px)
    axes = figure.add_subplot()
    axes.hist(list(values), bins=bins, color=_BAR)
    axes.set_xlabel(xlabel, fontsize=8, color=_GREY)
    axes.set_ylabel(ylabel, fontsize=8, color=_GREY)
    axes.spines[["top", "right"]].set_visible(False)
    _finish(axes, title)
    return _png(figure)


def _figure(width_px: int, height_px: int) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_px / _DPI, height_px / _DPI), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finish(axes: Axes, title: str | None) -> None:
    axes.tick_params(labelsize=7, colors=_GREY, length=2, width=0.5)
    for spine in axes.spines.values():
        spine.set(linewidth=0.5, color=_GREY)
    if title:  # parse_math: a dollar sign in a prompt is a dollar sign
        axes.set_title(title, fontsize=8, loc="left", parse_math=False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
