"""Generated problems with plans for the warm start of released models."""
