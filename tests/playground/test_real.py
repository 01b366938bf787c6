"""The page on a real server: the quickstart checkpoint, code in containers."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.async_api import Page, expect

from service.engines.checkpoint import quickstart
from tests.e2e.server import ServerProcess, start
from tests.playground.conftest import OpenPage, ask, until_over

pytestmark = [
    pytest.mark.browser,
    pytest.mark.docker,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="session"),
]

SUM = 739184 * 52967 + 90412 * 33771


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    running = start(quickstart(), "--warm-containers", "1", "--max-slots", "4")
    yield running
    running.stop()


async def solve(page: Page, example: str) -> None:
    await page.get_by_role("button", name=example).click()
    await page.keyboard.press("Enter")
    await expect(page.locator(".episode")).to_have_attribute("data-mode", re.compile("live|over"))


async def test_blocks_run_while_the_model_keeps_writing(server: ServerProcess, open_page: OpenPage) -> None:
    page = await open_page(server.url)
    await solve(page, "Two products")
    await until_over(page)
    await expect(page.locator(".card").first).to_have_attribute("data-state", "done")
    await expect(page.locator("mark.answer")).to_have_text(str(SUM))
    await expect(page.locator(".facts")).to_contain_text("completed")
    await page.locator(".time summary").click()
    shown = await page.locator(".timeline .lane").all_text_contents()
    lanes = [lane for lane in shown if lane != "container"]  # a busy machine may have had none ready
    # On a busy machine the blocks may run as one script at the marker.
    assert lanes[1:-1] in (["block 1", "block 2", "block 3"], ["blocks 1–3"])
    runs = len(lanes) - 2
    bars = page.locator(".timeline rect.bar:not(.container)")
    kinds = await bars.evaluate_all("all => all.map(each => each.classList[1])")
    assert kinds == ["write", "write", *["run"] * runs, "wait"]
    # To scale: blocks ran one after another, and the output of the last one was waited for.
    boxes = [box for bar in await bars.all() if (box := await bar.bounding_box())]
    starts = [box["x"] for box in boxes[2:-1]]
    assert starts == sorted(starts)
    assert boxes[-1]["x"] + boxes[-1]["width"] >= boxes[-2]["x"] + boxes[-2]["width"] - 3
    await expect(page.locator(".total.delayed dd")).to_have_text("2 of 3 blocks")
    await ask(page, "now add 17 to that")
    await until_over(page, 2)
    await expect(page.locator("mark.answer").last).to_have_text(str(SUM + 17))


async def test_error_and_its_fix_are_shown(server: ServerProcess, open_page: OpenPage) -> None:
    page = await open_page(server.url, color_scheme="light")
    await page.locator("#open-settings").click()
    await page.fill("[name=temperature]", "0")
    await page.keyboard.press("Escape")
    await solve(page, "A mistake, fixed")
    await until_over(page)
    await expect(page.locator(".card").first).to_have_attribute("data-state", "error")
    observation = page.locator(".observation").first
    await expect(observation).to_have_attribute("data-state", "error")
    await expect(observation.locator("pre")).to_have_text("NameError: name 'math' is not defined")
    await expect(page.locator(".card").last).to_have_attribute("data-state", "done")
    await expect(page.locator("mark.answer")).to_be_visible()
    await page.locator(".time summary").click()
    await expect(page.locator(".timeline rect.failed")).to_have_count(1)


async def test_no_code_runs_without_deferral(server: ServerProcess, open_page: OpenPage) -> None:
    page = await open_page(server.url)
    await page.locator("#open-settings").click()
    await page.uncheck("[name=enabled]")
    await page.fill("[name=max_output_tokens]", "5")  # the demo model says what it is, in more tokens
    await page.keyboard.press("Escape")
    await solve(page, "Digits of a power")
    await until_over(page)
    await expect(page.locator(".observation")).to_have_count(0)
    await expect(page.locator(".facts")).to_contain_text("cut at a limit")
