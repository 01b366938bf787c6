from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from service.api.auth import digest_of
from service.server.settings import Settings, is_loopback


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("IHGRPO_")]:
        monkeypatch.delenv(name)


def test_default_is_in_process_sandbox_on_loopback() -> None:
    settings = Settings()
    assert (settings.sandbox_kind, settings.host, settings.keys()) == ("in-process", "127.0.0.1", ())


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"sandbox": "runner"}, "runner"),
        ({"sandbox": "in-process"}, "in-process"),
        ({"runner_url": "runner:8090"}, "runner"),
        ({"runner_token_file": "token"}, "runner"),
        ({"host": "0.0.0.0", "allow_anonymous": True}, "runner"),
    ],
)
def test_configured_runner_is_the_default(given: dict[str, object], kind: str) -> None:
    assert Settings(**given).sandbox_kind == kind  # type: ignore[arg-type]


def test_runner_addresses_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings(runner_url="a:1, wss://b:2").runner_url == ("a:1", "wss://b:2")  # type: ignore[arg-type]
    monkeypatch.setenv("IHGRPO_RUNNER_URL", "c:3,unix:/run/r.sock")
    assert Settings().runner_url == ("c:3", "unix:/run/r.sock")


def test_empty_tls_files_are_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IHGRPO_RUNNER_CA_FILE", "")
    assert Settings().runner_tls().ca is None


def test_runner_token_in_environment_selects_the_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IHGRPO_RUNNER_TOKEN", "t" * 32)
    assert Settings().sandbox_kind == "runner"


def test_arguments_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IHGRPO_PORT", "9000")
    monkeypatch.setenv("IHGRPO_MAX_SLOTS", "3")
    settings = Settings(port=9001)
    assert (settings.port, settings.max_slots) == (9001, 3)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.4", "::", "example.org"])
def test_in_process_sandbox_requires_loopback(host: str) -> None:
    with pytest.raises(ValidationError, match=r"in-process.*Docker socket.*ih-grpo runner"):
        Settings(host=host, sandbox="in-process", api_keys=(SecretStr("k"),))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_is_loopback_accepts_every_spelling(host: str) -> None:
    assert is_loopback(host)
    assert Settings(host=host, sandbox="in-process").host == host


def test_public_address_requires_a_key() -> None:
    with pytest.raises(ValidationError, match="no API key: set api_keys"):
        Settings(host="0.0.0.0")
    assert Settings(host="0.0.0.0", allow_anonymous=True).keys() == ()


def test_keys_come_from_the_environment_and_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# team\nsha256:{digest_of('secret-3').hex()} name=team rpm=9\n\n")
    monkeypatch.setenv("IHGRPO_API_KEYS", "secret-1, secret-2")
    settings = Settings(api_keys_file=file)
    digests = [digest_of(f"secret-{number}") for number in (1, 2, 3)]
    found = settings.keys()
    assert [key.digest for key in found] == digests
    assert (found[2].name, found[2].requests_per_minute) == ("team", 9)
    assert "secret-1" not in repr(settings)


@pytest.mark.parametrize("content", [None, "# nothing\n", "sk-spelled-out\n"])
def test_empty_key_file_is_an_error(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValidationError, match="api_keys_file"):
        Settings(api_keys_file=file)


def test_rejects_unknown_sandbox() -> None:
    with pytest.raises(ValidationError, match="'auto', 'runner', 'in-process' or 'process'"):
        Settings(sandbox="docker")  # type: ignore[arg-type]


@pytest.mark.parametrize(("host", "accept"), [("127.0.0.1", False), ("0.0.0.0", True), ("0.0.0.0", False)])
def test_bubblewrap_requires_acceptance_and_loopback(host: str, accept: bool) -> None:
    with pytest.raises(ValidationError, match=r"intended for training.*accept_weaker_isolation"):
        Settings(host=host, sandbox="process", accept_weaker_isolation=accept, api_keys=(SecretStr("k"),))


def test_bubblewrap_can_be_accepted() -> None:
    assert Settings(sandbox="process", accept_weaker_isolation=True).sandbox == "process"


def test_every_field_is_documented() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_engine_options_from_the_environment_and_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Settings(engine_url=["http://a:1"])  # type: ignore[arg-type]
    assert given.engine_url == ("http://a:1",)
    lists = {"lora": ["poet=/p"], "vllm_args": ["tensor_parallel_size=2", "distributed_executor_backend=ray"]}
    given = Settings(**lists)  # type: ignore[arg-type]
    assert given.lora == {"poet": Path("/p")}
    assert given.vllm_args == {"tensor_parallel_size": 2, "distributed_executor_backend": "ray"}
    monkeypatch.setenv("IHGRPO_LORA", "poet=/p, chemist=/c")
    monkeypatch.setenv("IHGRPO_VLLM_ARGS", '{"enforce_eager": true}')
    read = Settings()
    assert read.lora == {"poet": Path("/p"), "chemist": Path("/c")}
    assert read.vllm_args == {"enforce_eager": True}
    monkeypatch.undo()
    monkeypatch.setenv("IHGRPO_ENGINE_URL", "http://a:1, http://b:2")
    assert Settings().engine_url == ("http://a:1", "http://b:2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "remote"}, "needs a vLLM server: set engine_url"),
        ({"engine": "vllm", "engine_url": ["http://a"]}, "remove one of them"),
        ({"engine_url": ["http://a"], "lora": {"a": "b"}}, "lora is not supported with vLLM servers"),
        ({"engine_url": ["http://a"], "vllm_args": {"a": 1}}, "vllm_args requires engine 'vllm'"),
        ({"lora": ["poet"]}, "'poet' is not of the form name=value"),
        ({"lora": ["a=b", "a=c"]}, "'a' is repeated"),
    ],
)
def test_rejects_conflicting_engine_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Settings(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"engine": "gguf"}, "set model to a file that ends in .gguf"),
        ({"model": "a.gguf", "engine": "transformers"}, "only engine 'gguf' serves"),
        ({"model": "a.gguf", "engine_url": "http://gpu:8000"}, "only engine 'gguf' serves"),
        ({"model": "a.gguf", "lora": "poet=p"}, "ih-grpo merge ADAPTER --gguf FILE"),
        ({"model": "a.gguf", "base": "b"}, "ih-grpo merge ADAPTER --gguf FILE"),
        ({"model": "a.gguf", "dtype": "float32"}, "dtype has no effect"),
        ({"model": "a.gguf", "device": "cuda:1"}, "device must be auto or cpu"),
    ],
)
def test_gguf_file_rejects_settings_of_other_engines(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Settings(**fields)  # type: ignore[arg-type]
