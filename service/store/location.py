"""Where responses are stored by default. Light: the settings read it."""

from __future__ import annotations

import os
from pathlib import Path


def default_url() -> str:
    """SQLite in the user's state directory (``$XDG_STATE_HOME``)."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return f"sqlite:///{state / 'ih-grpo' / 'responses.db'}"
