"""What every layer needs and no layer owns: devices, seeds, files, progress, the manifest of a run."""
