"""Clients of the engines that receive weights: HTTP servers, and vLLM in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import httpx

from trainer.weight_sync.senders import WeightSyncError

if TYPE_CHECKING:
    from service.engines.vllm.engine import VLLMEngine

_TIMEOUT: Final = httpx.Timeout(1800.0, connect=10.0)
"""Long enough for a server to read tens of GB from a shared file system."""


def server_client(url: str, key: str | None) -> httpx.AsyncClient:
    """Return a client of the server at ``url``, with or without ``/v1``."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    base = url.rstrip("/").removesuffix("/v1")
    return httpx.AsyncClient(base_url=base, headers=headers, timeout=_TIMEOUT, trust_env=False)


async def request_json(
    client: httpx.AsyncClient, path: str, body: Mapping[str, Any] | None = None, *, method: str = "POST"
) -> dict[str, Any]:
    """Send a request and return the JSON of the response; an empty response gives an empty dict.

    Raises:
        WeightSyncError: the server returned an error or did not respond.
    """
    where = f"{client.base_url}".rstrip("/") + path
    try:
        response = await client.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise WeightSyncError(f"{where}: {type(error).__name__} {error}") from error
    if response.is_error:
        hint = ""
        if response.status_code == 404 and "/admin/" not in where:
            hint = " (start vLLM with VLLM_SERVER_DEV_MODE=1)"
        raise WeightSyncError(f"{where} answered {response.status_code}{hint}: {response.text[:500]}")
    answer: dict[str, Any] = response.json() if response.content else {}
    return answer


class ReloadTarget(Protocol):
    """A server that loads checkpoints from a file system that it shares with the trainer."""

    async def load(self, checkpoint: Path) -> None:
        """Load ``checkpoint``.

        Raises:
            WeightSyncError: the server did not load it.
        """
        ...


class IHGRPOReload:
    """Reload of an `ih-grpo serve` server by ``POST /admin/reload``. Running episodes continue."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url, self._key = url, key

    async def load(self, checkpoint: Path) -> None:
        async with server_client(self._url, self._key) as client:
            await request_json(client, "/admin/reload", {"model": str(checkpoint)})


class VLLMReload:
    """Reload of a vLLM server through its development routes (``VLLM_SERVER_DEV_MODE=1``).

    Aborts requests that are left from the last rollout, and drops the prefix cache of the old weights.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self._url, self._key = url, key

    async def load(self, checkpoint: Path) -> None:
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(checkpoint)}}
        async with server_client(self._url, self._key) as client:
            await request_json(client, "/pause?mode=abort")
            try:
                await request_json(client, "/collective_rpc", reload)
                if not (await request_json(client, "/reset_prefix_cache")).get("success"):
                    raise WeightSyncError(f"{self._url} could not drop its prefix cache")
            finally:
                await request_json(client, "/resume")


class VLLMServers:
    """Several vLLM servers as one `PausableControl`: every call goes to all of them and waits for all.

    Start them with ``VLLM_SERVER_DEV_MODE=1`` and ``--weight-transfer-config``.

    Args:
        urls: their base URLs.
        key: their API key.
    """

    def __init__(self, urls: Sequence[str], key: str | None) -> None:
        self.version = ""
        """Version sent at the end of an update; ``GET /weight_info`` returns it."""
        self._urls = tuple(urls)
        self._key = key
        self._sizes: list[int] = []

    def world_size(self) -> int:
        """Return the number of workers of all servers."""
        self._sizes = [int(answer["world_size"]) for answer in self._request("GET", "/get_world_size")]
        return sum(self._sizes)

    def pause(self) -> None:
        """Abort all requests, reject new ones and drop the prefix caches."""
        self._request("POST", "/pause?mode=abort")

    def resume(self) -> None:
        """Drop the prefix caches of the old weights and accept requests again."""
        for answer in self._request("POST", "/reset_prefix_cache"):
            if not answer.get("success"):
                raise WeightSyncError("a vLLM server could not drop its prefix cache")
        self._request("POST", "/resume")

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect the workers; the ranks of each server follow those of the server before it."""
        infos = [dict(init_info) for _ in self._urls]
        if "rank_offset" in init_info:
            before = accumulate(self._sizes[:-1], initial=int(init_info["rank_offset"]))
            infos = [{**init_info, "rank_offset": offset} for offset in before]
        self._request("POST", "/init_weight_transfer_engine", [{"init_info": info} for info in infos])

    def start_weight_update(self) -> None:
        self._request("POST", "/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._request("POST", "/update_weights", [{"update_info": update_info}] * len(self._urls))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        version = {"weight_version": weight_version or self.version}
        self._request("POST", "/finish_weight_update", [version] * len(self._urls))

    def _request(self, method: str, path: str, bodies: Sequence[Any] | None = None) -> list[dict[str, Any]]:
        """Send a request to all servers, with one body each. Blocks, so not for use in an event loop."""

        async def one(url: str, body: Any) -> dict[str, Any]:
            async with server_client(url, self._key) as client:
                return await request_json(client, path, body, method=method)

        async def each() -> list[dict[str, Any]]:
            return await asyncio.gather(*map(one, self._urls, bodies or [None] * len(self._urls)))

        return asyncio.run(each())


class InProcessVLLM:
    """The vLLM engine of this process as a `PausableControl`.

    Args:
        engine: started before the first call, in the loop of another thread: each call blocks.
    """

    def __init__(self, engine: VLLMEngine) -> None:
        self.version = ""
        self._engine = engine

    def world_size(self) -> int:
        """Return the number of its workers."""
        size: int = self._engine.llm.vllm_config.parallel_config.world_size_across_dp
        return size

    def pause(self) -> None:
        """Abort all requests and reject new ones."""
        self._run(self._engine.llm.pause_generation(mode="abort"))

    def resume(self) -> None:
        """Drop the prefix cache of the old weights and accept requests again."""
        if not self._run(self._engine.llm.reset_prefix_cache()):
            raise WeightSyncError("vLLM could not drop its prefix cache")
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
        except Exception as error:  # vLLM passes on any exception of its workers
            raise WeightSyncError(f"vLLM did not accept the weights: {error}") from error
