"""Which training track shaped this clip: gradients measured, projected, stored, scored and ranked (D-TRAK)."""
