"""The little that a terminal needs of the API: which models there are, and a streamed completion."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Self

import httpx


class ChatError(Exception):
    """The server can't be reached, or refused."""


class Client:
    """A server at ``url``, with or without ``/v1``.

    Raises (every method):
        ChatError: with what the server said.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        # A flush may take long, but the server sends keep-alives.
        root = url.rstrip("/").removesuffix("/v1")
        self._http = httpx.Client(base_url=root, headers=headers, timeout=httpx.Timeout(60, connect=5))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def model(self, wanted: str | None = None) -> tuple[str, str | None]:
        """The name of the model ``wanted``, or of the first that the server has, and its notice if any."""
        try:
            answer = self._http.get("/v1/models")
        except httpx.HTTPError as error:
            raise ChatError(
                f"no server at {self._http.base_url}: {error}. Start one: ih-grpo serve"
            ) from None
        if answer.status_code == 404:
            raise ChatError(f"{answer.url} answered 404: is {self._http.base_url} the base URL of a server?")
        _check(answer)
        models: list[dict[str, Any]] = answer.json()["data"]
        model = next((each for each in models if each["id"] == wanted), models[0] if wanted is None else {})
        return wanted or str(model["id"]), model.get("notice")

    def deltas(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The ``delta`` of each chunk of a streamed chat completion."""
        try:
            with self._http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
                if answer.is_error:
                    answer.read()
                _check(answer)
                for line in answer.iter_lines():
                    data = line.removeprefix("data: ")
                    if data == line or data == "[DONE]":  # blank lines and comments have no data
                        continue
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise ChatError(chunk["error"]["message"])
                    yield from (choice["delta"] for choice in chunk["choices"])
        except httpx.HTTPError as error:
            raise ChatError(f"the connection broke: {error}") from None


def _check(answer: httpx.Response) -> None:
    if not answer.is_error:
        return
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.text[:200]
    raise ChatError(f"{answer.status_code}: {message}")
