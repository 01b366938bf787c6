"""What an operator may set: by flags of ``ih-grpo serve``, else by ``IHGRPO_*`` in the environment.

Variables that look like settings and are none: they would be passed over in silence.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.api.auth import ApiKey, parse_keys
from service.api.responses.seal import SealKey, parse_seal_key
from service.engines.checkpoint import quickstart
from service.sandbox.runner.settings import TOKEN_ENV
from service.store.database import default_url

EngineKind = Literal["auto", "transformers", "vllm", "remote"]
SandboxKind = Literal["runner", "in-process", "process"]


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
    """Directory of a checkpoint, or its Hugging Face id. A PEFT adapter is merged into its base model."""
    base: str | None = None
    """Base model of an adapter that ``model`` names: a directory or a Hugging Face id. Unset: the one that
    the adapter names."""
    served_model_name: str | None = None
    """The name that clients ask for; the checkpoint's own where unset."""
    engine: EngineKind = "auto"
    """What samples the tokens. ``transformers``: embedded, for small models. ``vllm``: vLLM in this process.
    ``remote``: vLLM servers elsewhere. ``auto``: remote where ``engine_url`` is set, vLLM where it is
    installed and a GPU is there, else embedded."""
    engine_url: Annotated[tuple[str, ...], NoDecode] = ()
    """vLLM servers to sample on, separated by commas, as ``http://gpu-1:8000,http://gpu-2:8000``. ``model``
    is then read for its tokenizer alone."""
    engine_api_key: SecretStr | None = None
    """Key that those servers ask for."""
    engine_logprobs_mode: Literal["raw_logprobs", "processed_logprobs"] = "raw_logprobs"
    """Their ``--logprobs-mode``; logprobs are refused where they would not mean what they promise."""
    lora: Annotated[dict[str, Path], NoDecode] = Field(default_factory=dict)
    """LoRA adapters that are served as models of their own beside ``model``: ``name=directory``, separated by
    commas."""
    vllm_args: dict[str, Any] = Field(default_factory=dict)
    """Any of vLLM's engine arguments, as JSON: ``{"tensor_parallel_size": 2}``; on the command line
    ``--vllm-arg tensor_parallel_size=2``, one by one."""
    device: str = "auto"
    """Where the model runs: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and cache. ``auto`` is the checkpoint's on a GPU; on a CPU bfloat16 if that is faster
    (AVX512-BF16 or AMX, a model of 20 million parameters or more), else float32."""
    max_slots: int = Field(default=16, ge=1)
    """Sequences that the embedded engine decodes in one batch."""
    max_context: int | None = Field(default=None, ge=16)
    """Tokens a sequence may hold; the checkpoint's limit where unset."""

    sandbox: Literal["auto", "runner", "in-process", "process"] = "auto"
    """Where code runs. ``runner``: a runner service, which alone holds the Docker socket. ``in-process``:
    this process holds the socket, so whoever breaks the API owns the machine; for a loopback address only.
    ``process``: bubblewrap in place of containers, which is meant for training; see the next field.
    ``auto``: the runner if its address or token is set or the host is not loopback, else in-process."""
    accept_weaker_isolation: bool = False
    """Serve with sandbox ``process`` all the same: code sees this machine's programs, and memory, CPU time
    and the number of files are not limited for its processes together. For a loopback address only."""
    runner_url: str = "unix:/run/ih-grpo/runner.sock"
    """Where the runner listens: ``unix:/path/to.sock`` or ``host:port``."""
    runner_token_file: Path | None = None
    """File with the secret shared with the runner; ``IHGRPO_RUNNER_TOKEN`` holds it where unset."""
    sandbox_image: str = "ih-grpo-sandbox:latest"
    """Image of the containers, for ``in-process``."""
    warm_containers: int = Field(default=4, ge=0)
    """Idle containers kept ready, for ``in-process``, each about 100 MB of memory. While episodes begin
    faster than containers start there are up to twice as many."""
    max_containers: int = Field(default=32, ge=1)
    """Containers at once, for ``in-process``."""

    max_turns: int | None = Field(default=None, ge=1)
    """Most turns a client may ask for; the checkpoint's own number where unset."""
    run_limit_s: float | None = Field(default=None, gt=0, le=600)
    """Most seconds a flush may run; the checkpoint's own number where unset."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of a flush's output that a client may ask for; the checkpoint's own number where unset."""
    max_n: int = Field(default=16, ge=1)
    """Most choices (``n``) a request."""
    max_concurrent_episodes: int = Field(default=32, ge=1)
    """Episodes that run at once; each choice of a request is one. More than there are containers makes
    episodes wait for one."""
    max_queued_episodes: int = Field(default=128, ge=0)
    """Episodes that wait for their turn; beyond it a request gets 429."""
    queue_timeout_s: float = Field(default=30.0, gt=0)
    """Longest wait in that queue, in seconds; then 429."""
    strict_requests: bool = False
    """Reject requests with fields that are unknown or have no effect, instead of ignoring the fields."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins whose web pages may use the API, separated by commas, as ``http://localhost:3000``."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """More names that a loopback server without keys answers to, separated by commas: others get 403."""
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024)
    """Largest request body; beyond it 413."""
    keep_alive_s: float = Field(default=5.0, gt=0)
    """A stream that is silent this long gets an SSE comment, so that no proxy closes it."""
    drain_s: int = Field(default=30, ge=0)
    """After SIGTERM, requests in flight have this many seconds to end."""

    store_url: str = Field(default_factory=default_url)
    """Where responses are stored: ``sqlite:///PATH`` (unset: in the user's state directory) or
    ``postgresql://USER:PASSWORD@HOST/NAME``, which several servers may share."""
    store_days: float = Field(default=30.0, gt=0)
    """How long a response is kept, in days."""
    store_max_bytes: int = Field(default=2**30, ge=2**20)
    """About how much the store may hold; beyond it the oldest responses go first."""
    seal_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Keys that seal the thoughts which clients of the Responses API keep (``encrypted_content``), as
    ``ID:BASE64`` of 32 bytes, separated by commas. The first one seals, all open. Unset: a random one, so
    that what was sealed can't be read after a restart."""
    max_background_responses: int = Field(default=128, ge=0)
    """Responses that run in the background or wait for it; beyond it a request gets 429."""

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Keys that clients may use, separated by commas: ``sha256:HEX``, or a key itself. None: no key is asked
    for, on loopback only."""
    api_keys_file: Path | None = None
    """File with one key a line, ``sha256:HEX [name=ci] [rpm=60] [concurrency=4] [scope=admin]``;
    added to ``api_keys``. ``ih-grpo key`` makes such a line."""
    key_requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests a minute for each key whose line has no ``rpm``; unset: no limit."""
    key_concurrency: int | None = Field(default=None, ge=1)
    """Requests at once for each key whose line has no ``concurrency``; unset: no limit."""
    allow_anonymous: bool = False
    """Serve without keys beyond loopback: whoever reaches the port can use the model and run code."""

    reload_root: Path | None = None
    """Directory below which ``POST /admin/reload`` may take checkpoints from; off where unset. Asks for
    an admin's API key (``ih-grpo key --admin``)."""

    otel_endpoint: str | None = None
    """OTLP/HTTP collector for traces, as ``http://localhost:4318/v1/traces``; unset: no traces. Needs the
    extra ``otel``. Spans hold no prompt, reply or code."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is logged. Prompts and replies are never logged."""
    log_format: Literal["console", "json"] = "console"
    """For eyes, or for a log collector."""

    @field_validator("api_keys", "engine_url", "cors_origins", "allowed_hosts", "seal_keys", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @field_validator("seal_keys")
    @classmethod
    def _are_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in value:
            parse_seal_key(key.get_secret_value())
        return value

    @field_validator("lora", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        parts = value.split(",") if isinstance(value, str) else value
        return _pairs([part.strip() for part in parts if part.strip()]) if isinstance(parts, list) else parts

    @field_validator("vllm_args", mode="before")
    @classmethod
    def _typed(cls, value: object) -> object:
        return {k: _number_or_text(v) for k, v in _pairs(value).items()} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _engine_fits(self) -> Self:
        if self.engine == "remote" and not self.engine_url:
            raise ValueError("engine 'remote' needs the address of a vLLM server: set engine_url")
        if self.engine in ("transformers", "vllm") and self.engine_url:
            raise ValueError(
                f"engine_url names vLLM servers, and engine {self.engine!r} asks none: leave one out"
            )
        if self.vllm_args and (self.engine in ("transformers", "remote") or self.engine_url):
            raise ValueError("vllm_args is for vLLM in this process: set engine to 'vllm'")
        if self.lora and (self.engine == "remote" or self.engine_url):
            raise ValueError("lora is for engines in this process: give the adapters to the vLLM servers")
        return self

    @model_validator(mode="after")
    def _secure(self) -> Self:
        local, keys = is_loopback(self.host), self.keys()
        if self.sandbox == "in-process" and not local:
            raise ValueError(
                f"sandbox 'in-process' gives this process the Docker socket, so it serves a loopback address "
                f"only, not host {self.host!r}: start `ih-grpo runner` and use sandbox 'runner'"
            )
        if self.sandbox == "process" and not (local and self.accept_weaker_isolation):
            raise ValueError(
                "sandbox 'process' holds less than containers and is meant for training: use sandbox "
                "'runner', or set accept_weaker_isolation and serve a loopback address only"
            )
        if not local and not keys and not self.allow_anonymous:
            raise ValueError(
                f"host {self.host!r} is reachable from outside and there is no API key: set api_keys or "
                f"api_keys_file, or allow_anonymous if that is what you want"
            )
        if self.reload_root is not None and not any(key.is_admin for key in keys):
            raise ValueError(
                "reload_root lets admins change the weights, and no API key is an admin's: make one with "
                "`ih-grpo key --admin` and put its line into api_keys_file"
            )
        return self

    @property
    def is_open_locally(self) -> bool:
        """Whether no key is asked for because only this machine reaches the server."""
        return is_loopback(self.host) and not self.keys()

    @property
    def sandbox_kind(self) -> SandboxKind:
        """The kind that ``sandbox`` names, or that ``auto`` stands for here."""
        if self.sandbox != "auto":
            return self.sandbox
        configured = {"runner_url", "runner_token_file"} & self.model_fields_set or os.environ.get(TOKEN_ENV)
        return "runner" if configured or not is_loopback(self.host) else "in-process"

    def seals(self) -> tuple[SealKey, ...]:
        """All seal keys, the one that seals first."""
        return tuple(parse_seal_key(key.get_secret_value()) for key in self.seal_keys)

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


def _pairs(parts: list[str]) -> dict[str, str]:
    """``name=value`` each.

    Raises:
        ValueError: a part is not of that form, or a name comes twice.
    """
    named: dict[str, str] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{part!r} is not of the form name=value")
        if name in named:
            raise ValueError(f"{name!r} is named twice")
        named[name] = value
    return named


def _number_or_text(value: str) -> object:
    """What JSON makes of it: a number, true, false, null, an object; else the text itself."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


_PREFIX: Final = "IHGRPO_"
_OTHERS: Final = frozenset({"api_key", "runner_token", "runner_warm_containers"})
"""Right, and near to a setting: ``ih-grpo chat``'s and the runner's."""
_ALIKE: Final = 0.75


def misspelt(environment: Mapping[str, str]) -> Iterator[str]:
    """A warning for each variable whose name nearly is a setting's."""
    for variable in sorted(environment):
        name = variable.removeprefix(_PREFIX).lower()
        if not variable.startswith(_PREFIX) or name in Settings.model_fields or name in _OTHERS:
            continue
        for meant in get_close_matches(name, Settings.model_fields, n=1, cutoff=_ALIKE):
            yield f"{variable} is no setting; did you mean {_PREFIX}{meant.upper()}?"
