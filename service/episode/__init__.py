"""Episodes: the loop that runs a model and its code, its events, and what they add up to."""
