"""Links, replays, timelines and standalone pages, in a real browser."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from service.cli.timeline import episode_spans
from service.deferral.scanner import BlockClosed, FenceScanner
from service.playground.record import episode_record, fragment, standalone
from service.sandbox.base import Session, SessionLimits
from tests.playground.conftest import OpenPage, ask, until_over
from tests.playground.test_page import ANSWER, ASK, app
from tests.playground.test_record import record
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import Served, make_app, serve

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


async def test_link_replays_the_answer_without_the_key(open_page: OpenPage) -> None:
    async with serve(app(ASK, ANSWER, api_keys="sk-of-the-test"), key="sk-of-the-test") as served:
        page = await open_page(served.url)
        await expect(page.locator("#problem")).to_contain_text("requires an API key")
        await expect(page.locator("#key")).to_be_focused()
        await page.keyboard.type("sk-of-the-test")
        await page.keyboard.press("Tab")
        await expect(page.locator("#model")).to_have_value("scripted")
        await expect(page.locator("#problem")).to_be_hidden()
        await page.keyboard.press("Escape")
        await ask(page)
        await until_over(page)
        shown = await page.locator(".transcript").inner_text()
        assert "sk-of-the-test" not in await page.evaluate("JSON.stringify({ ...localStorage })")
        await page.locator(".share").click()
        await expect(page.locator("#status")).to_have_text("Link copied.")
        link = await page.evaluate("navigator.clipboard.readText()")
        await expect_snippets_run(page, served)

        other = await open_page(link, reduced_motion="reduce")  # shown at its end, not played
        await until_over(other)
        assert await other.locator(".transcript").inner_text() == shown
        packed = await other.evaluate(
            "import('/playground/share_link.js').then(m => m.fromFragment(location.hash))"
        )
        assert "sk-of-the-test" not in json.dumps(packed)
        assert packed["request"]["input"] == [{"role": "user", "content": "6 * 7?"}]
        await expect(other.locator(".asked")).to_have_text("6 * 7?")
        await expect(other.locator("dialog[open]")).to_have_count(1)  # this server wants a key
        await other.keyboard.press("Escape")
        await other.locator(".seek").fill("0")
        await expect(other.locator(".episode")).to_have_attribute("data-mode", "replay")
        await expect(other.locator(".observation")).to_have_count(0)
        await other.locator(".speed").select_option("25")
        await other.locator(".speed").blur()
        await other.keyboard.press("p")
        await until_over(other)
        assert await other.locator(".transcript").inner_text() == shown


async def test_link_of_an_older_version_opens(open_page: OpenPage) -> None:
    async with serve(app(ANSWER)) as served:
        page = await open_page(f"{served.url}/{fragment(record())}", reduced_motion="reduce")
        await until_over(page)
        await expect(page.locator(".asked")).to_have_text("6 * 7?")
        await expect(page.locator("mark.answer")).to_have_text("42")
        await ask(page, "sure?")  # a question after it starts a conversation
        await until_over(page, 2)
        await expect(page.locator("#history .title")).to_have_text("6 * 7?")


async def expect_snippets_run(page: Page, served: Served) -> None:
    """The copied commands name the key's variable, don't contain the key, and work if it is set."""
    for button, command in ((".copy-curl", ["bash", "-c"]), (".copy-python", [sys.executable, "-c"])):
        await page.locator(button).click()
        await expect(page.locator(button)).to_contain_text("Copied")
        text = await page.evaluate("navigator.clipboard.readText()")
        assert "sk-of-the-test" not in text
        assert served.url in text
        answer = await run([*command, text], IHGRPO_API_KEY="sk-of-the-test")
        assert "boxed" in answer


async def run(command: list[str], **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode()


async def test_rejects_links_that_inflate_too_much(open_page: OpenPage) -> None:
    huge = fragment({**record(), "events": [[0, "t", "x" * 12_000_000]]})
    async with serve(app(ANSWER)) as served:
        page = await open_page(f"{served.url}/{huge}")
        await expect(page.locator("#problem")).to_contain_text("The link is damaged")


async def test_initial_speed_of_a_replay_fits_its_duration(open_page: OpenPage) -> None:
    async with serve(app(ANSWER)) as served:
        page = await open_page(served.url)
        for seconds, speed in ((0.5, "0.1"), (6.0, "1"), (60.0, "10")):
            slow = episode_record(
                model="m", question="?", text="x", tools=[], began_at=1.0, seconds=seconds, finish="stop"
            )
            await page.goto(f"{served.url}/{fragment(slow)}")
            await page.reload()
            await expect(page.locator(".speed")).to_have_value(speed)


async def test_standalone_page_shows_a_rollout(open_page: OpenPage, tmp_path: Path) -> None:
    formula = "It is \\boxed{42} for $\\frac{84}{2}$, with **bold**."
    file = tmp_path / "episode.html"
    file.write_text(standalone({**record(), "events": [*record()["events"], [4000, "t", formula]]}), "utf-8")
    page = await open_page(file.as_uri(), reduced_motion="reduce")
    await until_over(page)
    await expect(page.locator("mark.answer")).to_have_text(["42", "42"])
    await expect(page.locator("math mfrac")).to_have_count(1)
    await expect(page.locator("strong")).to_have_text("bold")
    await expect(page.locator(".observation pre")).to_have_text("42")
    await expect(page.locator("#ask")).to_be_hidden()
    await expect(page.locator("#sidebar")).to_be_hidden()
    lanes = await page.locator(".timeline .lane").all_text_contents()
    assert lanes == ["writes", "block 1", "block 2", "waits"]


async def test_page_and_server_find_the_same_blocks(open_page: OpenPage) -> None:
    rng = random.Random(0)
    words = [
        "```",
        "```python",
        "```py\n",
        "```text\n",
        "\n",
        "\n",
        "  ",
        "x = 1",
        "<tool_call>",
        "`",
        "``",
        " ",
    ]
    texts = ["".join(rng.choices(words, k=rng.randrange(1, 24))) for _ in range(1500)]
    expected = [
        [event.code for event in FenceScanner("<tool_call>").feed(text) if isinstance(event, BlockClosed)]
        for text in texts
    ]
    assert sum(map(bool, expected)) > 300
    async with serve(app(ANSWER)) as served:
        page = await open_page(served.url)
        found = await page.evaluate(
            """async (texts) => {
                const { parseTurn } = await import("/playground/parse.js");
                const codes = (text) => parseTurn(text).filter((part) => part.kind === "code" && part.closed);
                return texts.map((text) => codes(text).map((part) => part.text.replace(/\\n$/, "")));
            }""",
            texts,
        )
    for text, ours, theirs in zip(texts, found, expected, strict=True):
        assert ours == theirs, text


async def test_page_and_terminal_draw_the_same_lanes(open_page: OpenPage) -> None:
    tools = [
        {
            "id": f"e_{number}",
            "status": status,
            "output": "",
            "blocks": [{"code": "x", "invoked_at": 1000.0 + 2 * number + 0.25 * n} for n in range(count)],
            "flushed_at": 1001.0 + 2 * number,
            "waited_ms": 250.0,
            "container_wait_ms": container,
            "runs": [
                {"started_at": start + 2 * number, "finished_at": end + 2 * number} for start, end in runs
            ],
        }
        for number, (count, status, container, runs) in enumerate(
            [
                (2, "ok", 500.0, [(1000.5, 1000.75), (1001.0, 1001.25)]),
                (2, "ok", 0.25, [(1001.0, 1001.25)]),
                (1, "error", 1125.0, [(1000.5, 1001.25)]),
            ]
        )
    ]
    episode = episode_record(
        model="m", question="?", text="", tools=tools, began_at=1000.0, seconds=8.0, finish="stop"
    )
    async with serve(app(ANSWER)) as served:
        page = await open_page(served.url)
        lanes = await page.evaluate(
            "async (episode) => (await import('/playground/lanes.js')).lanesOf(episode).lanes", episode
        )
    drawn = [
        (lane["name"].replace("–", "-"), span["kind"], span["start"], span["end"])
        for lane in lanes
        for span in lane["spans"]
    ]
    first = lanes[0]["spans"][0]["start"] / 1000
    spans = episode_spans(1000.0 + first, 1008.0, tools)
    assert drawn == [
        (span.lane, span.kind, (span.start - 1000) * 1000, (span.end - 1000) * 1000) for span in spans
    ]


async def test_docs_page_uses_only_files_of_this_server(open_page: OpenPage) -> None:
    async with serve(app(EOS)) as served:
        page = await open_page("about:blank")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(f"{served.url}/docs")
        await expect(page.locator("#swagger-ui .info .title")).to_contain_text("IH-GRPO")
        route = page.locator('[data-path="/v1/chat/completions"]')
        await route.click()
        await expect(
            page.locator(".opblock.is-open .parameters-container, .opblock.is-open .opblock-body").first
        ).to_be_visible()
    assert len(asked) >= 4
    assert [url for url in asked if not url.startswith((served.url, "data:"))] == []


async def test_container_wait_has_a_lane_and_a_sum(open_page: OpenPage) -> None:
    class Queued(ScriptedSandbox):
        def session(self, limits: SessionLimits, tools: object = None) -> Session:
            session = super().session(limits)
            invoke = session.invoke

            async def late(code: str) -> None:
                await asyncio.sleep(0.3)
                await invoke(code)

            session.invoke = late  # type: ignore[method-assign]
            return session

    sandbox = Queued(lambda blocks: printed("42"))
    async with serve(make_app(ScriptedEngine(ASK, ANSWER), sandbox)) as served:
        page = await open_page(served.url)
        await ask(page)
        await until_over(page)
        await page.locator(".time summary").click()
        await expect(page.locator(".timeline .lane").nth(1)).to_have_text("container")
        await expect(page.locator(".timeline .bar.container").first).to_be_visible()
        await expect(page.locator(".total.container dt")).to_have_text("for a container")
        await expect(page.locator(".total.hidden dd")).to_have_text("100 %")  # it ran long before the flush
