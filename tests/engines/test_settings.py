from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.engines.settings import RemoteSettings


def test_server_urls_are_normalised() -> None:
    settings = RemoteSettings(urls=("http://a:1/v1/", "https://b/path/"), model="m")
    assert settings.urls == ("http://a:1", "https://b/path")


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ((), "at least 1"),
        (("a:8000",), "'a:8000' is not an address"),
        (("http://a", "http://a/v1"), "listed twice"),
    ],
)
def test_rejects_invalid_server_urls(urls: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RemoteSettings(urls=urls, model="m")
