"""Lists of training runs and comparisons of their curves."""
