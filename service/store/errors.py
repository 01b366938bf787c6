"""Why a store can't be used."""

from __future__ import annotations


class StoreError(ValueError):
    """The store can't be opened; the message says why and what to do."""
