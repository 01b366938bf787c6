"""Sandboxes that run a model's code."""
