"""Which training tracks shaped a clip: per-sample gradients, a store of them, scores and ranked tables."""
