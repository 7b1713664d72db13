"""From features to scores: kernels, baselines, ranked tracks and groups of tracks."""
