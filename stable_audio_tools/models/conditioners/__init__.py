"""Metadata of a clip to embeddings: prompts, numbers and choices."""
