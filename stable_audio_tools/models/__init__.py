"""Networks built from a config, and their checkpoints."""
