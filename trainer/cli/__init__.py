"""The commands ``train``, ``eval``, ``show`` and ``runs``."""
