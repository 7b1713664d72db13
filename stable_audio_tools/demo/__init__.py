"""The built-in catalogue, its tiny trained models, and the whole chain on them."""
