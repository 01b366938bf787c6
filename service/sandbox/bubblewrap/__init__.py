"""Sandboxes in bubblewrap processes on this host."""
