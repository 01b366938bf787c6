"""Rendering of answers: Markdown, mathematics, files, hostile text; keyboard, narrow screens and themes."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from service.sandbox.base import ExecutionResult, OnOutput, OutputChunk, Session, SessionLimits
from tests.playground.conftest import OpenPage, ask, until_over
from tests.playground.test_page import ANSWER, ASK, app
from tests.support.fake_files import FakeFileSandbox
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

MARKDOWN = r"""# Result

Some **bold** text, `code` and $5 or $6, a [link](https://example.com/a) and a [bad one](javascript:alert(1)).

| n | square |
|---|-------:|
| 2 | 4 |

$$
\int_0^1 x^2\,dx
= \frac{1}{3}
$$

Inline \(e^{i\pi}\) and \[ a + b \] and $\sqrt{2}$, but $\undefined{$ stays.

```js
const answer = 42;
```

![a picture](https://example.com/leak.png)

So \boxed{\frac{1}{\sqrt{2}}} or \boxed{Paris}."""
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script><svg onload=alert(3)>"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE_TABLE = (
    "<table onclick='alert(1)' style='position:fixed' class='primary' id='question'><tr><td>cell"
    "<script>alert(2)</script><img src=x onerror=alert(3)><a href='javascript:alert(4)'>x</a>"
    "<form action='/v1/files'><input></form></td></tr></table>"
    "<iframe srcdoc='<script>alert(5)</script>'></iframe><style>*{display:none}</style>"
)


async def answer(page: Page, text: str, engine: ScriptedEngine) -> None:
    engine._turns[:] = [text + EOS]
    await ask(page)
    await until_over(page)


async def test_markdown_and_formulas_are_rendered(open_page: OpenPage) -> None:
    engine = ScriptedEngine("x")
    async with serve(make_app(engine, ScriptedSandbox(lambda blocks: printed("")))) as served:
        page = await open_page(served.url)
        await answer(page, MARKDOWN, engine)
        text = page.locator(".text")
        await expect(text.locator("h3")).to_have_text("Result")
        await expect(text.locator("strong")).to_have_text("bold")
        await expect(text.locator("p").first).to_contain_text("$5 or $6")
        await expect(text.locator("td.right")).to_have_text("4")
        await expect(text.locator(".maths.display .katex-display")).to_have_count(2)
        await expect(text.locator(".katex")).to_have_count(5)
        await expect(text).to_contain_text("but \\undefined{ stays")
        link = text.locator("a[href]")
        assert await link.evaluate_all("all => all.map(a => a.href)") == [
            "https://example.com/a",
            "https://example.com/leak.png",
        ]
        assert await link.first.get_attribute("rel") == "noopener noreferrer nofollow"
        await expect(text.locator(".hljs-keyword")).to_have_text("const")
        await expect(text.locator("mark.answer .katex .mfrac").first).to_be_visible()
        await expect(text.locator("mark.answer").last).to_have_text("Paris")
        await text.locator(".fence button").click()
        assert await page.evaluate("navigator.clipboard.readText()") == "const answer = 42;\n"
        # KaTeX's fonts are served by this server.
        assert await page.evaluate("document.fonts.ready.then(() => document.fonts.check('16px KaTeX_Main'))")


async def test_copy_buttons_copy_code_and_the_whole_answer(open_page: OpenPage) -> None:
    async with serve(app(ASK, ANSWER)) as served:
        page = await open_page(served.url)
        await ask(page)
        await until_over(page)
        copied = "navigator.clipboard.readText()"
        await page.locator(".card button").first.click()
        assert await page.evaluate(copied) == "x = 6 * 7"
        await page.locator(".observation button").click()
        assert await page.evaluate(copied) == "42"
        await page.locator(".episode footer button").first.click()
        whole = await page.evaluate(copied)
        assert whole.startswith("Let\n\n```python\nx = 6 * 7\n```\n\nand")
        assert whole.endswith("\n\n```output\n42\n```\n\nIt is \\boxed{42}.")


async def test_model_output_is_never_markup(open_page: OpenPage) -> None:
    fenced = f"```html\n{EVIL}\n```\n[x](data:text/html,{EVIL}) $\\href{{javascript:alert(1)}}{{x}}$"
    turns = f"{EVIL}\n```python\n'{EVIL}'\n```<tool_call>", f"{EVIL}\n{fenced} \\boxed{{{EVIL}}}{EOS}"
    async with serve(app(*turns, output=EVIL)) as served:
        page = await open_page(served.url)
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        await ask(page, EVIL)
        await until_over(page)
        for place in (".text >> nth=0", ".card code", ".observation pre", "mark.answer", ".asked"):
            await expect(page.locator(f"#thread {place}")).to_contain_text(EVIL)
        await expect(page.locator("#history .title")).to_contain_text("<img src=x")
        unsafe = (
            "#thread :is(img, script, iframe, object, form, style, [onerror], [onload], [href^=javascript])"
        )
        assert await page.locator(unsafe).count() == 0
        assert await page.locator("#thread svg:not(.timeline svg)").count() == 0


async def test_trusted_types_stop_markup_that_gets_through(browser: Browser) -> None:
    async with serve(app(ANSWER)) as served, await browser.new_page() as page:
        await page.goto(served.url)
        await ask(page)  # DOMPurify creates its policy when it is first used
        await until_over(page)
        error = await page.evaluate(
            "(() => { try { document.body.innerHTML = '<b>x</b>' } catch (e) { return e.name } })()"
        )
        assert error == "TypeError"
        create = "name => { try { trustedTypes.createPolicy(name, {}) } catch (e) { return e.name } }"
        for name in ("mine", "dompurify"):  # DOMPurify's own policy can't be created twice
            assert await page.evaluate(create, name) == "TypeError"


async def test_files_reach_the_code_and_come_back(open_page: OpenPage) -> None:
    code = (
        f"work['d/out.txt'] = b'hello'; show('image/png', {PNG!r})\n"
        f"show('text/html', {HOSTILE_TABLE.encode()!r})\nprint(inputs)"
    )
    engine = ScriptedEngine(f"Run\n```python\n{code}\n```<tool_call>", f"Done.{EOS}")
    app = make_app(engine, FakeFileSandbox(), api_keys="key")
    async with serve(app, "key") as served:
        page = await open_page(served.url, blocks=True)
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        await page.fill("#key", "key")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Escape")
        await expect(page.locator("#model")).to_have_value("scripted")
        await drop(page, "sales.csv", "1,2")
        await expect(page.locator("#attached")).to_contain_text("sales.csv · 3 B")
        await page.set_input_files(
            "#file-input", {"name": "b.txt", "mimeType": "text/plain", "buffer": b"xy"}
        )
        await expect(page.locator("#attached li")).to_have_count(2)
        await page.get_by_label("Remove b.txt").click()
        await ask(page, "Sum?")
        await until_over(page)
        await expect(page.locator(".bubble .file")).to_have_text("sales.csv")
        await expect(page.locator("#attached")).to_be_hidden()
        await page.locator(".seen summary").click()
        await expect(page.locator(".observation pre")).to_contain_text("'sales.csv': b'1,2'")
        width = "image => image.decode().then(() => image.naturalWidth)"
        assert await page.locator("figure img").evaluate(width) > 0
        async with page.expect_download() as download:
            await page.get_by_role("button", name="out.txt").click()
        assert (await (await download.value).path()).read_bytes() == b"hello"
        table = page.locator(".seen .table")
        await expect(table.locator("td")).to_contain_text("cell")
        kept = "node => [...node.querySelectorAll('*')].map(e => [e.tagName, e.attributes.length])"
        assert {tag for tag, _ in await table.evaluate(kept)} <= {"TABLE", "TBODY", "TR", "TD", "DIV"}
        assert {count for _, count in await table.evaluate(kept)} == {0}


async def drop(page: Page, name: str, content: str) -> None:
    transfer = await page.evaluate_handle(
        "([name, content]) => { const data = new DataTransfer(); data.items.add(new File([content], name)); "
        "return data; }",
        [name, content],
    )
    await page.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
    await expect(page.locator("#drop")).to_be_visible()
    await page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    await expect(page.locator("#drop")).to_be_hidden()


async def test_calls_of_tools_are_listed(open_page: OpenPage) -> None:
    async with serve(app(ANSWER)) as served:
        page = await open_page(served.url)
        times = {"started_at": 1, "finished_at": 2}
        calls = [
            {"name": "search", "arguments": {"q": "x"}, "status": "ok", "output": ["a"], **times},
            {"name": "fetch", "arguments": {}, "status": "error", "error": "timed out", **times},
        ]
        tool = {
            "id": "t",
            "status": "ok",
            "blocks": [{"code": "x"}],
            "calls": calls,
            "waited_ms": 1,
            "flushed_at": 1,
        }
        await page.evaluate(
            "async tool => { const { resultNodes } = await import('/playground/outputs.js'); "
            "document.getElementById('thread').append(...resultNodes(tool, true)); }",
            tool,
        )
        await expect(page.locator(".calls li")).to_have_text(
            ['search(q="x") → ["a"]1.00 s', "fetch() → timed out1.00 s"]
        )


async def test_output_of_running_code_is_shown(open_page: OpenPage) -> None:
    gate = asyncio.Event()

    class Gated(ScriptedSandbox):
        def session(self, limits: SessionLimits, tools: object = None) -> Session:
            session = super().session(limits)
            flush = session.flush

            async def slow(on_output: OnOutput | None = None) -> ExecutionResult:
                assert on_output is not None
                on_output(OutputChunk("stdout", "step 1\n"))
                on_output(OutputChunk("stdout", "<b>step 2</b>", attempt=2))
                await gate.wait()
                return await flush()

            session.flush = slow  # type: ignore[method-assign]
            return session

    async with serve(make_app(ScriptedEngine(ASK, ANSWER), Gated(lambda blocks: printed("42")))) as served:
        page = await open_page(served.url)
        await ask(page)
        live = page.locator(".observation.live")
        await expect(live).to_contain_text("Output so far")
        await expect(live.locator("pre")).to_have_text("<b>step 2</b>")  # the first attempt is void
        gate.set()
        await until_over(page)
        await expect(live).to_have_count(0)
        await expect(page.locator(".observation pre")).to_have_text("42")


async def test_keyboard_reaches_everything(open_page: OpenPage) -> None:
    async with serve(app(ASK, ANSWER)) as served:
        page = await open_page(served.url)
        await expect(page.locator("#question")).to_be_focused()
        await page.locator("#theme").focus()
        await page.keyboard.press("?")
        await expect(page.locator("#help")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.locator("#help")).to_be_hidden()
        await expect(page.locator("#theme")).to_be_focused()
        await page.keyboard.press("/")
        await expect(page.locator("#question")).to_be_focused()
        await page.keyboard.type("why?")
        await expect(page.locator("#help")).to_be_hidden()
        await page.keyboard.press("Enter")
        await until_over(page)
        await page.keyboard.press("ArrowUp")
        await expect(page.get_by_label("Edit the question")).to_have_value("why?")
        await page.keyboard.press("Escape")
        await page.locator(".regenerate").focus()
        await page.keyboard.press("t")
        await expect(page.locator(".timeline")).to_be_visible()
        await page.keyboard.press("n")
        await expect(page.locator("#welcome")).to_be_visible()
        await page.evaluate("document.activeElement.blur()")
        unnamed = []
        for _ in range(14):
            await page.keyboard.press("Tab")
            focused = page.locator(":focus-visible")
            if await focused.count() and await focused.get_attribute("id") != "question":
                assert await focused.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
                name = "e => e.ariaLabel || e.innerText || e.labels?.[0]?.innerText || e.title"
                unnamed += (
                    [] if await focused.evaluate(name) else [await focused.evaluate("e => e.outerHTML")]
                )
        assert unnamed == []


async def test_theme_is_remembered(open_page: OpenPage) -> None:
    async with serve(app(ANSWER)) as served:
        page = await open_page(served.url, color_scheme="light")
        scheme = "getComputedStyle(document.documentElement).colorScheme"
        await page.locator("#theme").click()
        await page.locator("#theme").click()
        await expect(page.locator("#theme")).to_have_text("Theme: dark")
        await page.reload()
        assert await page.evaluate(scheme) == "dark"
        await expect(page.locator("#theme")).to_have_text("Theme: dark")


@pytest.mark.parametrize("scheme", ["dark", "light"])
async def test_phone_is_readable_and_follows_the_answer(open_page: OpenPage, scheme: Any) -> None:
    long = "".join(f"Line {number} of a long answer.\n\n" for number in range(60))
    async with serve(app(ASK, f"{long}{'wide' * 60}\n\n{ANSWER}")) as served:
        page = await open_page(served.url, viewport={"width": 360, "height": 740}, color_scheme=scheme)
        await expect(page.locator("#sidebar")).to_be_hidden()
        await page.locator("#open-sidebar").click()
        await expect(page.locator("#new")).to_be_focused()
        await page.keyboard.press("Escape")
        await expect(page.locator("#sidebar")).to_be_hidden()
        await expect(page.locator("#open-sidebar")).to_be_focused()
        await ask(page)
        await until_over(page)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        left = "(p => p.scrollHeight - p.scrollTop - p.clientHeight)(document.scrollingElement)"
        await expect(page.locator(".time")).to_be_in_viewport()
        assert await page.evaluate(left) < 60
        # The page scrolls, not a box in it.
        inner = "all => all.filter(e => e.scrollHeight > e.clientHeight + 4).length"
        assert await page.locator(".transcript, .text, .episode").evaluate_all(inner) == 0
        await page.mouse.wheel(0, -2000)
        await expect(page.locator("#to-end")).to_be_visible()
        await page.locator("#to-end").click()
        await expect(page.locator(".time")).to_be_in_viewport()
        pairs = [
            (".text", "html"),
            (".facts", "html"),
            (".state", ".card"),
            (".marker code", "html"),
            (".asked", ".bubble"),
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
