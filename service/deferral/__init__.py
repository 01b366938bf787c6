"""The deferred execution protocol, without I/O. Start reading at ``episode``."""
