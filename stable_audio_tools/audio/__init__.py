"""Decoding, resampling, features and plots: audio as tensors, and nothing of datasets or models."""
