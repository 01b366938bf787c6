"""Database tables and column types."""

from __future__ import annotations

import json
import zlib
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator

from service.common.json import dumps

metadata: Final = MetaData()


class AsciiJson(TypeDecorator[Any]):
    """JSON as ASCII text. NULs and lone surrogates in outputs are escaped, so every database accepts them."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:  # noqa: ARG002
        return dumps(value).decode("ascii")

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        return None if value is None else json.loads(value)


class CompressedJson(TypeDecorator[Any]):
    """Compressed JSON. Events of a stream are repetitive and shrink to a tenth of their size."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes:  # noqa: ARG002
        return zlib.compress(dumps(value))

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> Any:  # noqa: ARG002
        return None if value is None else json.loads(zlib.decompress(value))


responses: Final = Table(
    "responses",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("created_at", Double, nullable=False, index=True),
    Column("expires_at", Double, nullable=False, index=True),
    Column("status", String(16), nullable=False, index=True),
    Column("background", Boolean, nullable=False),
    Column("previous_id", String(80)),
    Column("body", AsciiJson, nullable=False),
    Column("input", AsciiJson, nullable=False),
    Column("text", AsciiJson, nullable=False),
    Column("ids", CompressedJson),
    Column("bytes", BigInteger, nullable=False),
    # The process that runs the response and its last heartbeat, to detect runs of killed processes.
    Column("runner", String(200)),
    Column("seen_at", Double),
)

events: Final = Table(
    "response_events",
    metadata,
    Column("response_id", ForeignKey("responses.id", ondelete="CASCADE"), primary_key=True),
    Column("first", Integer, primary_key=True),
    Column("last", Integer, nullable=False),
    Column("events", CompressedJson, nullable=False),
)

# Replies of chat completions in which code ran, to recognise them in later conversations.
replies: Final = Table(
    "chat_replies",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("ids", CompressedJson, nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
    Column("bytes", BigInteger, nullable=False),
)

files: Final = Table(
    "files",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("filename", AsciiJson, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, index=True),
    Column("listed", Boolean, nullable=False),
)

containers: Final = Table(
    "containers",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("name", AsciiJson, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("last_active_at", Double, nullable=False),
    Column("idle_minutes", Double, nullable=False),
    Column("memory_mb", Integer, nullable=False),
    Column("status", String(16), nullable=False, index=True),
    # The process that holds the container; it is lost with the process.
    Column("holder", String(200), nullable=False),
    Column("last_response_id", String(80)),
    Column("inputs", AsciiJson, nullable=False),
)

container_files: Final = Table(
    "container_files",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("container_id", ForeignKey("containers.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("path", AsciiJson, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("source", String(16), nullable=False),
    # Name of the content. A file that the client put into the container shares the content of its upload.
    Column("blob", String(64), nullable=False),
    Column("current", Boolean, nullable=False),
)

# Use of the service per owner, hour (Unix time of its start) and model.
usage_hours: Final = Table(
    "usage_hours",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False, index=True),
    Column("model", String(200), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("sandbox_seconds", Double, nullable=False),
)
