from __future__ import annotations

import pytest

from service.common import logs


@pytest.fixture(autouse=True)
def _keep_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in this process. They must not change its logging for later tests."""
    monkeypatch.setattr(logs, "configure", lambda *_: None)
