"""Control of a running runner by its operator: start and end a drain."""

from __future__ import annotations

import ssl
from typing import Final

import httpx
from pydantic import ValidationError

from service.sandbox.base import SandboxError
from service.sandbox.runner import protocol
from service.sandbox.runner.protocol import Address
from service.sandbox.runner.settings import RunnerSettings

_TIMEOUT_S: Final = 5.0
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (not used to bind)


def set_draining(settings: RunnerSettings, *, on: bool) -> protocol.LoadReport:
    """Start or end the drain of the runner with these settings, and return its load.

    Raises:
        SandboxError: it does not answer, or rejects the request.
        ValueError: a TLS file is unusable.
    """
    address = Address.parse(settings.bind)
    host = _ANY_ADDRESS.get(address.host, address.host)
    authority = Address(path=address.path, host=host, port=address.port).authority
    if address.path is not None and not address.path.is_socket():
        raise SandboxError(f"no runner answers at {settings.bind}: there is no socket")
    context = _own_context(settings)
    path = None if address.path is None else str(address.path)
    url = f"{'http' if context is None else 'https'}://{authority}{protocol.DRAIN_PATH}"
    headers = {"Authorization": f"Bearer {settings.token.get_secret_value()}"}
    try:
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=path, verify=context or False), timeout=_TIMEOUT_S
        ) as http:
            answer = http.request("POST" if on else "DELETE", url, headers=headers)
        if answer.status_code == 401:
            raise SandboxError(f"the runner at {settings.bind} has a different token")
        return protocol.LoadReport.model_validate_json(answer.content)
    except httpx.RemoteProtocolError:
        hint = "pass its certificate and key if it uses TLS" if context is None else "is it a runner?"
        raise SandboxError(f"the runner at {settings.bind} closed the connection; {hint}") from None
    except httpx.HTTPError as error:
        raise SandboxError(f"the runner at {settings.bind} does not answer: {error}") from None
    except ValidationError:
        raise SandboxError(f"{settings.bind} is not a runner: status {answer.status_code}") from None


def _own_context(settings: RunnerSettings) -> ssl.SSLContext | None:
    """Return a context that trusts the runner's own certificate only, under any host name."""
    if settings.tls_context() is None or settings.tls_certificate is None:  # validates the files
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(settings.tls_certificate)
    if settings.tls_client_ca is not None:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    return context
