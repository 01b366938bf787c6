"""A fake vLLM server with the routes that the remote engine uses and configurable replies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from service.engines.tokenizer import HFTokenizer


class FakeVLLM:
    """A server that answers every completion with ``reply``. Its attributes simulate failures."""

    def __init__(self, tokenizer: HFTokenizer, reply: str = "one two", *, model: str = "base") -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.adapters: list[str] = []
        self.reply = reply
        self.url = ""
        self.key: str | None = None
        self.refuse: int | None = None
        """Error status of completions."""
        self.refuse_all: int | None = None
        """Error status of all routes."""
        self.healthy = True
        self.break_after: int | None = None
        """Number of tokens after which the connection is closed."""
        self.error_after: int | None = None
        """Number of tokens after which an error event ends the stream."""
        self.hold = asyncio.Event()
        self.hold.set()
        self.bodies: list[dict[str, Any]] = []
        self.open_streams = 0

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def refuse(request: Request, go_on: Any) -> Response:
            if self.refuse_all is not None:
                return Response(status_code=self.refuse_all)
            if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
                return JSONResponse({"error": "Unauthorized"}, 401)
            response: Response = await go_on(request)
            return response

        @app.get("/health")
        async def health() -> Response:
            return Response(status_code=200 if self.healthy else 503)

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            base = {"id": self.model, "parent": None, "max_model_len": 300}
            return {"data": [base, *({"id": name, "parent": self.model} for name in self.adapters)]}

        @app.post("/tokenize")
        async def tokenize(request: Request) -> dict[str, Any]:
            body = await request.json()
            return {"tokens": self.tokenizer.encode(body["prompt"], allow_special=True)}

        @app.post("/v1/completions")
        async def completions(request: Request) -> Response:
            self.bodies.append(await request.json())
            if self.refuse is not None:
                return JSONResponse({"error": {"message": "refused by the test"}}, self.refuse)
            if "prompt_logprobs" in self.bodies[-1]:
                return JSONResponse({"choices": [{"prompt_logprobs": _prompt_logprobs(self.bodies[-1])}]})
            return StreamingResponse(self._stream(self.bodies[-1]), media_type="text/event-stream")

        return app

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[str]:
        self.open_streams += 1
        try:
            ids = self.tokenizer.encode(self.reply, allow_special=True)[: body["max_tokens"]]
            for count, token_id in enumerate(ids):
                await self.hold.wait()
                if count == self.break_after:
                    raise ConnectionError("closed by the test")
                if count == self.error_after:
                    yield _event({"error": {"message": "error from the test", "code": 500}})
                    return
                is_last = token_id in body["stop_token_ids"] or count + 1 == len(ids)
                reason = "stop" if token_id in body["stop_token_ids"] else "length"
                choice = {"token_ids": [token_id], "finish_reason": reason if is_last else None}
                if "logprobs" in body:
                    choice["logprobs"] = {
                        "token_logprobs": [-0.5],
                        "top_logprobs": [
                            {f"token_id:{token_id}": -0.5, "token_id:1": -0.25, "token_id:2": -3}
                        ],
                    }
                yield _event({"choices": [choice]})
                if is_last:
                    break
            yield _event({"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": 4}}})
            yield "data: [DONE]\n\n"
        finally:
            self.open_streams -= 1


def _prompt_logprobs(body: dict[str, Any]) -> list[Any]:
    rows = [{str(token): {"logprob": -1.5}, "1": {"logprob": -0.5}} for token in body["prompt"][1:]]
    return [None, *rows]


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


@asynccontextmanager
async def served(*fakes: FakeVLLM) -> AsyncIterator[None]:
    """Serve each fake on a free loopback port and set its ``url``."""
    servers = [
        _Uvicorn(uvicorn.Config(fake.app(), port=0, log_config=None, lifespan="off")) for fake in fakes
    ]
    tasks = [asyncio.create_task(server.serve()) for server in servers]
    try:
        for fake, server in zip(fakes, servers, strict=True):
            await server.listens.wait()
            fake.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield
    finally:
        for fake, server in zip(fakes, servers, strict=True):
            fake.hold.set()
            server.should_exit = server.force_exit = True
        await asyncio.gather(*tasks)


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    def capture_signals(self) -> Any:
        from contextlib import nullcontext

        return nullcontext()  # keep pytest's signal handlers

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.listens.set()
