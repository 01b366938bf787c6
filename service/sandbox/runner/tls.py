"""TLS between the runner and its clients, configured by certificate files in PEM format."""

from __future__ import annotations

import ssl
from pathlib import Path


def server_context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """Return the runner's context.

    Args:
        certificate: the runner's certificate, followed by intermediate certificates.
        key: its private key, without a passphrase.
        client_ca: authorities whose certificates clients must present; None to require none.

    Raises:
        ValueError: a file can't be read, or the key does not belong to the certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_pair(context, certificate, key)
    if client_ca is not None:
        _load_authorities(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Return a client's context. It verifies the runner's certificate and host name.

    Args:
        ca: authorities to trust; None for the system's.
        certificate: the client's own certificate, if the runner requires one.
        key: its private key; None if it is in the same file.

    Raises:
        ValueError: a file can't be read, or the key does not belong to the certificate.
    """
    context = ssl.create_default_context() if ca is None else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is not None:
        _load_authorities(context, ca)
    if certificate is not None:
        _load_pair(context, certificate, key)
    return context


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    for file in (certificate, key):
        if file is not None:
            _require_readable(file)
    try:
        # The password function is called for encrypted keys only. The default one would ask on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        raise ValueError(
            f"{certificate} and {key or certificate} are not a TLS certificate and its unencrypted private "
            f"key: {error}"
        ) from None


def _load_authorities(context: ssl.SSLContext, file: Path) -> None:
    _require_readable(file)
    try:
        context.load_verify_locations(file)
    except (ssl.SSLError, OSError) as error:
        raise ValueError(f"{file} holds no TLS certificate authority: {error}") from None


def _require_readable(file: Path) -> None:
    try:
        file.read_bytes()
    except OSError as error:
        raise ValueError(f"the TLS file {file} can't be read: {error.strerror}") from None
