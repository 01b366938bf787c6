from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema_rs
import pytest
import torch

from service.engines.base import InvalidRequestError, Sampling, StructureKind
from service.engines.settings import TransformersSettings
from service.engines.tokenizer import HFTokenizer
from service.engines.transformers.engine import TransformersEngine
from service.engines.transformers.grammar import Grammar, GrammarCompiler

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["a", "bc"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "on": {"type": "boolean"},
    },
    "required": ["kind", "count", "on"],
    "additionalProperties": False,
}
TEXT = '{"kind": "bc", "count": 7, "on": true}'


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> HFTokenizer:
    return HFTokenizer(str(tiny_checkpoint))


@pytest.fixture(scope="module")
def compiler(tokenizer: HFTokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer)


def fitting(grammar: Grammar, tokenizer: HFTokenizer, stop: int) -> set[int]:
    row = torch.zeros(tokenizer.vocab_size + 3)
    grammar.mask(row, [stop])
    return set(torch.nonzero(row == 0)[:, 0].tolist())


def test_mask_allows_only_the_schema(compiler: GrammarCompiler, tokenizer: HFTokenizer) -> None:
    grammar = compiler.compile("json_schema", json.dumps(SCHEMA))
    stop = tokenizer.eos_token_id
    assert stop is not None
    ids = tokenizer.encode(TEXT, allow_special=False)
    wrong = tokenizer.encode("x", allow_special=False)[0]
    for token in ids:
        allowed = fitting(grammar, tokenizer, stop)
        assert token in allowed
        assert stop not in allowed
        assert max(allowed) < tokenizer.vocab_size
        grammar.accept(token)
    assert wrong not in fitting(compiler.compile("json_schema", json.dumps(SCHEMA)), tokenizer, stop)
    assert fitting(grammar, tokenizer, stop) == {stop}


def test_rejects_unsupported_schema(compiler: GrammarCompiler) -> None:
    with pytest.raises(InvalidRequestError, match="contains"):
        compiler.compile("json_schema", '{"type": "array", "contains": {}}')


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("regex", "(", "the regular expression can't be enforced"),
        ("regex", "a(?=b)", "the regular expression can't be enforced"),
        ("grammar", "root := x", "the grammar can't be read"),
        ("grammar", "root ::= nothing", "Rule .nothing. not found"),
        ("json_schema", "{", "the schema can't be read"),
    ],
)
def test_rejects_unusable_constraint(
    compiler: GrammarCompiler, kind: StructureKind, text: str, message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        compiler.compile(kind, text)


@pytest.mark.parametrize(
    ("kind", "text", "right", "wrong"),
    [
        ("regex", r"[0-9]{2}\.[ab]", "42.b", "42xb"),
        ("regex", "^(yes|no)$", "no", "on"),
        ("grammar", 'root ::= "<" word ">"\nword ::= [a-z]+', "<ab>", "<1>"),
        ("grammar", 'start: "<" word ">"\nword: /[a-z]+/', "<ab>", "<1>"),
    ],
)
def test_mask_allows_only_regex_or_grammar(
    compiler: GrammarCompiler, tokenizer: HFTokenizer, kind: StructureKind, text: str, right: str, wrong: str
) -> None:
    stop = tokenizer.eos_token_id
    assert stop is not None
    for reply, fits in ((right, True), (wrong, False)):
        grammar = compiler.compile(kind, text)
        allowed = True
        for token in tokenizer.encode(reply, allow_special=False):
            allowed = allowed and token in fitting(grammar, tokenizer, stop)
            if allowed:
                grammar.accept(token)
        assert (allowed and stop in fitting(grammar, tokenizer, stop)) is fits


async def test_random_model_writes_json_of_the_schema(tiny_checkpoint: Path) -> None:
    engine = TransformersEngine(TransformersSettings(model=str(tiny_checkpoint), max_slots=2))
    assert "json_schema" in engine.capabilities
    await engine.start()
    try:
        for seed in range(3):
            for schema in (SCHEMA, {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}):
                sampling = Sampling(seed=seed, max_tokens=400, json_schema=json.dumps(schema))
                prompt = engine.tokenizer.encode("?", allow_special=False)
                chunks = [c async for c in engine.generate(prompt, sampling, engine.eos_token_ids)]
                assert chunks[-1].finish_reason == "stop"
                *written, end = chunks
                text = "".join(chunk.text for chunk in written)
                jsonschema_rs.validate(schema, json.loads(text))
                assert end.ids[0] in engine.eos_token_ids
            sampling = Sampling(seed=seed, max_tokens=400, regex="[0-9]{3}-[ab]{2}")
            chunks = [c async for c in engine.generate(prompt, sampling, engine.eos_token_ids)]
            assert re.fullmatch("[0-9]{3}-[ab]{2}", "".join(chunk.text for chunk in chunks[:-1]))
    finally:
        await engine.stop()
