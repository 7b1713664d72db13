"""What is known of the published codecs, so that a config can be checked and built without fetching one."""

from __future__ import annotations

from typing import NamedTuple


class CodecFacts(NamedTuple):
    """A codec as its own config describes it."""

    sample_rate: int
    """In Hz."""
    io_channels: int
    """Audio channels."""
    encoded_channels: int
    """Channels of its latents."""
    downsampling_ratio: int
    """Audio samples per latent."""
    num_quantizers: int
    """Codes per latent."""
    codebook_size: int
    """How many values a code has."""


DACS = {
    "descript/dac_16khz": CodecFacts(16000, 1, 1024, 320, 12, 1024),
    "descript/dac_24khz": CodecFacts(24000, 1, 1024, 320, 32, 1024),
    "descript/dac_44khz": CodecFacts(44100, 1, 1024, 512, 9, 1024),
}
ENCODECS = {
    "facebook/encodec_24khz": CodecFacts(24000, 1, 128, 320, 32, 1024),
    "facebook/encodec_32khz": CodecFacts(32000, 1, 128, 640, 4, 2048),
}
