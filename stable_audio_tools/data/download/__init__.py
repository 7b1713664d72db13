"""Getting public catalogues: mirrors, resumed and verified transfers, archives, and what to choose."""
