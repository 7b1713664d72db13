"""Which tracks of a dataset are one recording: fingerprints -> candidates -> verify -> clusters."""
