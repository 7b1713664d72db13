"""Layers: embeddings, norms, attention, transformer, convolutions. No files, no training."""
