from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.episode.tool_parser import (
    ArgumentsDelta,
    CallError,
    CallFailed,
    TextDelta,
    ToolCallEnd,
    ToolCallParser,
    ToolCallStart,
)
from tests.episode.test_tool_parser_json_span import OBJECTS


def check(name: str, arguments: dict[str, object] | None) -> str | None:
    if name not in ("f", "g"):
        return "no such function"
    return "a 'bad' argument" if arguments is not None and "bad" in arguments else None


def read(
    pieces: list[str], *, cut_off: bool = False, strict: bool = True
) -> tuple[str, list[tuple[str, str]], int]:
    """Text, calls as (name, arguments), and how many of them were finished."""
    parser = ToolCallParser(check, strict=strict)
    events = [event for piece in pieces for event in parser.feed(piece)] + parser.end(cut_off=cut_off)
    text, calls, done = "", list[list[str]](), 0
    for event in events:
        match event:
            case TextDelta(content):
                text += content
            case ToolCallStart(index, name):
                assert index == len(calls)
                calls.append([name, ""])
            case ArgumentsDelta(index, wrote):
                assert index == len(calls) - 1
                calls[index][1] += wrote
            case ToolCallEnd():
                done += 1
            case CallFailed(index):
                assert index == len(calls) - 1
                calls.pop()
    return text, [(name, arguments) for name, arguments in calls], done


def call(name: str, arguments: Any, *, swapped: bool = False) -> str:
    fields = {"name": name, "arguments": arguments}
    if swapped:
        fields = {"arguments": arguments, "name": name}
    return f"<tool_call>\n{json.dumps(fields, ensure_ascii=False)}\n</tool_call>"


@given(
    st.lists(st.tuples(st.sampled_from("fg"), OBJECTS.filter(lambda o: "bad" not in o)), max_size=3),
    st.data(),
)
def test_calls_do_not_depend_on_the_cuts(
    calls: list[tuple[str, dict[str, object]]], data: st.DataObject
) -> None:
    text = "I look it up.\n" + "\n".join(call(name, arguments) for name, arguments in calls)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    expected = [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]
    content = "I look it up." if calls else "I look it up.\n"
    assert read(pieces) == (content, expected, len(calls))
    assert read(list(text)) == read([text])


def test_arguments_are_passed_on_while_written() -> None:
    parser = ToolCallParser(check)
    assert parser.feed('<tool_call>\n{"name": "f", "arg') == []
    assert parser.feed('uments": {"a": "</tool_') == [
        ToolCallStart(0, "f"),
        ArgumentsDelta(0, '{"a": "</tool_'),
    ]
    assert parser.feed('call>"}}') == [ArgumentsDelta(0, 'call>"}')]
    assert parser.feed("\n</tool_call>") == [ToolCallEnd(0)]


def test_accepts_other_key_orders_and_no_arguments() -> None:
    assert read([call("f", {"x": 1}, swapped=True)]) == ("", [("f", '{"x": 1}')], 1)
    assert read(['<tool_call>{"name": "g"}</tool_call>']) == ("", [("g", "{}")], 1)


def test_last_closing_tag_is_optional() -> None:
    whole = call("f", {"x": 1})
    for end in ("\n</tool_call>", "}\n</tool_call>"):
        assert read([whole.removesuffix(end)]) == ("", [("f", '{"x": 1}')], 1)


@pytest.mark.parametrize(
    "text",
    [
        call("h", {}),
        call("h", {}, swapped=True),
        call("f", {"bad": 1}),
        call("f", {"bad": 1}, swapped=True),
        call("f", []),
        call("f", "{}"),
        "<tool_call>call f</tool_call>",
        "<tool_call>",
        '<tool_call>{"name": "f", "arguments": {"a": }}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}, "more": 1}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": "',
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
    ],
)
def test_rejects_invalid_calls(text: str) -> None:
    for pieces in ([text], list(text)):
        with pytest.raises(CallError, match="is invalid") as caught:
            read(pieces)
        assert caught.value.written or text == "<tool_call>"


def test_truncated_call_is_not_an_error() -> None:
    assert read(['ok <tool_call>{"name": "f", "arguments": {"a": "b'], cut_off=True) == (
        "ok",
        [("f", '{"a": "b')],
        0,
    )
    assert read(['<tool_call>{"na'], cut_off=True) == ("", [], 0)


@given(st.text(alphabet='<tool_ca>{"}nme:f/\\ \n', max_size=60))
def test_any_text_is_parsed_or_rejected(text: str) -> None:
    outcomes = []
    for pieces in ([text], list(text)):
        try:
            outcomes.append(read(pieces))
        except CallError:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "text",
    [
        call("h", {}),
        call("f", []),
        "I see.\n\n<tool_call>call f</tool_call> and\n" + call("f", {}),
        "<tool_call>",
        " <tool_call>",
        '<tool_call>{"name": "f", "arguments": {"a": }}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": "',
    ],
)
def test_lenient_parser_returns_unparsable_calls_as_text(text: str) -> None:
    for pieces in ([text], list(text)):
        assert read(pieces, strict=False) == (text, [], 0)


def test_lenient_parser_keeps_earlier_calls() -> None:
    assert read([call("f", {"x": 1}) + " <tool_call>?"], strict=False) == (
        " <tool_call>?",
        [("f", '{"x": 1}')],
        1,
    )


def test_lenient_parser_does_not_check_schemas() -> None:
    for swapped in (False, True):
        assert read([call("f", {"bad": 1}, swapped=swapped)], strict=False)[1:] == ([("f", '{"bad": 1}')], 1)
    assert read([call("f", '{"a": 1}')], strict=False)[1:] == ([("f", '{"a": 1}')], 1)
    more = '<tool_call>{"name": "f", "arguments": {}, "more": 1}</tool_call>'
    assert read([more], strict=False) == ("", [("f", "{}")], 1)


@given(st.text(alphabet='<tool_ca>{"}nme:f/\\ \n', max_size=60), st.booleans())
def test_lenient_parser_accepts_any_text_in_any_cut(text: str, cut_off: bool) -> None:
    whole = read([text], strict=False, cut_off=cut_off)
    assert read(list(text), strict=False, cut_off=cut_off) == whole
