"""What a dedup run can be told, with the defaults of the command."""

from __future__ import annotations

from dataclasses import dataclass

from stable_audio_tools.errors import UsageError

HISTOGRAM_MODES = ("per-codebook", "global")


@dataclass(frozen=True)
class DedupSettings:
    """What makes two tracks candidates, and what makes candidates one recording.

    What ``similarity_threshold`` means: two tracks become candidates when the cosine of their histograms of
    DAC codes reaches it. A histogram cannot see order, so the cosine measures likeness of sound, not
    identity: two draws of N frames from one distribution with K effective codes reach N / (N + K - 1),
    whether they are one recording or not. At 120 s and the 1,024 codes of DAC that is 0.91, and so the
    default is 0.9: a copy whose codes all fell otherwise, because it was encoded again or shifted by part of
    a frame, is still looked at. Short tracks reach less (0.72 at 30 s), an excerpt of a long track still
    less; those are found by their landmarks.

    Attributes:
        model_path: DAC in the Hugging Face format, a folder or a name on the hub; None: landmarks only.
        device, similarity_device: where the codec runs, and where histograms are compared; None is the best.
        similarity_threshold: cosine of code histograms from which a pair is looked at, in (0, 1].
        histogram_mode: ``per-codebook`` or ``global``, see
            :func:`~stable_audio_tools.dedup.fingerprints.histogram`.
        max_audio_seconds: how much of each track the codec hears, from its start; None: all of it. Landmarks
            are of the whole track always.
        chunk_seconds, batch_size: the codec's load at once. A chunk's edges change a handful of its codes.
        num_workers: threads that decode.
        verify: confirm candidates by aligning them in time. Without it the threshold alone decides: take 0.99
            or more then, and listen to the pairs.
        min_votes: hashes of landmarks in common at one offset from which a pair is looked at, of the quarter
            that is searched.
        max_candidates: of the pairs of a track, how many of each kind are looked at, the likeliest first.
        Only
            where they are verified.
        max_index_gib: what the index of landmarks may take in memory; above it, fewer landmarks are searched.
        min_correlation, min_agreement: what the onsets and the landmarks of an aligned pair must reach to be
            one recording, both in (0, 1].
        retimed_agreement: in place of ``min_agreement`` where one is played faster: stretching moves
        landmarks. transposed_correlation, transposed_agreement: in place of both where one is higher: that
        moves sound from
            band to band, but no other music agrees in its landmarks at an interval.
        min_matches: hashes of landmarks that an aligned pair must have in common.
        min_overlap: the share of the shorter track that both must cover, in (0, 1].
    """

    model_path: str | None = "descript/dac_44khz"
    device: str | None = None
    similarity_device: str | None = "cpu"
    similarity_threshold: float = 0.9
    histogram_mode: str = "per-codebook"
    max_audio_seconds: float | None = 120.0
    chunk_seconds: float = 10.0
    batch_size: int = 4
    num_workers: int = 4
    verify: bool = True
    min_votes: int = 8
    max_candidates: int = 20
    max_index_gib: float = 8.0
    min_correlation: float = 0.935
    min_agreement: float = 0.6
    retimed_agreement: float = 0.45
    transposed_correlation: float = 0.55
    transposed_agreement: float = 0.55
    min_matches: int = 30
    min_overlap: float = 0.5

    def __post_init__(self) -> None:
        """Raise before hours of work what would otherwise be raised after them."""
        if not 0.0 < self.similarity_threshold <= 1.0:
            raise UsageError(
                f"similarity threshold {self.similarity_threshold} is not a cosine:"
                " expected a number above 0 and up to 1"
            )
        if self.histogram_mode not in HISTOGRAM_MODES:
            raise UsageError(
                f"unknown histogram mode {self.histogram_mode!r}:"
                f" expected one of {', '.join(HISTOGRAM_MODES)}"
            )
        if self.max_audio_seconds is not None and not self.max_audio_seconds > 0:
            raise UsageError(
                f"max audio seconds is {self.max_audio_seconds}: expected a number above 0, or nothing"
            )
        if not self.chunk_seconds > 0 or self.batch_size < 1:
            raise UsageError(
                f"chunks of {self.chunk_seconds} s in batches of {self.batch_size}: expected numbers above 0"
            )
        for name in (
            "min_correlation", "min_agreement", "retimed_agreement", "transposed_correlation",
            "transposed_agreement", "min_overlap",
        ):  # fmt: skip
            value = getattr(self, name)
            if not 0.0 < value <= 1.0:
                raise UsageError(
                    f"{name.replace('_', ' ')} is {value}: expected a number above 0 and up to 1"
                )
        for name in ("num_workers", "min_votes", "max_candidates", "min_matches"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"{name.replace('_', ' ')} is {getattr(self, name)}: expected a whole number from 1 on"
                )
        if not self.max_index_gib > 0:
            raise UsageError(f"max index gib is {self.max_index_gib}: expected a number above 0")
        if not self.verify and self.model_path is None:
            raise UsageError("without a model nothing but landmarks is left, and those are always verified")
