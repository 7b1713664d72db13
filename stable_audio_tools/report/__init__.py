"""One HTML page kit for every report."""
