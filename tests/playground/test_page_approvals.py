"""Approval of calls of tools on the page."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Page, expect

from tests.playground.conftest import OpenPage, ask, until_over
from tests.support.mcp_server import McpServed, serve_mcp
from tests.support.scripted import EOS, ScriptedEngine
from tests.support.serving import make_app, serve
from tests.support.tool_sandbox import ToolSandbox

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

TEXT = 'I keep two notes.\n```python\ncall note {"text": "hi"}\ncall note {"text": "ho"}\n```\n'
ANSWER = "They are \\boxed{2}." + EOS


@asynccontextmanager
async def opened(
    open_page: OpenPage, *turns: str, delay_s: float = 0
) -> AsyncGenerator[tuple[Page, McpServed]]:
    """Open the page of a server whose code calls tools of an MCP server, with that server in the settings."""
    async with serve_mcp() as mcp:
        app = make_app(ScriptedEngine(*turns, delay_s=delay_s), ToolSandbox(), mcp_private_hosts=mcp.host)  # type: ignore[arg-type]
        async with serve(app) as served:
            page = await open_page(served.url)
            await page.get_by_role("button", name="Settings").click()
            await page.get_by_label("MCP servers").fill(f"demo {mcp.url}")
            await page.keyboard.press("Escape")
            yield page, mcp


async def test_calls_wait_for_the_user(open_page: OpenPage) -> None:
    async with opened(open_page, TEXT + "<tool_call>", ANSWER) as (page, mcp):
        await ask(page)
        card = page.locator(".approval")
        await expect(card.last).to_contain_text("note of demo needs your approval")
        await expect(card.first.locator("pre")).to_have_text(re.compile('"text": "hi"'))
        await expect(page.locator(".facts")).to_contain_text("waiting for your approval")
        assert mcp.log == []
        await page.get_by_role("button", name="Approve note of demo").first.click()
        await expect(card.first).to_have_attribute("data-state", "approved")
        await page.get_by_role("button", name="Deny note of demo").last.click()
        await until_over(page)
        await expect(card.last).to_have_attribute("data-state", "denied")
        await expect(page.locator(".observation")).to_contain_text("denied")
        assert mcp.log == ["note hi"]
        await expect(page.locator(".marker")).to_have_count(1)
        await expect(page.locator(".facts")).to_contain_text("1 flush")
        await page.reload()
        await expect(card.first).to_have_attribute("data-state", "approved")
        await expect(page.locator(".approval button")).to_have_count(0)


async def test_decisions_reach_the_server_while_the_model_writes(open_page: OpenPage) -> None:
    written = TEXT.replace('call note {"text": "ho"}\n', "") + "While that waits, I keep writing. " * 12
    async with opened(open_page, written + "<tool_call>", ANSWER, delay_s=0.05) as (page, mcp):
        await ask(page)
        await page.get_by_role("button", name="Approve note of demo").click()
        await until_over(page)
        await expect(page.locator(".approval")).to_have_attribute("data-state", "approved")
        await expect(page.locator("mark.answer")).to_have_text("2")
        assert mcp.log == ["note hi"]


async def test_stopping_ends_the_wait(open_page: OpenPage) -> None:
    async with opened(open_page, TEXT + "<tool_call>", ANSWER) as (page, mcp):
        await ask(page)
        await expect(page.locator(".facts")).to_contain_text("waiting for your approval")
        await page.keyboard.press("Escape")
        await until_over(page)
        await expect(page.locator(".approval").first).to_have_attribute("data-state", "expired")
        await expect(page.locator(".facts")).to_contain_text("stopped by you")
        assert mcp.log == []


async def test_servers_in_the_settings_are_checked(open_page: OpenPage) -> None:
    async with opened(open_page, ANSWER) as (page, _):
        await page.get_by_role("button", name="Settings").click()
        await page.get_by_label("MCP servers").fill("demo")
        await page.keyboard.press("Escape")
        await ask(page)
        await expect(page.locator("#settings")).to_be_visible()
        await expect(page.locator(".episode")).to_have_count(0)
