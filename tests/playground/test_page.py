"""Conversations on the page, in a real browser, on a server whose model says what the test wants."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from playwright.async_api import Page, expect

from service.sandbox.base import ExecutionResult
from tests.playground.conftest import OpenPage, ask, until_over
from tests.support.fake_files import FakeFileSandbox
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve
from tests.support.until import until

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

ASK = "Let\n```python\nx = 6 * 7\n```\nand\n```python\nprint(x)\n```<tool_call>"
ANSWER = f"It is \\boxed{{42}}.{EOS}"


def app(*turns: str, delay_s: float = 0.0, output: str = "42", **settings: Any) -> Any:
    return make_app(
        ScriptedEngine(*turns), ScriptedSandbox(lambda blocks: printed(output), delay_s), **settings
    )


def prompt(engine: ScriptedEngine, call: int = -1) -> str:
    return engine.tokenizer.decode(engine.calls[call][0])


async def titles(page: Page) -> list[str]:
    return await page.locator("#history .title").all_text_contents()


async def test_first_visit_shows_model_notice_and_examples(open_page: OpenPage) -> None:
    async with serve(app(ASK, ANSWER)) as served:
        page = await open_page(served.url)
        await expect(page.locator("#welcome-title")).to_have_text("Ask scripted")
        await expect(page.locator("#notice")).to_contain_text("This is the demo model")
        await page.locator(".example").first.click()
        await expect(page.locator("#question")).to_be_focused()
        await page.keyboard.press("Enter")
        await until_over(page)
        await expect(page.locator("#welcome")).to_be_hidden()
        await expect(page.locator("#demo")).to_be_visible()
        await expect(page.locator(".asked")).to_have_count(1)  # the question is not repeated


async def test_answer_has_cards_output_and_timeline(open_page: OpenPage) -> None:
    async with serve(app(ASK, ANSWER, delay_s=0.05)) as served:
        page = await open_page(served.url)
        await ask(page, "6 * 7?")
        await until_over(page)
        cards = page.locator(".card")
        await expect(cards).to_have_count(2)
        for card, code in ((cards.nth(0), "x = 6 * 7"), (cards.nth(1), "print(x)")):
            await expect(card).to_have_attribute("data-state", "done")
            await expect(card.locator("code")).to_have_text(code)
        await expect(page.locator(".observation pre")).to_have_text("42")
        await expect(page.locator("mark.answer")).to_have_text("42")
        kinds = await page.locator(".transcript > *").evaluate_all("all => all.map(each => each.className)")
        assert kinds == ["text", "card", "text", "card", "marker", "observation", "text"]
        await expect(page.locator("#status")).to_contain_text("Done: scripted · completed")
        await expect(page.locator("#status")).to_contain_text("The answer is 42.")
        await expect(page.locator(".timeline")).to_be_hidden()  # closed until someone opens it
        await page.locator(".time summary").click()
        lanes = await page.locator(".timeline .lane").all_text_contents()
        assert (lanes[0], lanes[-2:]) == ("writes", ["blocks 1–2", "waits"])


async def test_follow_up_continues_the_conversation_and_survives_a_reload(open_page: OpenPage) -> None:
    engine = ScriptedEngine(ASK, ANSWER, f"It is \\boxed{{59}}.{EOS}")
    async with serve(make_app(engine, ScriptedSandbox(lambda blocks: printed("42")))) as served:
        page = await open_page(served.url)
        await ask(page, "6 * 7?")
        await until_over(page)
        await page.keyboard.type("first line")
        await page.keyboard.press("Shift+Enter")
        await page.keyboard.type("now add 17 to that")
        await page.keyboard.press("Enter")
        await until_over(page, 2)
        # The model reads its own code, marker and output again.
        assert "print(x)\n```<tool_call>\nCode execution result: 42" in prompt(engine)
        assert "first line\nnow add 17 to that" in prompt(engine)
        await page.reload()
        await expect(page.locator(".asked")).to_have_text(["6 * 7?", "first line\nnow add 17 to that"])
        await expect(page.locator("mark.answer")).to_have_text(["42", "59"])
        assert await titles(page) == ["6 * 7?"]
        await page.locator("#new").click()
        await expect(page.locator(".asked")).to_have_count(0)
        await page.locator("#history .title").click()
        await expect(page.locator(".asked")).to_have_count(2)


async def test_editing_and_regenerating_add_branches(open_page: OpenPage) -> None:
    engine = ScriptedEngine(*(f"Answer {number}.{EOS}" for number in range(1, 6)))
    async with serve(make_app(engine, ScriptedSandbox(lambda blocks: printed("")))) as served:
        page = await open_page(served.url)
        for count, question in ((1, "Q-one"), (2, "Q-two")):
            await ask(page, question)
            await until_over(page, count)
        await page.locator(".edit").last.click()
        await expect(page.get_by_label("Edit the question")).to_be_focused()
        await page.keyboard.press("Escape")
        await expect(page.locator(".edit").last).to_be_focused()
        await page.keyboard.press("Enter")
        await page.get_by_label("Edit the question").fill("Q-zwei")
        await page.keyboard.press("Enter")
        await expect(page.locator(".episode").last).to_contain_text("Answer 3.")
        await until_over(page, 2)
        assert all(text in prompt(engine) for text in ("Q-zwei", "Answer 1."))
        assert "Q-two" not in prompt(engine)
        await page.locator(".regenerate").first.click()
        await expect(page.locator(".episode").last).to_contain_text("Answer 4.")
        await until_over(page, 1)
        await expect(page.locator(".branches")).to_contain_text("2 / 2")
        await page.get_by_label("Earlier version").click()
        await expect(page.locator(".asked")).to_have_text(["Q-one", "Q-zwei"])
        await expect(page.locator(".branches")).to_have_text(["‹1 / 2›", "‹2 / 2›"])
        await page.get_by_label("Earlier version").last.click()
        await expect(page.locator(".episode").last).to_contain_text("Answer 2.")
        await ask(page, "Q-three")
        await until_over(page, 3)
        assert "Q-two" in prompt(engine)
        assert "Q-zwei" not in prompt(engine)


async def test_branch_reports_that_variables_are_gone(open_page: OpenPage) -> None:
    run = "Run\n```python\nwork['a'] = b'1'\n```<tool_call>"
    engine = ScriptedEngine(run, "one" + EOS, run, "two" + EOS, "three" + EOS)
    async with serve(make_app(engine, FakeFileSandbox())) as served:
        page = await open_page(served.url)
        for count in (1, 2):
            await ask(page, f"question {count}")
            await until_over(page, count)
        await expect(page.locator(".episode .notice:visible")).to_have_count(0)
        await page.locator(".regenerate").last.click()
        await expect(page.locator(".episode").last).to_contain_text("three")
        await expect(page.locator(".episode .notice").last).to_contain_text("container")


async def test_block_is_pending_then_runs_and_escape_stops_it(open_page: OpenPage) -> None:
    engine, sandbox = ScriptedEngine(ASK, ANSWER), ScriptedSandbox(lambda blocks: printed(""), 30)
    async with serve(make_app(engine, sandbox)) as served:
        page = await open_page(served.url)
        await ask(page)
        await expect(page.locator(".card").last).to_have_attribute("data-state", "running")
        await expect(page.locator("#status")).to_have_text("2 blocks running.")
        await expect(page.locator("#go")).to_be_hidden()
        await page.keyboard.press("Escape")
        await until_over(page)
        await expect(page.locator(".facts")).to_contain_text("stopped by you")
        await expect(page.locator(".facts")).to_contain_text("2 blocks never ran")
        await expect(page.locator(".card").last).to_have_attribute("data-state", "idle")
        await expect(page.locator("#go")).to_be_visible()
        await until(lambda: all(session.closed for session in sandbox.sessions))  # the server has noticed
        sandbox._delay_s = 0
        await ask(page, "and now?")  # continues from the stopped answer
        await until_over(page, 2)
        assert "6 * 7?" in prompt(engine)
        await expect(page.locator(".episode .problem:visible")).to_have_count(0)


async def test_errors_are_readable_and_keep_the_conversation(open_page: OpenPage) -> None:
    def broken(blocks: list[str]) -> ExecutionResult:
        raise RuntimeError("a bug")

    async with serve(make_app(ScriptedEngine(ASK), ScriptedSandbox(broken))) as served:
        page = await open_page(served.url)
        problem = page.locator(".episode .problem span")
        await page.locator("#open-settings").click()
        await page.fill("[name=max_turns]", "99")
        await page.keyboard.press("Escape")
        await ask(page)
        await expect(problem).to_contain_text("'deferral.max_turns' must be at most 5 on this server.")
        await page.locator("#open-settings").click()
        await page.fill("[name=max_turns]", "")
        await page.keyboard.press("Escape")
        await page.locator(".retry").click()
        await until_over(page, 1)
        await expect(page.locator(".branches")).to_contain_text("2 / 2")
        await expect(problem).to_be_visible()
        await expect(page.locator(".card")).to_have_count(2)  # received text is kept
        await page.route("**/v1/responses", lambda route: route.abort())
        await ask(page, "again")
        await expect(problem.last).to_have_text("The server is not reachable. Check that it is running.")
        await expect(page.locator(".asked")).to_have_text(["6 * 7?", "again"])
        await page.goto(f"{served.url}/#e=nonsense")
        await page.reload()
        await expect(page.locator("#problem")).to_contain_text("The link is damaged")
        await page.goto(f"{served.url}/#r=resp_unknown")
        await page.reload()
        await expect(page.locator("#problem")).to_contain_text("'resp_unknown' not found")


async def test_conversation_continues_as_text_if_the_server_lost_it(open_page: OpenPage) -> None:
    engine = ScriptedEngine(ASK, ANSWER, f"Yes.{EOS}")
    async with serve(make_app(engine, ScriptedSandbox(lambda blocks: printed("42")))) as served:
        page = await open_page(served.url)
        await ask(page)
        await until_over(page)
        stored = await page.evaluate("JSON.parse(localStorage.getItem(localStorage.key(0))).turns[0]")
        await served.openai.responses.delete(stored["responseId"])
        await ask(page, "sure?")
        await until_over(page, 2)
        await expect(page.locator(".episode .notice").last).to_contain_text("sent again as text")
        assert all(text in prompt(engine) for text in ("6 * 7?", "It is \\boxed{42}."))


async def test_stored_answer_opens_by_its_id(open_page: OpenPage) -> None:
    engine = ScriptedEngine(ASK, ANSWER, f"Then 59.{EOS}")
    async with serve(make_app(engine, ScriptedSandbox(lambda blocks: printed("42")))) as served:
        tools: Any = [{"type": "code_interpreter", "container": {"type": "auto"}}]
        first = await served.openai.responses.create(model="scripted", input="6 * 7?", tools=tools)
        second = await served.openai.responses.create(
            model="scripted", input="plus 17?", previous_response_id=first.id
        )
        page = await open_page(f"{served.url}/#r={second.id}")
        await expect(page.locator(".asked")).to_have_text(["6 * 7?", "plus 17?"])
        await expect(page.locator(".card")).to_have_count(2)
        await expect(page.locator(".card").last).to_have_attribute("data-state", "done")
        await expect(page.locator(".observation pre")).to_have_text("42")
        await expect(page.locator(".episode").last).to_contain_text("Then 59.")
        assert await titles(page) == ["6 * 7?"]


async def test_history_can_be_renamed_exported_and_deleted(open_page: OpenPage) -> None:
    async with serve(app(ASK, ANSWER)) as served:
        page = await open_page(served.url)
        await ask(page)
        await until_over(page)
        answers = iter(["Products", None])
        page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept(next(answers) or "")))
        menu = page.locator(".menu summary")
        await menu.click()
        await page.get_by_role("button", name="Rename").click()
        await expect(page.locator("#history .title")).to_have_text("Products")
        assert "Products" in await page.title()
        exported = {}
        for kind in ("Markdown", "JSON"):
            await menu.click()
            async with page.expect_download() as download:
                await page.get_by_role("button", name=f"Export as {kind}").click()
            path = await (await download.value).path()
            exported[(await download.value).suggested_filename] = path.read_text(encoding="utf-8")
        assert set(exported) == {"products.md", "products.json"}
        for part in ("# Products", "6 * 7?", "```python\nprint(x)\n```", "```output\n42\n```", "boxed{42}"):
            assert part in exported["products.md"]
        assert json.loads(exported["products.json"])["turns"][0]["question"] == "6 * 7?"
        await menu.click()
        await page.get_by_role("button", name="Delete").click()
        await expect(page.locator("#history li")).to_have_count(0)
        await expect(page.locator("#welcome")).to_be_visible()
        assert await page.evaluate("Object.keys(localStorage).filter(k => k.includes('conversation'))") == []


async def test_full_storage_deletes_the_oldest_conversation_and_reports_it(open_page: OpenPage) -> None:
    async with serve(app(ANSWER)) as served:
        page = await open_page(served.url)
        await page.evaluate(
            """() => {
                const key = "ih-grpo.conversation.old";
                const old = { id: "old", title: "Old one", updated: 1, turns: [] };
                localStorage.setItem(key, JSON.stringify(old));
                const set = Storage.prototype.setItem;
                Storage.prototype.setItem = function (...entry) {
                    if (localStorage.getItem(key)) throw new DOMException("full", "QuotaExceededError");
                    set.apply(this, entry);
                };
            }"""
        )
        await ask(page)
        await until_over(page)
        await expect(page.locator("#problem")).to_contain_text("deleted: Old one")
        assert await titles(page) == ["6 * 7?"]


async def test_settings_reach_the_request_and_are_kept(open_page: OpenPage) -> None:
    engine = ScriptedEngine(ANSWER)
    async with serve(make_app(engine, ScriptedSandbox(lambda blocks: printed("")))) as served:
        page = await open_page(served.url)
        await page.locator("#open-settings").click()
        values = {"temperature": "0.5", "top_p": "0.9", "max_output_tokens": "50", "seed": "7"}
        for name, value in {"instructions": "Be brief.", **values}.items():
            await page.fill(f"[name={name}]", value)
        await page.keyboard.press("Escape")
        await ask(page)
        await until_over(page)
        sampling = engine.calls[-1][1]
        assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.9, 7_000_021)
        assert "Be brief." in prompt(engine)
        await page.reload()
        await expect(page.locator("[name=instructions]")).to_have_value("Be brief.")
        await page.locator("#open-settings").click()
        await page.locator("input[name=enabled]").uncheck()
        await page.keyboard.press("Escape")
        await page.locator("#new").click()
        await expect(page.locator("#notice")).to_contain_text("With deferred execution off it can't answer")


async def test_notice_is_for_the_demo_model_only(open_page: OpenPage, tiny_checkpoint: Any) -> None:
    async with serve(app(EOS, model=str(tiny_checkpoint))) as served:
        page = await open_page(served.url)
        await expect(page.locator("#model")).to_have_value("scripted")
        await expect(page.locator("#notice")).to_be_hidden()
        await expect(page.locator(".example")).to_contain_text(["Numbers", "A plot"])
