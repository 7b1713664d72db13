"""Whether scores tell the truth: models are trained again without tracks, and what changes is compared."""
