"""A scripted engine and a scripted sandbox for unit tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing

from service.engines.base import (
    EngineStats,
    InvalidRequestError,
    PromptLogprob,
    Sampling,
    TokenChunk,
    TopLogprob,
)
from service.sandbox.base import ExecutionResult, OnOutput, OutputChunk, Session, SessionLimits
from service.tools.base import ToolHost
from tests.support.char_tokenizer import CharTokenizer

EOS = "<|im_end|>"


def prompt_logprobs(length: int) -> tuple[PromptLogprob, ...]:
    """Made-up log-probabilities of a prompt: -1, -2 and so on, with ``x`` as the alternative."""
    return tuple(PromptLogprob(-float(place), (TopLogprob(ord("x"), -0.25),)) for place in range(1, length))


class ScriptedEngine:
    """An engine that returns the next of ``turns`` at each call, one token per chunk, and repeats the last
    one."""

    model_name = "scripted"
    context_length = 10_000
    healthy = True
    capabilities = frozenset({"top_logprobs"})
    adapters = ()

    def __init__(self, *turns: str, delay_s: float = 0.0) -> None:
        self.tokenizer = CharTokenizer()
        self.eos_token_ids = frozenset(self.tokenizer.encode(EOS, allow_special=True))
        self.calls: list[tuple[list[int], Sampling]] = []
        self.open_streams = 0
        self._turns = list(turns)
        self._delay_s = delay_s

    def supports_logprobs(self, sampling: Sampling) -> bool:
        return True

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, stop_token_ids: Collection[int] = ()
    ) -> AsyncGenerator[TokenChunk, None]:
        self.calls.append((list(prompt_ids), sampling))
        turn = self._turns.pop(0) if len(self._turns) > 1 else self._turns[0]
        self.open_streams += 1
        try:
            for count, token in enumerate(self.tokenizer.encode(turn, allow_special=True), start=1):
                await asyncio.sleep(self._delay_s)
                stops = token in stop_token_ids
                cut = count == sampling.max_tokens
                text = self.tokenizer.decode([token])
                chunk = TokenChunk(
                    (token,), text, (-0.5,), finish_reason="stop" if stops else "length" if cut else None
                )
                if sampling.prompt_logprobs is not None and count == 1:
                    chunk = chunk._replace(prompt_logprobs=prompt_logprobs(len(prompt_ids)))
                yield chunk
                if stops or cut:
                    return
        finally:
            self.open_streams -= 1

    def stats(self) -> EngineStats:
        return EngineStats(running=self.open_streams)

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class ResumingEngine(ScriptedEngine):
    """An engine that continues a turn if it is called again right after a stop token, as a model does."""

    def __init__(self, *turns: str) -> None:
        super().__init__(*turns)
        self._stopped_at: list[int] = []
        self._rest = ""

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, stop_token_ids: Collection[int] = ()
    ) -> AsyncGenerator[TokenChunk, None]:
        if self._rest and list(prompt_ids) == self._stopped_at:
            self._turns.insert(0, self._rest)
        elif len(self._turns) == 1:
            self._turns.append(self._turns[0])  # the last one is repeated
        context, turn = list(prompt_ids), self._turns[0]
        self._rest = turn
        async with aclosing(super().generate(prompt_ids, sampling, stop_token_ids)) as chunks:
            async for chunk in chunks:
                context += chunk.ids
                self._rest = self._rest.removeprefix(chunk.text)
                self._stopped_at = context
                yield chunk


class RefusingEngine(ScriptedEngine):
    """An engine that supports JSON schemas, but rejects every schema."""

    capabilities = frozenset({"json_schema"})

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, stop_token_ids: Collection[int] = ()
    ) -> AsyncGenerator[TokenChunk, None]:
        raise InvalidRequestError("it has no 'contains'")
        yield  # makes this a generator, as in the protocol


class ScriptedSession:
    """A session that answers each flush with ``answer(pending blocks)``. Each line is live output."""

    def __init__(self, answer: Callable[[list[str]], ExecutionResult], delay_s: float = 0.0) -> None:
        self.pending: list[str] = []
        self.closed = False
        self._answer = answer
        self._delay_s = delay_s

    async def prepare(self) -> None: ...

    async def invoke(self, code: str) -> None:
        await asyncio.sleep(self._delay_s)
        self.pending.append(code)

    async def flush(self, on_output: OnOutput | None = None) -> ExecutionResult:
        await asyncio.sleep(self._delay_s)
        blocks, self.pending = self.pending, []
        result = self._answer(blocks)
        for line in result.stdout.splitlines(keepends=True) if on_output is not None else ():
            on_output(OutputChunk("stdout", line))
        return result

    async def suspend(self) -> None: ...
    async def resume(self) -> None: ...

    async def close(self) -> None:
        self.closed = True


class ScriptedSandbox:
    """A sandbox that creates scripted sessions and records them."""

    def __init__(self, answer: Callable[[list[str]], ExecutionResult], delay_s: float = 0.0) -> None:
        self.sessions: list[ScriptedSession] = []
        self.limits: list[SessionLimits] = []
        self.is_ready = True
        self._answer = answer
        self._delay_s = delay_s

    def session(self, limits: SessionLimits, tools: ToolHost | None = None) -> Session:
        self.limits.append(limits)
        self.sessions.append(ScriptedSession(self._answer, self._delay_s))
        return self.sessions[-1]

    async def ready(self) -> bool:
        return self.is_ready

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


def printed(stdout: str) -> ExecutionResult:
    """The result of a successful script that printed ``stdout``."""
    return ExecutionResult(
        stdout,
        "",
        "ok",
        wall_seconds=0.2,
        waited_seconds=0.1,
        started_at=1.0,
        finished_at=1.2,
        runs=((1.0, 1.2),),
    )
