"""Errors in the form of OpenAI's error object: ``{"error": {"message", "type", "param", "code"}}``.

Clients of Anthropic's Messages API get the same errors in Anthropic's form, see `speaks_anthropic`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from service.common.json import JsonResponse
from service.engines.base import ContextLengthExceededError, EngineError, InvalidRequestError
from service.sandbox.base import QueueTimeoutError, SandboxError

_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_OBJECT_ERRORS: Final = frozenset({"missing", "model_type", "model_attributes_type", "dict_type"})
"""Pydantic's error types for a body that is not an object."""
_UNPARSABLE: Final = "There was an error parsing the body"
"""FastAPI's message for a body that is not UTF-8, or nested too deeply."""
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
INSUFFICIENT_QUOTA: Final = "insufficient_quota"
"""Code and type of errors about a quota. Retries before the end of its period make no sense."""
_CODES = {401: "invalid_api_key", 413: "request_too_large", 429: "rate_limit_exceeded"}


class ApiError(Exception):
    """An error that is reported to the client.

    Args:
        status: HTTP status.
        message: the problem and its solution.
        param: the invalid request field.
        code: OpenAI's machine-readable reason.
        retry_after_s: seconds after which a retry makes sense.
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
                "type": self.code if self.code == INSUFFICIENT_QUOTA else _error_type(self.status),
                "param": self.param,
                "code": self.code,
                **self.details,
            }
        }

    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after_s is None else {"Retry-After": str(math.ceil(self.retry_after_s))}
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        if self.code == INSUFFICIENT_QUOTA:
            headers["x-should-retry"] = "false"  # read by the SDKs of OpenAI and Anthropic
        return headers

    def anthropic_body(self, request_id: str | None = None) -> dict[str, object]:
        """Return the body in the form of Anthropic's API, with ``param`` beside its fields."""
        kind = _ANTHROPIC_TYPES.get(self.status)
        error: dict[str, object] = {
            "type": kind or ("api_error" if self.status >= 500 else "invalid_request_error"),
            "message": self.message,
        }
        if self.param is not None:
            error["param"] = self.param
        if self.code is not None:
            error["details"] = {"error_code": self.code, **self.details}
        return {"type": "error", "error": error, "request_id": request_id}

    def response(self, headers: Mapping[str, str] | None = None) -> ErrorResponse:
        return ErrorResponse(self, {**(headers or {}), **self.headers()})


class ErrorResponse(Response):
    """Response with an error in the form that the client's API defines."""

    def __init__(self, error: ApiError, headers: Mapping[str, str]) -> None:
        self.status_code = error.status
        self.background = None
        self._error = error
        self._more_headers = dict(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._error
        body = error.anthropic_body(scope.get("request_id")) if speaks_anthropic(scope) else error.body()
        await JsonResponse(body, error.status, self._more_headers)(scope, receive, send)


def speaks_anthropic(scope: Scope) -> bool:
    """Return whether a request is one of Anthropic's API: by its path, or by the header of its clients."""
    return scope["path"].startswith("/v1/messages") or "anthropic-version" in Headers(scope=scope)


def as_api_error(error: Exception) -> ApiError:
    """Convert ``error`` for the client. The message for an unexpected error omits its cause."""
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            return _from_validation(error)
        case HTTPException():
            return ApiError(error.status_code, str(error.detail))
        case ContextLengthExceededError():
            return ApiError(400, str(error), param="messages", code="context_length_exceeded")
        case InvalidRequestError():
            return ApiError(400, f"The engine rejected the request: {error}", code="invalid_value")
        case QueueTimeoutError():
            return ApiError(429, str(error), retry_after_s=5)
        case SandboxError():
            return ApiError(503, f"The sandbox is not available: {error}", code="sandbox_unavailable")
        case EngineError():
            return ApiError(500, f"The engine failed: {error}", code="server_error")
        case _:
            return ApiError(500, "Internal server error. See the server's log for this x-request-id.")


def install(app: FastAPI) -> None:
    """Add handlers for all expected errors. `service.api.middleware` handles the others."""
    kinds = (ApiError, RequestValidationError, HTTPException, EngineError, SandboxError)
    for kind in kinds:
        app.add_exception_handler(kind, _respond)


async def _respond(request: Request, error: Exception) -> Response:
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = _allowed(request)
        headers["Allow"] = ", ".join(allowed)
        message = f"{request.method} is not allowed on {_path_of(request)}: use {' or '.join(allowed)}."
        return ApiError(405, message, code="method_not_allowed").response(headers)
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.NOT_FOUND:
        message = f"Unknown URL: {request.method} {_path_of(request)}. {_hint(request)}"
        return ApiError(404, message, code="unknown_url").response(headers)
    if isinstance(error, HTTPException) and error.detail == _UNPARSABLE:
        cause = error.__cause__
        known = cause if isinstance(cause, ApiError) else None  # raised while the body was read
        return (
            known or ApiError(400, "The body is not valid JSON in UTF-8.", code="invalid_body")
        ).response()
    return as_api_error(error).response(headers)


def _path_of(request: Request) -> str:
    return str(request.scope["path"])[:200]


def _hint(request: Request) -> str:
    """Return a hint for an unknown path."""
    path: str = request.scope["path"]
    flat = re.sub("/{2,}", "/", path)
    last = "/v1/" + flat.rpartition("/v1/")[2]
    for meant in (flat, last, f"/v1{flat}", flat.removeprefix("/v1")):
        if meant != path and _is_served(request, meant):
            if meant == f"/v1{flat}":
                return f"The base URL ends in /v1: did you mean {meant}?"
            return f"Did you mean {meant}? Check the base URL."
    known = sorted(request.app.openapi()["paths"])
    if near := get_close_matches(flat, known, n=1, cutoff=0.85):
        return f"Did you mean {near[0]}?"
    return f"This server has {', '.join(path for path in known if '{' not in path)}."


def _is_served(request: Request, path: str) -> bool:
    scope = {**request.scope, "path": path}
    return any(route.matches(scope)[0] is not Match.NONE for route in request.app.routes)


def _allowed(request: Request) -> list[str]:
    """Return the methods of all routes with the request's path. Starlette reports the first route only.

    If documented routes have exactly this path, those whose parameters match it too are left out.
    """
    documented = request.app.openapi()["paths"].get(request.scope["path"])

    def served(method: str) -> bool:
        if documented is not None:
            return method.lower() in documented
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in _METHODS if served("GET" if method == "HEAD" else method)]


