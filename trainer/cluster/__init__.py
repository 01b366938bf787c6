"""Rollouts and rewards on the hosts of a Ray cluster. Ray places them; they do what one process does."""
