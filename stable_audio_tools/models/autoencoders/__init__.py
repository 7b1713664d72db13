"""Audio to latents and back: encoders, decoders, and the autoencoder they make with a bottleneck."""
