from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

expect.set_options(timeout=60_000)  # no test is decided by how fast the machine is
OpenPage = Callable[..., Coroutine[Any, Any, Page]]


async def ask(page: Page, question: str = "6 * 7?") -> None:
    """Type a question and send it."""
    await page.fill("#question", question)
    await page.locator("#question").press("Enter")


async def until_over(page: Page, answers: int = 1) -> None:
    """Wait until all ``answers`` on the page are complete."""
    await expect(page.locator(".episode[data-mode=over]")).to_have_count(answers)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without a browser a test that needs one is skipped; where it must not be missing, it fails."""
    if item.get_closest_marker("browser") is None or os.environ.get("IHGRPO_BROWSER"):
        return
    missing = "no browser: `scripts/ensure-test-tools browser` finds or installs one, IHGRPO_BROWSER names it"
    if os.environ.get("IHGRPO_REQUIRE_BROWSER") == "1":
        pytest.fail(f"IHGRPO_REQUIRE_BROWSER=1, but {missing}", pytrace=False)
    pytest.skip(missing)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncGenerator[Browser, None]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=os.environ["IHGRPO_BROWSER"])
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(browser: Browser) -> AsyncGenerator[OpenPage, None]:
    """Opens an address in a new window. At the end no page may have complained in its console.

    With ``blocks`` the policy may block something, which the browser reports there.
    """
    complaints: list[str] = []
    contexts = []

    async def open_page(url: str, *, blocks: bool = False, **options: Any) -> Page:
        context = await browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options)
        contexts.append(context)
        page = await context.new_page()
        page.set_default_timeout(60_000)

        def note(message: ConsoleMessage) -> None:
            if message.type == "error" and not (blocks and message.text.endswith("has been blocked.")):
                complaints.append(message.text)

        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(url)
        return page

    yield open_page
    for context in contexts:
        await context.close()
    # Tests provoke network errors, which the browser reports by itself.
    assert [text for text in complaints if not text.startswith("Failed to load resource")] == []
