"""Warm start of a released checkpoint: solved problems in the protocol, mixed with its own chat."""
