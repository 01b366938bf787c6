"""What an operator may set: by flags of ``ih-grpo serve``, else by ``IHGRPO_*`` in the environment."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.api_keys import ApiKey, parse_keys
from service.checkpoint import quickstart

SandboxBackend = Literal["runner", "in-process"]


class Settings(BaseSettings):
    """One server. Each field is ``IHGRPO_<NAME>`` in the environment."""

    model_config = SettingsConfigDict(
        env_prefix="IHGRPO_", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address to listen on. Beyond loopback, API keys and a sandbox runner are asked for."""
    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port; 0 takes a free one."""

    model: str = Field(default_factory=lambda: str(quickstart()))
    """Directory of a checkpoint, or its Hugging Face id."""
    served_model_name: str | None = None
    """The name that clients ask for; the checkpoint's own where unset."""
    device: str = "auto"
    """Where the model runs: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and cache; ``auto`` is the checkpoint's on a GPU and float32 on the CPU."""
    max_slots: int = Field(default=16, ge=1)
    """Sequences that the embedded engine decodes in one batch."""
    max_context: int | None = Field(default=None, ge=16)
    """Tokens a sequence may hold; the checkpoint's limit where unset."""

    sandbox: SandboxBackend = "runner"
    """Where code runs. ``runner``: a runner service, which alone holds the Docker socket. ``in-process``:
    this very process holds it, so whoever breaks the API owns the machine; for a loopback address only."""
    runner_url: str = "unix:/run/ih-grpo/runner.sock"
    """Where the runner listens: ``unix:/path/to.sock`` or ``host:port``."""
    runner_token_file: Path | None = None
    """File with the secret shared with the runner; ``IHGRPO_RUNNER_TOKEN`` holds it where unset."""
    sandbox_image: str = "ih-grpo-sandbox:latest"
    """Image of the containers, for ``in-process``."""
    warm_containers: int = Field(default=2, ge=0)
    """Idle containers kept ready, for ``in-process``."""
    max_containers: int = Field(default=32, ge=1)
    """Containers at once, for ``in-process``."""

    max_turns: int | None = Field(default=None, ge=1)
    """Most turns a client may ask for; the checkpoint's own number where unset."""
    run_limit_s: float | None = Field(default=None, gt=0, le=600)
    """Most seconds a flush may run; the checkpoint's own number where unset."""
    max_n: int = Field(default=16, ge=1)
    """Most choices (``n``) a request."""
    max_concurrent_episodes: int = Field(default=32, ge=1)
    """Episodes that run at once; each choice of a request is one. More than there are containers makes
    episodes wait for one."""
    max_queued_episodes: int = Field(default=128, ge=0)
    """Episodes that wait for their turn; beyond it a request gets 429."""
    queue_timeout_s: float = Field(default=30.0, gt=0)
    """Longest wait in that queue, in seconds; then 429."""
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024)
    """Largest request body; beyond it 413."""
    keep_alive_s: float = Field(default=5.0, gt=0)
    """A stream that is silent this long gets an SSE comment, so that no proxy closes it."""
    drain_s: int = Field(default=30, ge=0)
    """After SIGTERM, requests in flight have this many seconds to end."""

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Keys that clients may use, separated by commas: ``sha256:HEX``, or a key itself. None: no key is asked
    for, on loopback only."""
    api_keys_file: Path | None = None
    """File with one key a line, ``sha256:HEX [name=ci] [rpm=60] [concurrency=4]``; added to ``api_keys``.
    ``ih-grpo key`` makes such a line."""
    key_requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests a minute for each key whose line has no ``rpm``; unset: no limit."""
    key_concurrency: int | None = Field(default=None, ge=1)
    """Requests at once for each key whose line has no ``concurrency``; unset: no limit."""
    allow_anonymous: bool = False
    """Serve without keys beyond loopback: whoever reaches the port can use the model and run code."""

    reload_root: Path | None = None
    """Directory below which ``POST /admin/reload`` may take checkpoints from; off where unset. Asks for
    an API key."""

    otel_endpoint: str | None = None
    """OTLP/HTTP collector for traces, as ``http://localhost:4318/v1/traces``; unset: no traces. Needs the
    extra ``otel``. Spans hold no prompt, reply or code."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is logged. Prompts and replies are never logged."""
    log_format: Literal["console", "json"] = "console"
    """For eyes, or for a log collector."""

    @model_validator(mode="before")
    @classmethod
    def _split_keys(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(keys := data.get("api_keys"), str):
            return {**data, "api_keys": [key.strip() for key in keys.split(",") if key.strip()]}
        return data

    @model_validator(mode="after")
    def _secure(self) -> Self:
        local, keys = is_loopback(self.host), self.keys()
        if self.sandbox == "in-process" and not local:
            raise ValueError(
                f"sandbox 'in-process' gives this process the Docker socket, so it serves a loopback address "
                f"only, not host {self.host!r}: start `ih-grpo runner` and use sandbox 'runner'"
            )
        if not local and not keys and not self.allow_anonymous:
            raise ValueError(
                f"host {self.host!r} is reachable from outside and there is no API key: set api_keys or "
                f"api_keys_file, or allow_anonymous if that is what you want"
            )
        if self.reload_root is not None and not keys:
            raise ValueError(
                "reload_root lets clients change the weights, and there is no API key: set api_keys or "
                "api_keys_file"
            )
        return self

    def keys(self) -> tuple[ApiKey, ...]:
        """All API keys.

        Raises:
            ValueError: the key file can't be read, or holds none; or a key is not of its form.
        """
        keys = parse_keys((key.get_secret_value() for key in self.api_keys), hashed=False)
        if self.api_keys_file is None:
            return keys
        try:
            lines = self.api_keys_file.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ValueError(f"api_keys_file can't be read: {error}") from None
        try:
            in_file = parse_keys(lines, hashed=True)
        except ValueError as error:
            raise ValueError(f"api_keys_file {self.api_keys_file}: {error}") from None
        if not in_file:
            raise ValueError(f"api_keys_file {self.api_keys_file} holds no key")
        return keys + in_file


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