def _error_type(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


def _from_validation(error: RequestValidationError) -> ApiError:
    """Convert the first validation error to a 400 with ``param`` in the form ``messages[0].content``."""
    first = error.errors()[0]
    kind, where = first["type"], first["loc"][1:]
    if kind == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        message = f"The body is not valid JSON: {reason} at character {where[0]}."
        return ApiError(400, message, code="invalid_body")
    if not where and kind in _OBJECT_ERRORS:
        return _not_an_object(error.body)
    in_body = first["loc"][0] == "body"
    return api_error_of(first, where, error.body if in_body else None)


def api_error_of(error: Mapping[str, Any], where: Sequence[int | str], raw: object) -> ApiError:
    """Convert one of pydantic's errors.

    Args:
        error: an item of ``ValidationError.errors()``.
        where: its location.
        raw: the value that the client sent. Parts of ``where`` that it doesn't contain are names of union
            members and left out. None keeps all parts.
    """
    kind, context = error["type"], error.get("ctx", {})
    path = _path(where, raw, ends_missing=kind == "missing") + str(context.get("at", ""))
    param = path.removeprefix(".")[:200] or None
    if kind in ("extra_forbidden", "unknown_parameter"):
        hint = f" {context['hint']}" if context.get("hint") else ""
        return ApiError(400, f"Unknown parameter: '{param}'.{hint}", param=param, code="unknown_parameter")
    if kind == "missing":
        return ApiError(
            400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
        )
    message = error["msg"].removeprefix("Value error, ")
    code = context.get("code") or (kind if kind == "unsupported_parameter" else "invalid_value")
    return ApiError(400, f"'{param}': {message}" if param else message, param=param, code=code)


def _path(where: Sequence[int | str], raw: object, *, ends_missing: bool) -> str:
    """Return the path to a field in ``raw``, without parts that pydantic added."""
    path, here = "", raw
    for place, part in enumerate(where):
        is_last = place == len(where) - 1
        if isinstance(part, int):
            if raw is not None and not (isinstance(here, list) and part < len(here)):
                continue
            path += f"[{part}]"
            here = here[part] if isinstance(here, list) else None
        elif raw is None or (isinstance(here, dict) and (part in here or (is_last and ends_missing))):
            path += f".{part}"
            here = here.get(part) if isinstance(here, dict) else None
    return path


def _not_an_object(body: object) -> ApiError:
    """Return the error for a body that is not a JSON object."""
    if body in (None, b""):
        message = "The body is empty: send a JSON object, with the header 'Content-Type: application/json'."
    elif isinstance(body, bytes):
        message = "The body must be JSON: send it with the header 'Content-Type: application/json'."
    else:
        message = "The body must be a JSON object."
    return ApiError(400, message, code="invalid_body")
