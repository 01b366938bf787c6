"""vLLM told to take weights: servers by their routes, or an engine of this process by its methods."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from trainer.weight_sync.push import PushError, ask, client_of

if TYPE_CHECKING:
    from service.engines.vllm.engine import VLLMEngine


class Servers:
    """vLLM servers as one: every call goes to all at once, and is done when all have done it.

    They are started with ``VLLM_SERVER_DEV_MODE=1`` and ``--weight-transfer-config``.

    Args:
        urls: theirs.
        key: that they ask for.
    """

    def __init__(self, urls: Sequence[str], key: str | None) -> None:
        self.version = ""
        """Told at the end of an update; ``GET /weight_info`` gives it back."""
        self._urls = tuple(urls)
        self._key = key
        self._sizes: list[int] = []

    def world_size(self) -> int:
        """Workers of all servers."""
        self._sizes = [int(answer["world_size"]) for answer in self._ask("GET", "/get_world_size")]
        return sum(self._sizes)

    def pause(self) -> None:
        """Abort what they sample, and take nothing new; their prefix caches are dropped."""
        self._ask("POST", "/pause?mode=abort")

    def resume(self) -> None:
        """Go on, with nothing of the old weights in the prefix cache."""
        for answer in self._ask("POST", "/reset_prefix_cache"):
            if not answer.get("success"):
                raise PushError("a vLLM server could not drop its prefix cache")
        self._ask("POST", "/resume")

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each server's workers take the ranks after those of the server before it."""
        infos = [dict(init_info) for _ in self._urls]
        if "rank_offset" in init_info:
            before = accumulate(self._sizes[:-1], initial=int(init_info["rank_offset"]))
            infos = [{**init_info, "rank_offset": offset} for offset in before]
        self._ask("POST", "/init_weight_transfer_engine", [{"init_info": info} for info in infos])

    def start_weight_update(self) -> None:
        self._ask("POST", "/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._ask("POST", "/update_weights", [{"update_info": update_info}] * len(self._urls))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        version = {"weight_version": weight_version or self.version}
        self._ask("POST", "/finish_weight_update", [version] * len(self._urls))

    def _ask(self, method: str, path: str, bodies: Sequence[Any] | None = None) -> list[dict[str, Any]]:
        """Of all at once; a body for each. Not to be called in an event loop: it waits."""

        async def one(url: str, body: Any) -> dict[str, Any]:
            async with client_of(url, self._key) as client:
                return await ask(client, path, body, method=method)

        async def each() -> list[dict[str, Any]]:
            return await asyncio.gather(*map(one, self._urls, bodies or [None] * len(self._urls)))

        return asyncio.run(each())


class OwnEngine:
    """The vLLM engine of this process.

    Args:
        engine: started before the first call, in the loop of another thread: each call waits for it.
    """

    def __init__(self, engine: VLLMEngine) -> None:
        self.version = ""
        self._engine = engine

    def world_size(self) -> int:
        """Its workers."""
        size: int = self._engine.llm.vllm_config.parallel_config.world_size_across_dp
        return size

    def pause(self) -> None:
        """Abort what it samples, and take nothing new."""
        self._run(self._engine.llm.pause_generation(mode="abort"))

    def resume(self) -> None:
        """Go on, with nothing of the old weights in the prefix cache."""
        if not self._run(self._engine.llm.reset_prefix_cache()):
            raise PushError("vLLM could not drop its prefix cache")
        self._run(self._engine.llm.resume_generation())

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        self._run(self._engine.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info)))

    def start_weight_update(self) -> None:
        self._run(self._engine.llm.start_weight_update())

    def update_weights(self, update_info: Any) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        self._run(self._engine.llm.update_weights(WeightTransferUpdateRequest(update_info)))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._run(self._engine.llm.finish_weight_update(weight_version or self.version))

    def _run(self, call: Coroutine[Any, Any, Any]) -> Any:
        try:
            return asyncio.run_coroutine_threadsafe(call, self._engine.loop).result()
        except Exception as error:  # vLLM hands on whatever its workers raised
            raise PushError(f"vLLM did not take the weights: {error}") from error
