"""One episode: a model's turns, its code, and the results it reads."""
