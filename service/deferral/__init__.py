"""The deferred protocol, without I/O."""
