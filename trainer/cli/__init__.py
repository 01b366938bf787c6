"""The commands ``train``, ``eval`` and ``show``."""
