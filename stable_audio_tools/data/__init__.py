"""Which recordings there are, what is known of them, and crops of them in batches."""
