"""Take the picture of the playground in the documentation: docs/images/playground.png.

Requires a running server with the quickstart model, and Chromium (IHGRPO_BROWSER)::

    ih-grpo serve &
    IHGRPO_BROWSER=$(scripts/ensure-test-tools browser) python tests/playground/screenshot.py http://127.0.0.1:8000
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

PICTURE = Path(__file__).resolve().parents[2] / "docs/images/playground.png"
QUESTIONS = ("What is 739184 times 52967 plus 90412 times 33771?", "now add 17 to that")


def main(url: str) -> None:
    """Ask the questions on the page at ``url`` and save the picture of the first answer with its timeline."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ["IHGRPO_BROWSER"])
        page = browser.new_page(viewport={"width": 1240, "height": 1180}, color_scheme="light")
        page.goto(url)
        for count, question in enumerate(QUESTIONS, start=1):
            page.fill("#question", question)
            page.locator("#question").press("Enter")
            expect(page.locator(".episode[data-mode=over]")).to_have_count(count, timeout=60_000)
        page.locator(".time summary").first.click()
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(300)  # the button at the end of the page appears
        page.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
