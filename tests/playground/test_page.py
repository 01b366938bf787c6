"""The page in a real browser, on a server whose model says what the test wants."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from service.cli.timeline import episode_spans
from service.deferral.scanner import BlockClosed, FenceScanner
from service.playground.record import episode_record, fragment, standalone
from service.sandbox.base import ExecutionResult, Session, SessionLimits
from tests.playground.conftest import OpenPage
from tests.playground.test_record import record
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import Served, make_app, serve

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

ASK = "Let\n```python\nx = 6 * 7\n```\nand\n```python\nprint(x)\n```<tool_call>"
ANSWER = f"It is \\boxed{{42}}.{EOS}"


def app(*turns: str, delay_s: float = 0.0, output: str = "42", **settings: Any) -> Any:
    return make_app(
        ScriptedEngine(*turns), ScriptedSandbox(lambda blocks: printed(output), delay_s), **settings
    )


async def ask(page: Page, question: str = "6 * 7?") -> None:
    await page.fill("#question", question)
    await page.keyboard.press("Control+Enter")


async def until_over(page: Page) -> None:
    await expect(page.locator("#episode")).to_have_attribute("data-mode", "over")


async def test_episode_from_question_to_answer(open_page: OpenPage) -> None:
    async with serve(app(ASK, ANSWER, delay_s=0.05)) as served:
        page = await open_page(served.url)
        await expect(page.locator("#model")).to_have_value("scripted")
        await ask(page)
        await until_over(page)
        cards = page.locator(".card")
        await expect(cards).to_have_count(2)
        for card, code in ((cards.nth(0), "x = 6 * 7"), (cards.nth(1), "print(x)")):
            await expect(card).to_have_attribute("data-state", "done")
            await expect(card.locator("code")).to_have_text(code)
        await expect(page.locator(".observation pre")).to_have_text("42")
        await expect(page.locator("mark.answer")).to_have_text("42")
        kinds = await page.locator("#transcript > *").evaluate_all("all => all.map(each => each.className)")
        assert kinds == ["text", "card", "text", "card", "marker", "observation", "text"]
        await expect(page.locator("#status")).to_contain_text("Done: scripted · completed")


async def test_block_is_pending_then_runs_and_escape_stops_it(open_page: OpenPage) -> None:
    engine, sandbox = ScriptedEngine(ASK, ANSWER), ScriptedSandbox(lambda blocks: printed(""), 30)
    async with serve(make_app(engine, sandbox)) as served:
        page = await open_page(served.url)
        await ask(page)
        await expect(page.locator(".card").last).to_have_attribute("data-state", "running")
        await expect(page.locator("#status")).to_have_text("2 blocks running.")
        await page.keyboard.press("Escape")
        await until_over(page)
        await expect(page.locator("#about")).to_contain_text("stopped by you")
        await expect(page.locator(".card").last).to_have_attribute("data-state", "idle")
        await expect(page.locator("#go")).to_be_enabled()
        while not all(session.closed for session in sandbox.sessions):  # the server has noticed
            await page.wait_for_timeout(20)


async def test_model_output_is_never_markup(open_page: OpenPage) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    turns = f"{evil}\n```python\n'{evil}'\n```<tool_call>", f"{evil} \\boxed{{{evil}}}{EOS}"
    async with serve(app(*turns, output=evil)) as served:
        page = await open_page(served.url)
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        await ask(page, evil)
        await until_over(page)
        for place in (".text >> nth=0", ".card code", ".observation pre", "mark.answer", "#about-question"):
            await expect(page.locator(f"#episode {place}")).to_contain_text(evil)
        assert await page.locator("#episode img, #episode script").count() == 0


async def test_link_replays_the_episode_without_the_key(open_page: OpenPage) -> None:
    async with serve(app(ASK, ANSWER, api_keys="sk-of-the-test"), key="sk-of-the-test") as served:
        page = await open_page(served.url)
        await expect(page.locator("#problem")).to_contain_text("requires an API key")
        await expect(page.locator("#key")).to_be_focused()
        await page.keyboard.type("sk-of-the-test")
        await page.keyboard.press("Tab")
        await expect(page.locator("#model")).to_have_value("scripted")
        await expect(page.locator("#problem")).to_be_hidden()
        await ask(page)
        await until_over(page)
        shown = await page.locator("#transcript").inner_text()
        await page.locator("#share").click()
        await expect(page.locator("#copied")).to_have_text("Link copied")
        link = await page.evaluate("navigator.clipboard.readText()")
        assert link == page.url
        await expect_snippets_run(page, served)

        other = await open_page(link, reduced_motion="reduce")  # shown at its end, not played
        await until_over(other)
        assert await other.locator("#transcript").inner_text() == shown
        packed = await other.evaluate(
            "import('/playground/share_link.js').then(m => m.fromFragment(location.hash))"
        )
        assert "sk-of-the-test" not in json.dumps(packed)
        assert packed["request"]["messages"] == [{"role": "user", "content": "6 * 7?"}]
        await expect(other.locator("#transcript")).to_be_focused()  # p and the other keys need no click
        await other.locator("#seek").fill("0")
        await expect(other.locator("#episode")).to_have_attribute("data-mode", "replay")
        await expect(other.locator(".observation")).to_have_count(0)
        await other.keyboard.press("p")
        await until_over(other)
        assert await other.locator("#transcript").inner_text() == shown


async def expect_snippets_run(page: Page, served: Served) -> None:
    """The copied commands name the key's variable, don't contain the key, and work if it is set."""
    for button, command in (("#copy-curl", ["bash", "-c"]), ("#copy-python", [sys.executable, "-c"])):
        await page.locator(button).click()
        await expect(page.locator("#copied")).to_contain_text("copied")
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


async def test_errors_are_readable(open_page: OpenPage) -> None:
    def broken(blocks: list[str]) -> ExecutionResult:
        raise RuntimeError("a bug")

    async with serve(make_app(ScriptedEngine(ASK), ScriptedSandbox(broken))) as served:
        page = await open_page(served.url)
        problem = page.locator("#problem")
        await page.fill("[name=max_turns]", "99")
        await ask(page)
        await expect(problem).to_contain_text("'deferral.max_turns' must be at most 5 on this server.")
        await page.fill("[name=max_turns]", "")
        await ask(page)
        await expect(problem).to_be_visible()
        await expect(page.locator(".card")).to_have_count(2)  # received text is kept
        await page.route("**/v1/*/*", lambda route: route.abort())
        await ask(page)
        await expect(problem).to_have_text("The server is not reachable. Check that it is running.")
        await page.goto(f"{served.url}/#e=nonsense")
        await page.reload()
        await expect(problem).to_contain_text("The link is damaged")


async def test_rejects_links_that_inflate_too_much(open_page: OpenPage) -> None:
    huge = fragment({**record(), "events": [[0, "t", "x" * 12_000_000]]})
    async with serve(app(ANSWER)) as served:
        page = await open_page(f"{served.url}/{huge}")
        await expect(page.locator("#problem")).to_contain_text("The link is damaged")


async def test_keyboard_shortcuts(open_page: OpenPage) -> None:
    async with serve(app(ANSWER)) as served:
        page = await open_page(served.url)
        await expect(page.locator("#question")).to_be_focused()
        await page.locator("#theme").focus()
        await page.keyboard.press("?")
        await expect(page.locator("#help")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.locator("#help")).to_be_hidden()
        await page.keyboard.press("/")
        await expect(page.locator("#question")).to_be_focused()
        await page.keyboard.type("why?")
        await expect(page.locator("#help")).to_be_hidden()
        for _ in range(4):
            await page.keyboard.press("Tab")
            focused = page.locator(":focus-visible")
            assert await focused.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
        await ask(page)  # from here on keys are meant for the episode
        await page.keyboard.press("?")
        await expect(page.locator("#help")).to_be_visible()


@pytest.mark.parametrize("scheme", ["dark", "light"])
async def test_narrow_screen_is_readable(open_page: OpenPage, scheme: Any) -> None:
    async with serve(app(ASK, ANSWER)) as served:
        page = await open_page(served.url, viewport={"width": 360, "height": 740}, color_scheme=scheme)
        await ask(page)
        await until_over(page)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        pairs = [
            (".text", "#episode"),
            (".facts", "#episode"),
            (".state", ".card"),
            (".marker code", "#episode"),
        ]
        for text, ground in pairs:
            assert await page.evaluate(CONTRAST, [text, ground]) >= 4.5, (text, scheme)


CONTRAST = """([text, ground]) => {
    const light = (element, property) => {
        const canvas = new OffscreenCanvas(1, 1).getContext("2d");
        canvas.fillStyle = getComputedStyle(document.querySelector(element))[property];
        canvas.fillRect(0, 0, 1, 1);
        const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => {
            const share = value / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const [a, b] = [light(text, "color"), light(ground, "backgroundColor")].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
}"""


async def test_standalone_page_shows_a_rollout(open_page: OpenPage, tmp_path: Path) -> None:
    file = tmp_path / "episode.html"
    file.write_text(standalone(record()), encoding="utf-8")
    page = await open_page(file.as_uri(), reduced_motion="reduce")
    await until_over(page)
    await expect(page.locator("mark.answer")).to_have_text("42")
    await expect(page.locator(".observation pre")).to_have_text("42")
    await expect(page.locator("#ask")).to_be_hidden()
    lanes = await page.locator("#timeline .lane").all_text_contents()
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


async def test_page_shows_the_notice_of_the_demo_model(open_page: OpenPage, tiny_checkpoint: Path) -> None:
    async with serve(app(EOS)) as served:
        page = await open_page(served.url)
        await expect(page.locator("#notice")).to_contain_text("This is the demo model")
        await page.locator("input[name=enabled]").uncheck()
        await expect(page.locator("#notice")).to_contain_text("With deferred execution off it can't answer")
    async with serve(app(EOS, model=str(tiny_checkpoint))) as served:
        page = await open_page(served.url)
        await expect(page.locator("#model")).to_have_value("scripted")
        await expect(page.locator("#notice")).to_be_hidden()


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
        await expect(page.locator(".timeline .lane").nth(1)).to_have_text("container")
        await expect(page.locator(".timeline .bar.container").first).to_be_visible()
        await expect(page.locator(".total.container dt")).to_have_text("for a container")
        await expect(page.locator(".total.hidden dd")).to_have_text("100 %")  # it ran long before the flush
