"""Every error as OpenAI's error object: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.api.wire import JsonResponse
from service.engines.base import ContextLengthExceededError, EngineError, RefusedError
from service.sandbox.base import QueueTimeoutError, SandboxError

_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_CODES = {401: "invalid_api_key", 413: "request_too_large", 429: "rate_limit_exceeded"}


class ApiError(Exception):
    """An error that the client is told of as it is.

    Args:
        status: HTTP status.
        message: what is wrong and what to do about it.
        param: the request field at fault.
        code: OpenAI's machine-readable reason.
        retry_after_s: seconds after which another try makes sense.
        details: more fields of the error object.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code if code is not None else _CODES.get(status)
        self.retry_after_s = retry_after_s
        self.details = dict(details or {})

    def body(self) -> dict[str, object]:
        return {
            "error": {
                "message": self.message,
                "type": _error_type(self.status),
                "param": self.param,
                "code": self.code,
                **self.details,
            }
        }

    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after_s is None else {"Retry-After": str(math.ceil(self.retry_after_s))}
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return JsonResponse(self.body(), self.status, {**(headers or {}), **self.headers()})


def as_api_error(error: Exception) -> ApiError:
    """What the client may know of ``error``. An error that nobody foresaw says nothing of its cause."""
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            return _from_validation(error)
        case HTTPException():
            return ApiError(error.status_code, str(error.detail))
        case ContextLengthExceededError():
            return ApiError(400, str(error), param="messages", code="context_length_exceeded")
        case RefusedError():
            return ApiError(400, f"The engine refuses it: {error}", code="invalid_value")
        case QueueTimeoutError():
            return ApiError(429, str(error), retry_after_s=5)
        case SandboxError():
            return ApiError(503, f"The sandbox is not available: {error}", code="sandbox_unavailable")
        case EngineError():
            return ApiError(500, f"The engine failed: {error}", code="engine_error")
        case _:
            return ApiError(500, "The server had an error. Its log tells more, by x-request-id.")


def install(app: FastAPI) -> None:
    """Let ``app`` answer every error that is foreseen. `service.api.access.middleware` has the rest."""
    kinds = (ApiError, RequestValidationError, HTTPException, EngineError, SandboxError)
    for kind in kinds:
        app.add_exception_handler(kind, _respond)


async def _respond(request: Request, error: Exception) -> JSONResponse:
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed(request))
    return as_api_error(error).response(headers)


def _allowed(request: Request) -> list[str]:
    """Methods of every route with the request's path; Starlette itself tells those of the first."""

    def served(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in _METHODS if served(method)]


def _error_type(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


def _from_validation(error: RequestValidationError) -> ApiError:
    """The first complaint, in OpenAI's words: 400, and ``param`` as ``messages[0].content``."""
    first = error.errors()[0]
    kind, where = first["type"], first["loc"][1:]
    if kind == "json_invalid":
        return ApiError(400, "The body is not valid JSON.")
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    param = path.removeprefix(".") if where else None
    message: str = first["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
    if kind == "missing":
        return ApiError(
            400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
        )
    code = kind if kind == "unsupported_parameter" else "invalid_value"
    return ApiError(400, f"'{param}': {message}" if param else message, param=param, code=code)
