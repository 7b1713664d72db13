"""Which training track shaped this clip: gradients projected, stored, scored and ranked (D-TRAK)."""
