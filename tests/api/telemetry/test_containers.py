"""Metrics of containers and files, from requests to the text that Prometheus reads."""

from __future__ import annotations

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.files.test_containers import Playground, output, playground


async def scraped(play: Playground) -> dict[str, float]:
    """Samples of containers and files, such as ``containers{parked}``."""
    async with httpx.AsyncClient(base_url=play.served.url, headers={"Authorization": "Bearer ann"}) as http:
        text = (await http.get("/metrics")).text
    return {
        f"{sample.name.removeprefix('ihgrpo_')}{{{','.join(sample.labels.values())}}}": sample.value
        for family in text_string_to_metric_families(text)
        if family.name.startswith(("ihgrpo_containers", "ihgrpo_files"))
        for sample in family.samples
    }


async def test_containers_are_counted_by_state_and_by_the_reason_of_their_end() -> None:
    async for play in playground(containers_per_key=2):
        before = await scraped(play)
        assert before["containers{parked}"] == before["containers_started_total{}"] == 0
        lost = output(await play.respond("print(1)")).container_id
        deleted = output(await play.respond("print(1)")).container_id
        after = await scraped(play)
        assert (after["containers{parked}"], after["containers{in_use}"], after["containers{frozen}"]) == (
            2,
            0,
            0,
        )
        assert after["containers_parked_bytes{}"] == 2 * 512 * 2**20
        assert after["containers_run_seconds_total{}"] > 0

        play.containers._live[lost].session.is_leased = False  # type: ignore[misc]
        await play.containers.sweep()
        await play.client.containers.delete(deleted)
        for _ in range(3):
            await play.respond("print(1)")
        for live in play.containers._live.values():
            live.used_at -= 3
        await play.containers.sweep()
        after = await scraped(play)
        assert (after["containers{parked}"], after["containers{frozen}"]) == (0, 2)
        for live in play.containers._live.values():
            live.used_at -= 3600
        await play.containers.sweep()
        after = await scraped(play)
        assert after["containers_started_total{}"] == 5
        reasons = {"lost": 1, "deleted": 1, "key_limit": 1, "idle": 2, "memory_limit": 0, "shutdown": 0}
        assert {name: after[f"containers_ended_total{{{name}}}"] for name in reasons} == reasons


async def test_containers_above_the_memory_limit_and_at_the_shutdown_are_counted() -> None:
    async for play in playground(parked_memory_mb=512):
        for _ in range(2):
            await play.respond("print(1)")
        await play.containers.stop()
        after = await scraped(play)
        assert after["containers_ended_total{memory_limit}"] == after["containers_ended_total{shutdown}"] == 1


async def test_files_are_counted_by_source_with_their_bytes() -> None:
    async for play in playground(max_file_bytes=2000):
        file_id = await play.upload("a.csv", b"12345")
        container = {"type": "auto", "file_ids": [file_id]}
        await play.respond("work['b.txt'] = b'123'", container)
        with pytest.raises(openai.APIStatusError, match="413"):
            await play.upload("big", bytes(3000))
        assert (await play.client.files.content(file_id)).content == b"12345"
        after = await scraped(play)
        assert after["files_written_total{upload}"] == after["files_written_total{container}"] == 1
        assert after["files_written_bytes_total{upload}"] == 5
        assert after["files_written_bytes_total{container}"] == 3
        assert after["files_read_bytes_total{}"] == 10, "once for the container, once for the download"
        assert after["files_rejected_total{}"] == 1
