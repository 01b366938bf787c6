"""The runner's settings and its token."""

from __future__ import annotations

import hashlib
import hmac
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from service.sandbox.runner.protocol import Address
from service.sandbox.runner.tls import server_context

TOKEN_ENV = "IHGRPO_RUNNER_TOKEN"  # noqa: S105  (the name of the variable)
MIN_TOKEN_CHARS = 16


class TokenError(ValueError):
    """The runner's token is missing, unreadable or too short to be a secret."""


def _known_address(text: str) -> str:
    Address.parse(text)
    return text


class RunnerSettings(BaseModel):
    """Settings of the runner. The token has no default: the runner does not start without one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: SecretStr = Field(min_length=MIN_TOKEN_CHARS)
    """Secret that clients send as ``Authorization: Bearer``. See ``read_token``."""
    bind: Annotated[str, AfterValidator(_known_address)] = "unix:/run/ih-grpo/runner.sock"
    """``unix:/path/to.sock`` or ``host:port``."""
    socket_mode: int = Field(default=0o600, ge=0, le=0o777)
    """Permissions of the Unix socket."""
    max_run_limit_s: float = Field(default=60.0, gt=0)
    """Ceiling of a session's ``run_limit_s``, in seconds; higher values are clipped."""
    max_tool_wait_s: float = Field(default=300.0, gt=0)
    """Ceiling of a session's ``tool_wait_s``, in seconds; higher values are clipped."""
    max_sessions: int = Field(default=32, ge=1)
    """Sessions that hold a container at the same time."""
    max_waiting: int = Field(default=128, ge=0)
    """Sessions that may wait for a container; further ones fail with ``queue_timeout`` immediately."""
    queue_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds that a session waits for a container before it fails with ``queue_timeout``."""
    max_connections: int = Field(default=512, ge=1)
    """Open connections, including those without a container; further ones are rejected with 503."""
    lease_s: float = Field(default=3600.0, gt=0)
    """Longest duration of a session, in seconds."""
    ping_interval_s: float = Field(default=10.0, gt=0)
    """Seconds between pings; a client that does not answer one within this time is disconnected."""
    drain_s: float = Field(default=30.0, ge=0)
    """Seconds that open sessions may continue after SIGTERM before they are closed."""
    tls_certificate: Path | None = None
    """Certificate of the runner in PEM format, for a TCP address. None: no TLS."""
    tls_key: Path | None = None
    """Private key of the certificate."""
    tls_client_ca: Path | None = None
    """Certificate authorities; clients must present a certificate of one of them. None: any client with the
    token."""

    @model_validator(mode="after")
    def _tls_fits(self) -> Self:
        address = Address.parse(self.bind)
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("TLS needs both a certificate and its key")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError(
                "certificates of clients can be required only with a certificate and a key of the runner"
            )
        if self.tls_certificate is not None and (address.path is not None or address.scheme == "ws"):
            raise ValueError(f"TLS is not possible at {self.bind}: bind to host:port")
        if self.tls_certificate is None and address.scheme == "wss":
            raise ValueError(f"{self.bind} needs a TLS certificate and its key")
        return self

    def tls_context(self) -> ssl.SSLContext | None:
        """Return the TLS context; None without TLS.

        Raises:
            ValueError: a file can't be read, or the key does not belong to the certificate.
        """
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return server_context(self.tls_certificate, self.tls_key, self.tls_client_ca)

    def admits(self, authorization: str | None) -> bool:
        """Return whether an ``Authorization`` header holds the token. Compares in constant time."""
        expected = f"Bearer {self.token.get_secret_value()}"
        return hmac.compare_digest(_digest(authorization or ""), _digest(expected))


def _digest(text: str) -> bytes:
    # Digests have equal lengths, so the time of the comparison does not reveal the token's length.
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def read_token(file: Path | None = None, env: Mapping[str, str] | None = None) -> SecretStr:
    """Return the runner's token: the content of ``file`` if given, else ``IHGRPO_RUNNER_TOKEN``.

    Raises:
        TokenError: it is missing, unreadable or too short to be a secret.
    """
    environment = os.environ if env is None else env
    source = str(file) if file is not None else TOKEN_ENV
    try:
        text = file.read_text("utf-8") if file is not None else environment.get(TOKEN_ENV, "")
    except OSError as error:
        raise TokenError(f"the runner's token file can't be read: {error}") from error
    token = text.strip()
    if len(token) < MIN_TOKEN_CHARS or not token.isascii() or not token.isprintable() or " " in token:
        raise TokenError(
            f"no usable token in {source}: the runner needs at least {MIN_TOKEN_CHARS} printable ASCII "
            "characters. Make one with: openssl rand -hex 32"
        )
    return SecretStr(token)
