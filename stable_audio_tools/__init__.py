"""Training, generation, de-duplication, attribution and evaluation for latent-diffusion music models."""
