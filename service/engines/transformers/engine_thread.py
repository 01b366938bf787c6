"""The thread that runs the model. Between its steps, requests join or leave the batch and weights are
replaced."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Protocol

import structlog
import torch

from service.engines.base import EngineError, EngineStats, TokenChunk
from service.engines.transformers.sampling import Draw, adjust, sample, score
from service.engines.transformers.scheduler import Request, Scheduler, Work

log = structlog.get_logger(__name__)

FAILURES_IN_A_ROW = 3
"""Consecutive failed steps that end the engine."""

Delivery = tuple[Request, TokenChunk | Exception]


class CacheFullError(Exception):
    """The KV cache has no room for the tokens of a step, which was not computed."""


class SequenceCache(Protocol):
    """Keys and values of the sequences, one row per slot."""

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Replace row ``target`` by the first ``length`` positions of row ``source``."""
        ...

    def clear(self, slot: int | None = None) -> None:
        """Clear one row, or all rows."""
        ...


class BatchRunner(Protocol):
    """A model with its KV cache. Used by one thread."""

    @property
    def cache(self) -> SequenceCache: ...

    def forward(
        self, plan: Sequence[Work]
    ) -> tuple[list[Work], torch.Tensor, list[tuple[Request, range, torch.Tensor]]]:
        """Run one step.

        Returns:
            The work items whose requests get a token in this step, and their logits [len(works), V], float32.
            Then for each request that wants log-probabilities of its prompt: the positions, and their logits
            [positions, V], float32. The tensors are valid until the next call.

        Raises:
            CacheFullError: the cache has no room for these tokens.
        """
        ...


@dataclass(slots=True)
class _Call:
    function: Callable[[], None]
    future: Future[None] = field(default_factory=Future)

    def run(self) -> None:
        try:
            self.function()
        except Exception as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(None)


class EngineThread:
    """The owner of the runner and the scheduler: only this thread uses them once it has started.

    A failed step fails every request with an EngineError and clears the cache; then the thread continues.
    After ``FAILURES_IN_A_ROW`` failures it ends, and ``end`` holds the reason.
    """

    def __init__(self, runner: BatchRunner, scheduler: Scheduler, *, threads: int | None) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._threads = threads
        self._inbox: SimpleQueue[Request | _Call | None] = SimpleQueue()
        self._outbox: defaultdict[asyncio.AbstractEventLoop, list[Delivery]] = defaultdict(list)
        self._lock = threading.Lock()  # no request may enter the inbox after its final drain
        self.end: str | None = None
        self._weights_version = 0
        self._prompt_tokens = self._cached_tokens = self._generated_tokens = 0
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it. Unfinished requests get an EngineError."""
        self._inbox.put(None)
        self._thread.join()

    def submit(self, request: Request) -> None:
        """Queue a request. Raises EngineError if the thread has ended."""
        self._put(request)

    def swap_weights(self, load: Callable[[], None], version: int) -> Future[None]:
        """Call ``load`` between two steps. Drops the prefix cache; running requests continue with the new
        weights, and their tokens so far are prefilled again. Later tokens report ``version``."""

        def swap() -> None:
            load()
            self._scheduler.pool.forget()
            self._weights_version = version

        call = _Call(swap)
        self._put(call)
        return call.future

    def stats(self) -> EngineStats:
        return EngineStats(
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generated_tokens=self._generated_tokens,
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting) + self._inbox.qsize(),
        )

    def _put(self, item: Request | _Call) -> None:
        with self._lock:
            if self.end is not None:
                raise EngineError(self.end)
            self._inbox.put(item)

    def _main(self) -> None:
        reason = "the engine was stopped"
        try:
            if self._threads is not None:
                torch.set_num_threads(self._threads)
            with torch.inference_mode():
                self._loop()
        except Exception as error:
            log.exception("engine_died")
            reason = f"the engine crashed: {error!r}"
        finally:
            self._close(reason)

    def _loop(self) -> None:
        failures = 0
        while self._receive():
            try:
                self._step()
                failures = 0
            except Exception as error:
                failures += 1
                if failures == FAILURES_IN_A_ROW:
                    raise
                log.exception("engine_step_failed")
                self._fail_all(f"the engine failed: {error!r}")
                self._scheduler.pool.forget()
                self._runner.cache.clear()
            self._deliver()

    def _receive(self) -> bool:
        """Take items from the inbox; wait for one if there is no other work. Return False to stop."""
        while True:
            try:
                item = self._inbox.get(block=not self._scheduler.busy)
            except Empty:
                return True
            if item is None:
                return False
            if isinstance(item, _Call):
                item.run()
            else:
                self._scheduler.waiting.append(item)

    def _step(self) -> None:
        self._scheduler.drop_cancelled()
        for request, claim in self._scheduler.admit():
            if claim.source is not None:
                self._runner.cache.copy_prefix(claim.source.index, claim.slot.index, claim.reused)
            self._prompt_tokens += len(request.tokens)
            self._cached_tokens += claim.reused
            request.cached_tokens = claim.reused
        plan = self._scheduler.plan()
        if not plan:
            return
        while True:
            try:
                sampling, logits, scored = self._runner.forward(plan)
                break
            except CacheFullError:
                self._runner.cache.clear(self._scheduler.make_room().index)
                plan = self._scheduler.plan()
        for work in plan:
            work.slot.length = work.stop
        for request, positions, rows in scored:
            tokens = request.tokens[positions.start + 1 : positions.stop + 1]
            top = request.sampling.prompt_logprobs or 0
            request.add_prompt_logprobs(positions, score(rows, tokens, top))
        if sampling:
            requests = [work.request for work in sampling]
            settings = [request.sampling for request in requests]
            logits = adjust(logits, settings, [request.history for request in requests])
            self._accept(requests, sample(logits, settings, [request.uniform() for request in requests]))

    def _accept(self, requests: Sequence[Request], draws: Sequence[Draw]) -> None:
        for request, draw in zip(requests, draws, strict=True):
            if not math.isfinite(draw.logprob):
                self._reject(request, "the model's logits are not finite: check the weights and the dtype")
                continue
            chunk = request.accept(draw, self._weights_version)
            self._generated_tokens += 1
            self._outbox[request.loop].append((request, chunk))
            if chunk.finish_reason is not None:
                self._scheduler.finish(request)

    def _reject(self, request: Request, message: str) -> None:
        """Fail one request and zero its row: a mask would not hide a remaining NaN from the next request."""
        self._outbox[request.loop].append((request, EngineError(message)))
        if request.slot is not None:
            request.slot.length = 0
            self._runner.cache.clear(request.slot.index)
        self._scheduler.finish(request)

    def _fail_all(self, message: str) -> None:
        for request in self._scheduler.drain():
            self._outbox[request.loop].append((request, EngineError(message)))

    def _deliver(self) -> None:
        """Deliver the step's tokens, with one wake-up per event loop."""
        for loop, items in self._outbox.items():
            try:
                loop.call_soon_threadsafe(_hand_over, items)
            except RuntimeError:  # the loop is closed: no consumer is left
                for request, _ in items:
                    request.cancelled = True
        self._outbox.clear()

    def _close(self, reason: str) -> None:
        with self._lock:
            self.end = reason
        while not self._inbox.empty():
            item = self._inbox.get()
            if isinstance(item, _Call):
                item.future.set_exception(EngineError(reason))
            elif item is not None:
                self._scheduler.waiting.append(item)
        self._fail_all(reason)
        self._deliver()


def _hand_over(items: Sequence[Delivery]) -> None:
    for request, item in items:
        request.queue.put_nowait(item)
