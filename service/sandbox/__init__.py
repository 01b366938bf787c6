"""Sandboxes: isolated execution of the code that a model writes."""
