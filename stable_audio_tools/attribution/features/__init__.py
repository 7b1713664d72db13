"""Rows of features, one for each track or clip: extracted, taken apart and stored on disk."""
