"""Settings of the server: options of ``ih-grpo serve``, else ``IHGRPO_*`` variables in the environment.

`unknown_env_vars` warns about variables that look like misspelt settings and would be ignored.
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

from service.api.audit import AuditLog
from service.api.auth import ApiKey, KeyQuota, parse_keys
from service.api.chat.suspension import SuspensionLimits
from service.api.files.containers import ContainerLimits
from service.api.seal import SealKey, parse_seal_key
from service.api.state import ApiSettings
from service.engines.checkpoint import is_gguf, quickstart
from service.engines.factory import EngineKind, engine_kind
from service.engines.settings import (
    EngineSettings,
    GGUFSettings,
    RemoteSettings,
    TransformersSettings,
    VLLMSettings,
)
from service.sandbox.factory import RunnerTlsFiles, SandboxKind
from service.sandbox.runner.settings import TOKEN_ENV
from service.store.database import default_files_url, default_url
from service.tools.mcp.connection import McpServer
from service.tools.mcp.egress import EgressPolicy
from service.tools.mcp.hub import McpHub, read_servers


class Settings(BaseSettings):
    """Settings of one server. Each field is ``IHGRPO_<NAME>`` in the environment."""

    model_config = SettingsConfigDict(
        env_prefix="IHGRPO_", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address to listen on. Addresses other than loopback require API keys and a sandbox runner."""
    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port; 0 picks a free one."""

    model: str = Field(default_factory=lambda: str(quickstart()))
    """Directory of a checkpoint, a Hugging Face id, or a GGUF file. A PEFT adapter is merged into its base
    model."""
    base: str | None = None
    """Base model if ``model`` is an adapter: a directory or a Hugging Face id. Default: the base that the
    adapter names."""
    served_model_name: str | None = None
    """Model name in the API. Default: the checkpoint's own name."""
    engine: Literal["auto", "transformers", "gguf", "vllm", "remote"] = "auto"
    """Inference engine. ``transformers``: embedded, for small models. ``gguf``: llama.cpp in this process,
    for a GGUF file. ``vllm``: vLLM in this process. ``remote``: vLLM servers. ``auto``: gguf if ``model`` is
    a GGUF file, remote if ``engine_url`` is set, vLLM if it is installed and there is a GPU, else
    embedded."""
    engine_url: Annotated[tuple[str, ...], NoDecode] = ()
    """Comma-separated vLLM servers to sample on, such as ``http://gpu-1:8000,http://gpu-2:8000``. Only the
    tokenizer and configuration of ``model`` are read in this case."""
    engine_api_key: SecretStr | None = None
    """API key of these servers."""
    engine_logprobs_mode: Literal["raw_logprobs", "processed_logprobs"] = "raw_logprobs"
    """``--logprobs-mode`` of these servers. Requests for logprobs that this mode can't provide are
    rejected."""
    lora: Annotated[dict[str, Path], NoDecode] = Field(default_factory=dict)
    """LoRA adapters to serve as additional models: comma-separated ``name=directory``."""
    vllm_args: dict[str, Any] = Field(default_factory=dict)
    """vLLM's engine arguments, as JSON: ``{"tensor_parallel_size": 2}``. On the command line, repeat
    ``--vllm-arg tensor_parallel_size=2``."""
    device: str = "auto"
    """Device of the model: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of weights and KV cache. ``auto``: on a GPU the checkpoint's own; on a CPU bfloat16 if it is
    faster (AVX512-BF16 or AMX, and at least 20 million parameters), else float32."""
    max_slots: int = Field(default=16, ge=1)
    """Maximum batch size of the embedded engine and of the GGUF engine, in sequences."""
    max_context: int | None = Field(default=None, ge=16)
    """Maximum length of a sequence in tokens. Default: the checkpoint's limit."""
    gguf_cache_tokens: int | None = Field(default=None, ge=16)
    """Size of the GGUF engine's KV cache, which all sequences share, in tokens. It also limits the length of
    a sequence. Default: 65,536, or ``max_context`` if that is more, within a quarter of the available
    memory."""

    sandbox: Literal["auto", "runner", "in-process", "process"] = "auto"
    """Sandbox for code. ``runner``: a separate runner service, the only process with the Docker socket.
    ``in-process``: this process holds the socket, so a compromised API means a compromised machine; loopback
    addresses only. ``process``: bubblewrap instead of containers, intended for training; see
    ``accept_weaker_isolation``. ``auto``: the runner if its address or token is set or the host is not
    loopback, else in-process."""
    accept_weaker_isolation: bool = False
    """Allow sandbox ``process`` on a loopback address. Code can see this machine's programs, and its
    processes have no combined limits on memory, CPU time and number of files."""
    runner_url: Annotated[tuple[str, ...], NoDecode] = ("unix:/run/ih-grpo/runner.sock",)
    """Comma-separated addresses of runners: ``unix:/path/to.sock``, ``host:port`` or ``wss://host:port``
    (TLS). Each episode goes to the least loaded one that answers."""
    runner_token_file: Path | None = None
    """File with the secret shared with the runners. Default: the secret itself in ``IHGRPO_RUNNER_TOKEN``."""
    runner_ca_file: Path | None = None
    """Certificate authorities of the runners, in PEM format. If set, all their TCP addresses use TLS."""
    runner_cert_file: Path | None = None
    """This server's certificate, if the runners require one."""
    runner_key_file: Path | None = None
    """Private key of this certificate. Default: in the same file."""
    sandbox_image: str = "ih-grpo-sandbox:latest"
    """Container image, for ``in-process``."""
    warm_containers: int = Field(default=4, ge=0)
    """Idle containers to keep ready, for ``in-process``; about 100 MB of memory each. Up to twice as many
    while episodes begin faster than containers start."""
    max_containers: int = Field(default=32, ge=1)
    """Maximum number of containers, for ``in-process``."""

    container_idle_minutes: float = Field(default=20.0, ge=0, le=60)
    """Minutes without a request after which a container of the Containers API, of the Responses API or of
    ``deferral.container`` expires. 0 gives each reply its own container, without files."""
    containers_per_key: int = Field(default=8, ge=1)
    """Maximum number of these containers per key. Beyond, the least recently used one ends."""
    parked_memory_mb: int = Field(default=4096, ge=0)
    """Memory limits of all containers that wait for their next request, together, in MiB. Beyond, the least
    recently used one ends. Each also counts as one of ``max_containers``, or of the runner's sessions."""
    container_memory_mb: int = Field(default=1024, ge=192)
    """Maximum memory of a container that a client may request, in MiB."""
    container_wait_s: float = Field(default=10.0, ge=0)
    """Seconds that a request waits for a container that another one uses. After it the request gets 409."""
    container_files_days: float = Field(default=1.0, ge=0)
    """Days that the files of an expired container can be downloaded."""

    max_turns: int | None = Field(default=None, ge=1)
    """Maximum number of turns that a client may request. Default: the checkpoint's value."""
    run_limit_s: float | None = Field(default=None, gt=0, le=600)
    """Maximum run time of a flush in seconds. Default: the checkpoint's value."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Maximum output of a flush, in tokens, that a client may request. Default: the checkpoint's value."""
    max_n: int = Field(default=16, ge=1)
    """Maximum number of choices (``n``) per request."""
    max_concurrent_episodes: int = Field(default=32, ge=1)
    """Maximum number of concurrent episodes; each choice of a request is one. If this exceeds the number of
    containers, episodes wait for a container."""
    max_queued_episodes: int = Field(default=128, ge=0)
    """Maximum number of queued episodes. Further requests get 429."""
    queue_timeout_s: float = Field(default=30.0, gt=0)
    """Maximum time in this queue, in seconds. After it the request gets 429."""
    strict_requests: bool = False
    """Reject requests with unknown fields or fields without effect, instead of ignoring these fields."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Comma-separated origins whose web pages may use the API, such as ``http://localhost:3000``."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Comma-separated additional ``Host`` names for a loopback server without keys. Other names get 403."""
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024)
    """Maximum size of a request body in bytes. Larger ones get 413."""
    keep_alive_s: float = Field(default=5.0, gt=0)
    """Seconds without data after which a stream gets an SSE comment, so that proxies keep it open."""
    drain_s: int = Field(default=30, ge=0)
    """Seconds that requests in flight get to finish after SIGTERM."""

    store_url: str = Field(default_factory=default_url)
    """Database of stored responses: ``sqlite:///PATH`` or ``postgresql://USER:PASSWORD@HOST/NAME``, which
    several servers can share. Default: SQLite in the user's state directory."""
    store_days: float = Field(default=30.0, gt=0)
    """Days that a response is kept."""
    store_max_bytes: int = Field(default=2**30, ge=2**20)
    """Approximate size limit of the store in bytes. Above it the oldest responses are removed first."""
    files_url: str | None = None
    """Store of uploaded files and of files that code wrote: the path of a directory, or an fsspec URL such as
    ``s3://bucket/prefix`` (extra ``s3``), which several servers can share. Default: the directory ``files``
    beside the SQLite database, or in the user's state directory."""
    max_file_bytes: int = Field(default=512 * 2**20, ge=1024)
    """Maximum size of an uploaded file in bytes. Larger ones get 413."""
    key_files_bytes: int = Field(default=4 * 2**30, ge=1024)
    """Maximum size of all files of one key in bytes, including files that its code wrote."""
    files_days: float | None = Field(default=None, gt=0)
    """Days that an uploaded file is kept. Default: until the client deletes it, or until its own expiry."""

    seal_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Comma-separated keys that encrypt the reasoning that clients of the Responses API keep
    (``encrypted_content``), as ``ID:BASE64`` of 32 bytes. The first key encrypts, all keys decrypt. Default:
    a random key, so encrypted content can't be read after a restart."""
    max_background_responses: int = Field(default=128, ge=0)
    """Maximum number of running and queued background responses. Further requests get 429."""

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Comma-separated API keys of clients: ``sha256:HEX``, or a key itself. Without keys, anyone on this
    machine can use the server; loopback only."""
    api_keys_file: Path | None = None
    """File with one key per line, ``sha256:HEX [name=ci] [rpm=60] [concurrency=4] [scope=admin]`` and quotas
    such as ``tokens_per_day=100000``, in addition to ``api_keys``. Create lines with
    ``ih-grpo keys create``."""
    key_requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests per minute for each key without its own ``rpm``. Default: unlimited."""
    key_concurrency: int | None = Field(default=None, ge=1)
    """Concurrent requests for each key without its own ``concurrency``. Default: unlimited."""
    key_tokens_per_day: int | None = Field(default=None, ge=0)
    """Tokens of prompts and replies in a day (UTC) for each key without its own ``tokens_per_day``. Default:
    unlimited."""
    key_tokens_per_month: int | None = Field(default=None, ge=0)
    """The same in a month (``tokens_per_month``)."""
    key_sandbox_seconds: float | None = Field(default=None, gt=0)
    """Seconds that code may run in a day (UTC) for each key without its own ``sandbox_seconds_per_day``.
    Default: unlimited."""
    key_sandbox_seconds_per_month: float | None = Field(default=None, gt=0)
    """The same in a month (``sandbox_seconds_per_month``)."""
    key_stored_bytes: int | None = Field(default=None, ge=0)
    """Bytes of files, responses and replies that are stored at any time for each key without its own
    ``stored_bytes``. Default: unlimited; see also ``key_files_bytes``."""
    usage_days: float = Field(default=400.0, ge=1)
    """Days that the counts of requests, tokens and seconds per key and hour are kept (``GET /v1/usage``)."""
    allow_anonymous: bool = False
    """Serve without keys on addresses other than loopback: anyone who reaches the port can use the model and
    run code."""

    mcp_servers_file: Path | None = None
    """JSON file with MCP servers of the operator, ``{"mcpServers": {LABEL: {"url": ...}}}``, whose tools code
    can call. Requests name them by label; see the guide on deferred tools."""
    mcp_allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Comma-separated hosts of MCP servers that requests may name by URL, such as ``mcp.example.com`` or
    ``*.example.com:8443``; ``*`` for any. Only HTTPS and public addresses. Default: none."""
    mcp_private_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts in the same form that may have private addresses and may be reached over plain HTTP."""
    tool_call_timeout_s: float = Field(default=30.0, gt=0, le=600)
    """Maximum time of one call of a tool by code, in seconds."""
    tool_wait_s: float = Field(default=60.0, gt=0, le=600)
    """Maximum time that one flush may wait for tools, in seconds, beside its run time."""
    approval_timeout_s: float = Field(default=300.0, gt=0, le=3000)
    """Seconds after which a call of a tool is denied if it has not been approved."""
    client_call_timeout_s: float = Field(default=300.0, gt=0, le=3000)
    """Seconds that code waits for the output of a function of the client. Its container is kept meanwhile."""
    suspended_per_key: int = Field(default=4, ge=1)
    """Maximum number of replies of one API key whose code waits for the client. Beyond, the oldest ends."""
    max_suspended: int = Field(default=16, ge=1)
    """Maximum number of replies whose code waits for the client. Each holds a container, which counts as one
    of ``max_containers``, or of the runner's sessions."""

    reload_root: Path | None = None
    """Directory that ``POST /admin/reload`` may load checkpoints from; unset disables reloading. Requires an
    admin API key (``ih-grpo keys create --admin``)."""

    audit_dir: Path | None = None
    """Directory of the audit log: one JSON object per line, in a file per day, about creations, deletions and
    rejected requests, without contents. Default: no audit log."""
    audit_days: float = Field(default=365.0, gt=0)
    """Days that a file of the audit log is kept."""

    otel_endpoint: str | None = None
    """OTLP/HTTP collector for traces, such as ``http://localhost:4318/v1/traces``; unset disables tracing.
    Requires the extra ``otel``. Spans never contain prompts, replies or code."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Log level. Prompts and replies are never logged."""
    log_format: Literal["console", "json"] = "console"
    """Log format: human-readable lines, or JSON for a log collector."""

    @field_validator(
        *("api_keys", "engine_url", "runner_url", "cors_origins", "allowed_hosts", "seal_keys"),
        *("mcp_allowed_hosts", "mcp_private_hosts"),
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @field_validator("runner_ca_file", "runner_cert_file", "runner_key_file", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

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
    def _engine_fits_gguf(self) -> Self:
        if not is_gguf(self.model):
            if self.engine == "gguf":
                raise ValueError("engine 'gguf' serves a GGUF file: set model to a file that ends in .gguf")
            return self
        if self.engine not in ("auto", "gguf") or self.engine_url or self.vllm_args:
            raise ValueError(
                "model is a GGUF file, which only engine 'gguf' serves: remove engine, engine_url and "
                "vllm_args"
            )
        if self.lora or self.base is not None:
            raise ValueError(
                "adapters can't be combined with a GGUF file: merge the adapter with "
                "`ih-grpo merge ADAPTER --gguf FILE` and serve the new file"
            )
        if self.dtype != "auto":
            raise ValueError("dtype has no effect on a GGUF file, which has its own data types: remove it")
        if self.device not in ("auto", "cpu"):
            raise ValueError(
                "device must be auto or cpu for a GGUF file: to select a GPU set CUDA_VISIBLE_DEVICES"
            )
        return self

    @model_validator(mode="after")
    def _engine_fits(self) -> Self:
        if self.engine == "remote" and not self.engine_url:
            raise ValueError("engine 'remote' needs a vLLM server: set engine_url")
        if self.engine in ("transformers", "vllm") and self.engine_url:
            raise ValueError(f"engine_url is for engine 'remote', not {self.engine!r}: remove one of them")
        if self.vllm_args and (self.engine in ("transformers", "remote") or self.engine_url):
            raise ValueError("vllm_args requires engine 'vllm'")
        if self.lora and (self.engine == "remote" or self.engine_url):
            raise ValueError("lora is not supported with vLLM servers: configure the adapters there")
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
                "sandbox 'process' isolates less than containers and is intended for training: use sandbox "
                "'runner', or set accept_weaker_isolation and serve a loopback address only"
            )
        if not local and not keys and not self.allow_anonymous:
            raise ValueError(
                f"host {self.host!r} is reachable from other machines and there is no API key: set api_keys "
                "or api_keys_file, or allow_anonymous to serve without keys"
            )
        if self.reload_root is not None and not any(key.is_admin for key in keys):
            raise ValueError(
                "reload_root requires an admin API key: create one with "
                "`ih-grpo keys create --admin` and add its line to api_keys_file"
            )
        return self

    @property
    def is_open_locally(self) -> bool:
        """Whether the server needs no API key because only this machine can reach it."""
        return is_loopback(self.host) and not self.keys()

    @property
    def sandbox_kind(self) -> SandboxKind:
        """The configured sandbox, with ``auto`` resolved."""
        if self.sandbox != "auto":
            return self.sandbox
        configured = {"runner_url", "runner_token_file"} & self.model_fields_set or os.environ.get(TOKEN_ENV)
        return "runner" if configured or not is_loopback(self.host) else "in-process"

    def runner_tls(self) -> RunnerTlsFiles:
        """TLS files of the client of the runners."""
        return RunnerTlsFiles(self.runner_ca_file, self.runner_cert_file, self.runner_key_file)

    @property
    def engine_kind(self) -> EngineKind:
        """The configured engine, with ``auto`` resolved for this machine."""
        return engine_kind(
            self.engine,
            model=self.model,
            urls=self.engine_url,
            vllm_args=self.vllm_args,
            device=self.device,
        )

    def engine_settings(self, model_dir: Path) -> EngineSettings:
        """Settings of the engine that serves the checkpoint in ``model_dir``."""
        # A hub id is its own model name; a directory is named by its last part.
        path = Path(self.model)
        own_name = (path.stem if is_gguf(path) else path.name) if path.exists() else self.model
        common: dict[str, Any] = {
            "model": str(model_dir),
            "model_name": self.served_model_name or own_name,
            "max_context": self.max_context,
        }
        match self.engine_kind:
            case "transformers":
                return TransformersSettings(
                    **common,
                    device=self.device,
                    dtype=self.dtype,
                    adapters=self.lora,
                    max_slots=self.max_slots,
                )
            case "gguf":
                return GGUFSettings(
                    **common,
                    device="cpu" if self.device == "cpu" else "auto",
                    max_slots=self.max_slots,
                    cache_tokens=self.gguf_cache_tokens,
                )
            case "vllm":
                return VLLMSettings(**common, dtype=self.dtype, adapters=self.lora, args=self.vllm_args)
            case "remote":
                return RemoteSettings(
                    **common,
                    urls=self.engine_url,
                    api_key=self.engine_api_key,
                    logprobs_mode=self.engine_logprobs_mode,
                )

    def api_settings(self) -> ApiSettings:
        """Settings that the routes of the API read."""
        return ApiSettings(
            max_n=self.max_n,
            max_turns=self.max_turns,
            run_limit_s=self.run_limit_s,
            max_output_tokens=self.max_output_tokens,
            max_concurrent_episodes=self.max_concurrent_episodes,
            keep_alive_s=self.keep_alive_s,
            reload_root=self.reload_root,
            tool_wait_s=self.tool_wait_s,
        )

    def suspension_limits(self) -> SuspensionLimits:
        """Limits on replies whose code waits for the client."""
        return SuspensionLimits(
            seconds=self.client_call_timeout_s,
            per_key=self.suspended_per_key,
            total=self.max_suspended,
            memory_mb=self.parked_memory_mb,
        )

    def mcp_hub(self) -> McpHub:
        """The MCP servers of the operator, and the rules for those that requests name.

        Raises:
            ValueError: the file with servers can't be read or is invalid.
        """
        servers: list[McpServer] = []
        always: list[str] = []
        if self.mcp_servers_file is not None:
            try:
                servers, always = read_servers(self.mcp_servers_file)
            except ValueError as error:
                raise ValueError(f"mcp_servers_file {error}") from None
        return McpHub(
            servers,
            always=always,
            policy=EgressPolicy(self.mcp_allowed_hosts, self.mcp_private_hosts),
            call_timeout_s=self.tool_call_timeout_s,
            approval_timeout_s=self.approval_timeout_s,
        )

    @property
    def files_location(self) -> str:
        """The configured store of files, with the default resolved."""
        return self.files_url or default_files_url(self.store_url)

    def container_limits(self) -> ContainerLimits:
        """Limits on containers that live across requests."""
        return ContainerLimits(
            idle_minutes=self.container_idle_minutes,
            per_key=self.containers_per_key,
            parked_memory_mb=self.parked_memory_mb,
            wait_s=self.container_wait_s,
            max_memory_mb=self.container_memory_mb,
        )

    def audit_log(self) -> AuditLog | None:
        """The audit log, if there is one.

        Raises:
            ValueError: its directory can't be used.
        """
        if self.audit_dir is None:
            return None
        try:
            return AuditLog(self.audit_dir, days=self.audit_days)
        except OSError as error:
            raise ValueError(f"audit_dir can't be used: {error}") from None

    def key_quota(self) -> KeyQuota:
        """Quota of keys without their own."""
        return KeyQuota(
            tokens_per_day=self.key_tokens_per_day,
            tokens_per_month=self.key_tokens_per_month,
            sandbox_seconds_per_day=self.key_sandbox_seconds,
            sandbox_seconds_per_month=self.key_sandbox_seconds_per_month,
            stored_bytes=self.key_stored_bytes,
        )

    def seals(self) -> tuple[SealKey, ...]:
        """All seal keys; the first one encrypts."""
        return tuple(parse_seal_key(key.get_secret_value()) for key in self.seal_keys)

    def keys(self) -> tuple[ApiKey, ...]:
        """All API keys.

        Raises:
            ValueError: the key file can't be read or is empty, or a key is malformed.
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
            raise ValueError(f"api_keys_file {self.api_keys_file} has no key")
        return keys + in_file


def _pairs(parts: list[str]) -> dict[str, str]:
    """Parse ``name=value`` items.

    Raises:
        ValueError: an item has another form, or a name is repeated.
    """
    named: dict[str, str] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{part!r} is not of the form name=value")
        if name in named:
            raise ValueError(f"{name!r} is repeated")
        named[name] = value
    return named


def _number_or_text(value: str) -> object:
    """Parse ``value`` as JSON; return it unchanged if it is not JSON."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


_PREFIX: Final = "IHGRPO_"
_OTHERS: Final = frozenset(
    {
        *("api_key", "runner_token", "runner_warm_containers", "runner_queue_timeout_s"),
        *("runner_tls_cert_file", "runner_tls_key_file", "runner_tls_client_ca_file"),
    }
)
"""Variables of ``ih-grpo chat`` and the runner, which resemble settings."""
_ALIKE: Final = 0.75


def unknown_env_vars(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for each variable that is probably a misspelt setting."""
    for variable in sorted(environment):
        name = variable.removeprefix(_PREFIX).lower()
        if not variable.startswith(_PREFIX) or name in Settings.model_fields or name in _OTHERS:
            continue
        for meant in get_close_matches(name, Settings.model_fields, n=1, cutoff=_ALIKE):
            yield f"Unknown setting {variable}. Did you mean {_PREFIX}{meant.upper()}?"
