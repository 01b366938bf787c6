"""Rollouts and rewards on the hosts of a Ray cluster."""
