from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from service.sandbox.runner.settings import TOKEN_ENV, RunnerSettings, read_token

TOKEN = "0123456789abcdef"


def test_reads_the_token_from_the_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    assert read_token(file, {TOKEN_ENV: "another token of some length"}).get_secret_value() == TOKEN
    assert read_token(None, {TOKEN_ENV: TOKEN}).get_secret_value() == TOKEN


BAD_TOKENS = {
    "none": "",
    "small": "0123456789",
    "words": "two words of token",
    "utf8": "0123456789abcdéf",
    "lines": "01234567\nabcdefgh",
}


@pytest.mark.parametrize("text", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_rejects_unusable_tokens_without_repeating_them(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(ValueError, match="openssl rand") as caught:
        read_token(file)
    assert not text or text not in str(caught.value)
    with pytest.raises(ValueError, match=TOKEN_ENV):
        read_token(None, {TOKEN_ENV: text})


def test_names_a_missing_token_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        read_token(tmp_path / "nowhere", {TOKEN_ENV: TOKEN})


def test_settings_require_a_token_and_hide_it() -> None:
    with pytest.raises(ValidationError, match="token"):
        RunnerSettings()  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="bind"):
        RunnerSettings(token=SecretStr(TOKEN), bind="nowhere")
    assert TOKEN not in repr(RunnerSettings(token=SecretStr(TOKEN)))


@pytest.mark.parametrize(
    "header", [None, "", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN} ", "Bearer é", "Bearer \udc80"]
)
def test_admits_only_the_token(header: str | None) -> None:
    settings = RunnerSettings(token=SecretStr(TOKEN))
    assert settings.admits(f"Bearer {TOKEN}")
    assert not settings.admits(header)
