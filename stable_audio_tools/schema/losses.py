"""The losses that an autoencoder is trained with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stable_audio_tools.schema.base import Config

Window = Literal["hann_window", "hamming_window", "blackman_window", "bartlett_window", "kaiser_window"]
"""Analysis windows, by their names in torch."""

_SCALES = [2048, 1024, 512, 256, 128, 64, 32]
_HOPS = [size // 4 for size in _SCALES]


def check_resolutions(*lists: tuple[str, list[int]]) -> None:
    """Refuse FFT sizes, hops and windows, in this order, that are no spectrogram.

    Raises:
        ValueError: they are not equally many, not positive, or a window is longer than its FFT.
    """
    _check_equally_long(*lists)
    (sizes_name, sizes), _, (windows_name, windows) = lists
    for name, values in lists:
        if any(value < 1 for value in values):
            raise ValueError(f"{name} must be positive, found {values}")
    for size, window in zip(sizes, windows, strict=True):
        if window > size:
            raise ValueError(f"{windows_name} {window} is longer than its {sizes_name} {size}")


def _check_equally_long(*lists: tuple[str, list[int]]) -> None:
    lengths = [len(values) for _, values in lists]
    if len(set(lengths)) != 1:
        names = [name for name, _ in lists]
        raise ValueError(f"{', '.join(names[:-1])} and {names[-1]} must be equally long, found {lengths}")


class _SpectralTerms(Config):
    """Which distances of two spectrograms count, and how much."""

    window: Window = "hann_window"
    w_sc: float = Field(1.0, ge=0)
    """Spectral convergence: the norm of the difference over the norm of the reference (Arik et al. 2018)."""
    w_log_mag: float = Field(1.0, ge=0)
    """Mean distance of the log magnitudes."""
    w_lin_mag: float = Field(0.0, ge=0)
    """Mean distance of the magnitudes."""
    w_phs: float = Field(0.0, ge=0)
    """Mean squared distance of the phases."""
    scale: Literal["mel"] | None = None
    """Compare bands of the mel scale instead of bins."""
    n_bins: int | None = Field(None, ge=1)
    """How many bands; ``scale`` takes it."""
    perceptual_weighting: bool = False
    """Filter both signals by the A-weighting of the ear (Wright and Valimaki 2019)."""
    scale_invariance: bool = False
    """Bring the reference to the loudness that fits best first."""
    mag_distance: Literal["L1", "L2"] = "L1"

    @model_validator(mode="after")
    def _something_counts(self) -> _SpectralTerms:
        if not (self.w_sc or self.w_log_mag or self.w_lin_mag or self.w_phs):
            raise ValueError("w_sc, w_log_mag, w_lin_mag and w_phs are all 0, so nothing would be compared")
        if self.scale is not None and self.n_bins is None:
            raise ValueError(f"scale {self.scale!r} takes n_bins, the number of bands")
        return self


class STFTLossConfig(_SpectralTerms):
    """Spectral distances at several resolutions (Yamamoto et al. 2020; Steinmetz and Reiss 2020)."""

    fft_sizes: list[int] = Field(_SCALES, min_length=1)
    hop_sizes: list[int] = Field(_HOPS, min_length=1)
    win_lengths: list[int] = Field(_SCALES, min_length=1)

    @model_validator(mode="after")
    def _lists_fit(self) -> STFTLossConfig:
        check_resolutions(
            ("fft_sizes", self.fft_sizes), ("hop_sizes", self.hop_sizes), ("win_lengths", self.win_lengths)
        )
        return self


class STFTLossWeights(Config):
    mrstft: float = Field(1.0, ge=0)


class SpectralLoss(Config):
    """Of a stereo signal: of sum and difference, and of left and right."""

    type: Literal["mrstft"] = "mrstft"
    config: STFTLossConfig = STFTLossConfig()
    weights: STFTLossWeights = STFTLossWeights()
    decay: float = Field(1.0, gt=0, le=1)
    """What the weight is multiplied by at each step of the autoencoder."""


class MelLossConfig(Config):
    """Distances of mel spectrograms, one for each window length (Kumar et al. 2023)."""

    n_mels: list[int] = Field([5, 10, 20, 40, 80, 160, 320], min_length=1)
    window_lengths: list[int] = Field([32, 64, 128, 256, 512, 1024, 2048], min_length=1)
    pow: float = 1.0
    log_weight: float = Field(1.0, ge=0)
    mag_weight: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _lists_fit(self) -> MelLossConfig:
        _check_equally_long(("n_mels", self.n_mels), ("window_lengths", self.window_lengths))
        if any(length < 4 for length in self.window_lengths):
            raise ValueError(f"window_lengths must be 4 or more, found {self.window_lengths}")
        return self


class MelLossWeights(Config):
    mrmel: float = Field(1.0, ge=0)


class MelLoss(Config):
    type: Literal["mrmel"] = "mrmel"
    config: MelLossConfig = MelLossConfig()
    weights: MelLossWeights = MelLossWeights()


class TimeLossWeights(Config):
    l1: float = Field(0.0, ge=0)
    l2: float = Field(0.0, ge=0)


class NoOptions(Config):
    """A loss without options of its own."""


class TimeLoss(Config):
    """Mean absolute and mean squared distance of the waveforms, by their weights."""

    type: Literal["l1", "l2"] = "l1"
    config: NoOptions = NoOptions()
    weights: TimeLossWeights = TimeLossWeights()
    decay: float = Field(1.0, gt=0, le=1)
    """What the weights are multiplied by at each step of the autoencoder."""


class DiscriminatorWeights(Config):
    adversarial: float = Field(0.1, ge=0)
    feature_matching: float = Field(5.0, ge=0)


class STFTDiscriminatorConfig(Config):
    """Discriminators over complex spectrograms at several resolutions (Defossez et al. 2022)."""

    filters: int = Field(32, ge=1)
    n_ffts: list[int] = Field([1024, 2048, 512], min_length=1)
    hop_lengths: list[int] = Field([256, 512, 128], min_length=1)
    win_lengths: list[int] = Field([1024, 2048, 512], min_length=1)
    normalized: bool = True
    """Divide each spectrogram by the norm of its window."""
    kernel_size: tuple[int, int] = (3, 9)
    """In frames and bins."""
    dilations: list[int] = Field([1, 2, 4], min_length=1)
    """In frames, of the inner layers; as many as there are."""
    stride: tuple[int, int] = (1, 1)
    """Of the inner layers, in frames and bins. The paper has (1, 2), which halves the bins each time."""
    spec_scale_pow: float = 0.0
    """Multiply a spectrogram by its magnitude to this power: -0.5 brings out what is quiet."""
    normalize_losses: bool = False
    """Divide each distance of features by the mean size of the real ones."""
    loss_type: Literal["hinge", "rpgan"] = "hinge"
    """Hinge (Lim and Ye 2017), or relativistic: real against made, in pairs (Jolicoeur-Martineau 2018)."""

    @model_validator(mode="after")
    def _lists_fit(self) -> STFTDiscriminatorConfig:
        check_resolutions(
            ("n_ffts", self.n_ffts), ("hop_lengths", self.hop_lengths), ("win_lengths", self.win_lengths)
        )
        if any(size % 2 == 0 for size in self.kernel_size):
            raise ValueError(f"kernel_size must be odd in both directions, found {self.kernel_size}")
        return self


class STFTDiscriminator(Config):
    type: Literal["encodec"]
    config: STFTDiscriminatorConfig = STFTDiscriminatorConfig()
    weights: DiscriminatorWeights = DiscriminatorWeights()


class WaveDiscriminatorConfig(Config):
    """Discriminators over waveforms at several scales and periods (Kong et al. 2020)."""

    in_channels: int | None = Field(None, ge=1)
    """Audio channels; those of the autoencoder where it is not given."""


class WaveDiscriminator(Config):
    type: Literal["oobleck"]
    config: WaveDiscriminatorConfig = WaveDiscriminatorConfig()
    weights: DiscriminatorWeights = DiscriminatorWeights()


class BottleneckWeights(Config):
    """How much what a bottleneck reports counts, by what it reports."""

    kl: float = Field(1e-6, ge=0)
    mmd: float = Field(100.0, ge=0)
    softnorm: float = Field(1e-5, ge=0)
    quantizer: float = Field(1.0, ge=0)
    codebook: float = Field(1.0, ge=0)
    commitment: float = Field(0.25, ge=0)


class BottleneckLoss(Config):
    """The losses that the bottleneck reports, by name and weight; ``type`` says which it is about."""

    type: Literal["kl", "mmd"] | None = None
    weights: BottleneckWeights = BottleneckWeights()


class AutoencoderLosses(Config):
    """Every part may be absent; then it has no share. What the bottleneck reports always has one."""

    discriminator: Annotated[STFTDiscriminator | WaveDiscriminator, Field(discriminator="type")] | None = None
    spectral: SpectralLoss | None = None
    mrmel: MelLoss | None = None
    time: TimeLoss | None = None
    bottleneck: BottleneckLoss = BottleneckLoss()

    @model_validator(mode="after")
    def _something_counts(self) -> AutoencoderLosses:
        spectral = self.spectral is not None and self.spectral.weights.mrstft > 0
        mel = self.mrmel is not None and self.mrmel.weights.mrmel > 0
        time = self.time is not None and (self.time.weights.l1 > 0 or self.time.weights.l2 > 0)
        if not (spectral or mel or time):
            raise ValueError(
                "no reconstruction loss: expected spectral, mrmel or time with a weight above 0, since"
                " nothing else ties what is decoded to what was encoded"
            )
        return self


def default_losses() -> AutoencoderLosses:
    """What the public training uses where ``loss_configs`` is absent."""
    discriminator = STFTDiscriminatorConfig(n_ffts=_SCALES, hop_lengths=_HOPS, win_lengths=_SCALES)
    return AutoencoderLosses(
        discriminator=STFTDiscriminator(type="encodec", config=discriminator),
        spectral=SpectralLoss(config=STFTLossConfig(perceptual_weighting=True)),
    )


class STFTMetricConfig(_SpectralTerms):
    """One spectral distance."""

    fft_size: int = Field(1024, ge=4)
    hop_size: int = Field(256, ge=1)
    win_length: int = Field(1024, ge=1)

    @model_validator(mode="after")
    def _window_fits(self) -> STFTMetricConfig:
        check_resolutions(
            ("fft_size", [self.fft_size]), ("hop_size", [self.hop_size]), ("win_length", [self.win_length])
        )
        return self


class MelMetricConfig(STFTMetricConfig):
    """One spectral distance of ``n_mels`` bands of the mel scale."""

    n_mels: int = Field(128, ge=1)


class SISDRConfig(Config):
    """Scale-invariant signal-to-distortion ratio in dB, higher is better (Le Roux et al. 2019)."""

    zero_mean: bool = True


class EvaluationMetrics(Config):
    """What validation of an autoencoder reports besides its loss."""

    stft: STFTMetricConfig | None = None
    mel: MelMetricConfig | None = None
    sisdr: SISDRConfig | None = None
