"""The tensor maths of diffusion: objectives, timesteps, noise, guidance and samplers. No networks."""
