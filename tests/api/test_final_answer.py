from __future__ import annotations

import httpx
import pytest

from service.episode.accumulator import FinalAnswer
from tests.support import responses_api
from tests.support.responses_api import ANSWER, CODE_TOOL, FIRST, MARKER, SECOND, SEEN
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import Served, make_app, serve

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def found(*turns: str, complete: bool = True) -> str | None:
    answer = FinalAnswer()
    for number, turn in enumerate(turns):
        if number:
            answer.add_observation("\nCode execution result: 9\n</tool_call>\n")
        for character in turn:
            answer.add_text(character)
    return answer.result(complete=complete)


@pytest.mark.parametrize(
    ("turns", "answer"),
    [
        (("So \\boxed{42}.",), "42"),
        (("\\boxed{1} or \\boxed{\\frac{1}{2}}",), "\\frac{1}{2}"),
        (("It may be \\boxed{7}. Let me check.", "Yes, it is."), "7"),
        (("Let me compute.", " The sum is 12.\n"), "The sum is 12."),
        (("Hello there.",), "Hello there."),
        (("An open \\boxed{4",), "An open \\boxed{4"),
        ((" \n",), None),
        (("Let me compute.", ""), None),
    ],
)
def test_answer_is_the_last_box_or_the_last_turn(turns: tuple[str, ...], answer: str | None) -> None:
    assert found(*turns) == answer


def test_incomplete_turn_needs_a_box() -> None:
    assert found("The sum is", complete=False) is None
    assert found("\\boxed{3} and the sum", complete=False) == "3"


async def message(*turns: str, output: str = "42", **options: object) -> tuple[object, object]:
    """``final_answer`` of a completion, and of the last chunk of a stream."""
    answers = []
    for stream in (False, True):
        app = make_app(ScriptedEngine(*turns), ScriptedSandbox(lambda blocks: printed(output)))
        async with serve(app) as served:
            asked = served.openai.chat.completions.create(
                model="scripted",
                messages=[{"role": "user", "content": "?"}],
                stream=stream,
                **options,  # type: ignore[call-overload]
            )
            if not stream:
                reply = (await asked).choices[0].message
                assert isinstance(reply.content, str | None)
                answers.append(reply.final_answer)
            else:
                choices = [choice async for chunk in await asked for choice in chunk.choices]
                given = [getattr(choice.delta, "final_answer", "absent") for choice in choices]
                assert set(given[:-1]) == {"absent"}
                answers.append(given[-1])
    return answers[0], answers[1]


@pytest.mark.parametrize(
    ("turns", "answer"),
    [
        ((FIRST + SECOND + MARKER, ANSWER + EOS), "42"),
        (
            (FIRST + SECOND + MARKER, "It is 42." + EOS),
            "It is 42.",
        ),  # the observation's box is not the model's
        (("Hello." + EOS,), "Hello."),
        ((FIRST + EOS,), None),  # ends with code that never ran
    ],
)
async def test_final_answer_of_chat_completions(turns: tuple[str, ...], answer: str | None) -> None:
    assert await message(*turns) == (answer, answer)


async def test_printed_box_ends_the_episode_and_is_the_answer() -> None:
    assert await message(FIRST + MARKER, "?" + EOS, output="\\boxed{9}") == ("9", "9")


async def test_cut_reply_or_function_call_has_no_answer() -> None:
    assert await message("Hello there" + EOS, max_tokens=3) == (None, None)
    call = '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>' + EOS
    assert await message(call, tools=[WEATHER]) == (None, None)


async def test_answer_without_deferral_is_the_text() -> None:
    off = {"deferral": {"enabled": False}}
    assert await message("```python\n1\n```" + EOS, extra_body=off) == ("```python\n1\n```",) * 2


async def response(served: Served, **options: object) -> object:
    reply = await responses_api.ask(served, **options)
    async with httpx.AsyncClient(base_url=served.url) as client:
        stored = (await client.get(f"/v1/responses/{reply.id}")).json()
    assert stored["final_answer"] == reply.final_answer
    return reply.final_answer


@pytest.mark.parametrize(
    ("turns", "answer"),
    [
        ((FIRST + SECOND + MARKER, ANSWER + EOS), "42"),
        ((FIRST + MARKER, "It is 42." + EOS), "It is 42."),
        (("hm" + MARKER, "So it is 8." + EOS), "So it is 8."),  # nothing was pending
        ((FIRST + EOS,), None),
    ],
)
async def test_final_answer_of_responses(turns: tuple[str, ...], answer: str | None) -> None:
    async with responses_api.serving(ScriptedEngine(*turns)) as served:
        assert await response(served, tools=CODE_TOOL) == answer


async def test_last_event_of_a_response_stream_has_the_answer() -> None:
    async with responses_api.serving(responses_api.engine()) as served:
        stream = await responses_api.ask(served, tools=CODE_TOOL, stream=True)
        events = [event async for event in stream]
    answers = [event.response.final_answer for event in events if hasattr(event, "response")]
    assert answers == [None, None, "42"]
    assert SEEN not in str(answers)
