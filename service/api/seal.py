"""Seal thoughts that clients keep, so that only this server can read or create them."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_VERSION: Final = "ihg2"
_KEY: Final = re.compile(r"([A-Za-z0-9_-]{1,32}):([A-Za-z0-9+/_-]{43}=?)")
_NONCE_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class SealKey:
    """A 256-bit key. Sealed text contains the key's ``id``, so keys can be rotated."""

    id: str
    secret: bytes = field(repr=False)


def parse_seal_key(text: str) -> SealKey:
    """Parse a key of the form ``ID:BASE64``.

    Raises:
        ValueError: ``text`` is malformed. The message doesn't show the key.
    """
    if (found := _KEY.fullmatch(text.strip())) is None:
        raise ValueError(
            "a seal key must be ID:BASE64 of 32 bytes, for example from `openssl rand -base64 32`"
        )
    return SealKey(found[1], base64.urlsafe_b64decode(found[2].rstrip("=").translate(_URL_SAFE) + "="))


_URL_SAFE: Final = str.maketrans("+/", "-_")


class Seal:
    """Seal text with the first of ``keys``, and open text sealed with any of them (AES-256-GCM).

    Without keys a random one is created, and sealed text can be opened until this process ends.
    """

    def __init__(self, keys: Sequence[SealKey] = ()) -> None:
        self._keys = {key.id: AESGCM(key.secret) for key in keys}
        if not keys:
            self._keys = {f"tmp-{secrets.token_hex(6)}": AESGCM(secrets.token_bytes(32))}
        self._first = next(iter(self._keys))

    def close(self, text: str, *, owner: str, model: str) -> str:
        """Seal a thought of ``model`` for ``owner``. The result is printable and about a third longer."""
        head, nonce = f"{_VERSION}.{self._first}", secrets.token_bytes(_NONCE_BYTES)
        sealed = self._keys[self._first].encrypt(nonce, text.encode(), _bound(head, owner, model))
        return f"{head}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def open(self, sealed: str, *, owner: str, model: str) -> str | None:
        """Return the text; None if it was changed, or sealed by another server, or for another owner or
        model."""
        version, _, rest = sealed.partition(".")
        key_id, _, body = rest.partition(".")
        if version != _VERSION or (key := self._keys.get(key_id)) is None:
            return None
        try:
            raw = base64.b64decode(body, altchars=b"-_", validate=True)
            return key.decrypt(
                raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _bound(f"{version}.{key_id}", owner, model)
            ).decode()
        except (binascii.Error, InvalidTag, ValueError):
            return None


def _bound(head: str, owner: str, model: str) -> bytes:
    return "\0".join((head, owner, model)).encode()
