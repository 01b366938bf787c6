from __future__ import annotations

import pytest
from starlette.exceptions import HTTPException

from service.api.errors import ApiError, as_api_error
from service.engines.base import ContextLengthExceededError, EngineError
from service.sandbox.base import QueueTimeoutError, SandboxError


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ApiError(400, "m"), 400, "invalid_request_error"),
        (HTTPException(404), 404, "invalid_request_error"),
        (ContextLengthExceededError("m"), 400, "invalid_request_error"),
        (QueueTimeoutError("m"), 429, "rate_limit_error"),
        (SandboxError("m"), 503, "server_error"),
        (EngineError("m"), 500, "server_error"),
        (KeyError("m"), 500, "server_error"),
    ],
)
def test_errors_have_their_status_and_type(error: Exception, status: int, kind: str) -> None:
    api_error = as_api_error(error)
    assert api_error.status == status
    body = api_error.body()["error"]
    assert isinstance(body, dict)
    assert set(body) == {"message", "type", "param", "code"}
    assert body["type"] == kind


def test_unexpected_error_omits_its_cause() -> None:
    assert "secret" not in as_api_error(RuntimeError("secret")).message


def test_headers() -> None:
    assert as_api_error(QueueTimeoutError("m")).headers() == {"Retry-After": "5"}
    assert ApiError(429, "m", retry_after_s=0.2).headers() == {"Retry-After": "1"}
    assert ApiError(401, "m").headers() == {"WWW-Authenticate": "Bearer"}
