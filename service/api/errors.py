"""Every error as OpenAI's error object: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.common.json import JsonResponse
from service.engines.base import ContextLengthExceededError, EngineError, InvalidRequestError
from service.sandbox.base import QueueTimeoutError, SandboxError

_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_NO_OBJECT: Final = frozenset({"missing", "model_type", "model_attributes_type", "dict_type"})
"""What pydantic says of a whole body that is not an object."""
_UNPARSABLE: Final = "There was an error parsing the body"
"""FastAPI's words for a body that is not UTF-8, or nested too deeply."""
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
        case InvalidRequestError():
            return ApiError(400, f"The engine refuses it: {error}", code="invalid_value")
        case QueueTimeoutError():
            return ApiError(429, str(error), retry_after_s=5)
        case SandboxError():
            return ApiError(503, f"The sandbox is not available: {error}", code="sandbox_unavailable")
        case EngineError():
            return ApiError(500, f"The engine failed: {error}", code="server_error")
        case _:
            return ApiError(500, "The server had an error. Its log tells more, by x-request-id.")


def install(app: FastAPI) -> None:
    """Let ``app`` answer every error that is foreseen. `service.api.middleware` has the rest."""
    kinds = (ApiError, RequestValidationError, HTTPException, EngineError, SandboxError)
    for kind in kinds:
        app.add_exception_handler(kind, _respond)


async def _respond(request: Request, error: Exception) -> JSONResponse:
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = _allowed(request)
        headers["Allow"] = ", ".join(allowed)
        message = f"{request.method} is not allowed on {_shown(request)}: use {' or '.join(allowed)}."
        return ApiError(405, message, code="method_not_allowed").response(headers)
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.NOT_FOUND:
        message = f"Unknown URL: {request.method} {_shown(request)}. {_hint(request)}"
        return ApiError(404, message, code="unknown_url").response(headers)
    if isinstance(error, HTTPException) and error.detail == _UNPARSABLE:
        cause = error.__cause__
        known = cause if isinstance(cause, ApiError) else None  # raised while the body was received
        return (
            known or ApiError(400, "The body is not valid JSON in UTF-8.", code="invalid_body")
        ).response()
    return as_api_error(error).response(headers)


def _shown(request: Request) -> str:
    return str(request.scope["path"])[:200]


def _hint(request: Request) -> str:
    """What the client probably meant by a path that leads nowhere."""
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
    """Methods of every route with the request's path; Starlette itself tells those of the first."""

    def served(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in _METHODS if served("GET" if method == "HEAD" else method)]


def _error_type(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


def _from_validation(error: RequestValidationError) -> ApiError:
    """The first complaint, in OpenAI's words: 400, and ``param`` as ``messages[0].content``."""
    first = error.errors()[0]
    kind, where = first["type"], first["loc"][1:]
    if kind == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"The body is not valid JSON: {reason} at character {where[0]}.")
    if not where and kind in _NO_OBJECT:
        return _no_object(error.body)
    in_body = first["loc"][0] == "body"
    return complaint(first, where, error.body if in_body else None)


def complaint(error: Mapping[str, Any], where: Sequence[int | str], raw: object) -> ApiError:
    """One of pydantic's errors as the client's.

    Args:
        error: an item of ``ValidationError.errors()``.
        where: its place.
        raw: what the client sent: parts of ``where`` that are not in it are names of union members, and left
            out. None: keep all parts.
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
    code = kind if kind == "unsupported_parameter" else "invalid_value"
    return ApiError(400, f"'{param}': {message}" if param else message, param=param, code=code)


def _path(where: Sequence[int | str], raw: object, *, ends_missing: bool) -> str:
    """The client's own path to a field: parts of ``where`` that lead nowhere in ``raw`` are pydantic's."""
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


def _no_object(body: object) -> ApiError:
    """The error for a body that is not a JSON object."""
    if body in (None, b""):
        message = "The body is empty: send a JSON object, with the header 'Content-Type: application/json'."
    elif isinstance(body, bytes):
        message = "The body must be JSON: send it with the header 'Content-Type: application/json'."
    else:
        message = "The body must be a JSON object."
    return ApiError(400, message, code="invalid_body")
