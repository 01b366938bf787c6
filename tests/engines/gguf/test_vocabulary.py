from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from service.engines.base import EngineError
from service.engines.checkpoint import quickstart
from service.engines.gguf.export import export
from service.engines.gguf.vocabulary import HF_JSON, load_tokenizer, pattern_name
from service.engines.gguf_metadata import read_metadata
from service.engines.tokenizer import HFTokenizer
from tests.support.tiny_qwen3 import CONTROL_TOKENS, MARKUP_TOKENS, make_model

PIECES = (
    *CONTROL_TOKENS,
    *MARKUP_TOKENS,
    *("a", "Hello", "I'LL", "it's", "don't", "print(x)", "1", "23", "4567"),
    *("(", "));", "_", "\\boxed{", "...", "é", "e\u0301", "ß", "日本語", "🎉", "½", "٣", "Ⅷ"),
    *(" ", "  ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u200b"),
)


def texts(count: int = 400) -> list[str]:
    """Mixtures of words, numbers, white space, other scripts and control tokens."""
    rng = random.Random(0)
    return ["".join(rng.choices(PIECES, k=rng.randint(1, 30))) for _ in range(count)]


def from_metadata(path: Path) -> HFTokenizer:
    """The tokenizer as it is built for a file without ``tokenizer.json``."""
    metadata = {key: value for key, value in read_metadata(path).items() if key != HF_JSON}
    return HFTokenizer(str(path), load_tokenizer(path, metadata))


def assert_same(found: HFTokenizer, expected: HFTokenizer) -> None:
    for text in texts():
        for allow_special in (True, False):
            ids = expected.encode(text, allow_special=allow_special)
            assert found.encode(text, allow_special=allow_special) == ids
            assert found.decode(ids) == expected.decode(ids)
    assert found.vocab_size == expected.vocab_size
    assert found.eos_token_id == expected.eos_token_id


@pytest.fixture(scope="module")
def tiny_gguf(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    export(tiny_checkpoint, path, "f32")
    return path


def test_tokenizer_from_metadata_is_that_of_the_checkpoint(tiny_gguf: Path, tiny_checkpoint: Path) -> None:
    assert_same(from_metadata(tiny_gguf), HFTokenizer(str(tiny_checkpoint)))


@pytest.mark.skipif("QWEN3_TOKENIZER" not in os.environ, reason="QWEN3_TOKENIZER names no directory")
def test_tokenizer_of_qwen3(tmp_path: Path) -> None:
    """A model with Qwen3's vocabulary, which has a regular expression, and ids without a token."""
    tokenizer = AutoTokenizer.from_pretrained(os.environ["QWEN3_TOKENIZER"])
    make_model(tokenizer, vocab_size=151936, hidden_size=8).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "model.gguf"
    assert export(tmp_path, path, "f16").is_split_known
    assert read_metadata(path)["tokenizer.ggml.pre"] == "qwen2"
    assert_same(from_metadata(path), HFTokenizer(os.environ["QWEN3_TOKENIZER"]))


def test_tokenizer_json_in_the_file_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "quickstart.gguf"
    assert not export(quickstart(), path).is_split_known
    expected = HFTokenizer(str(quickstart()))
    found = HFTokenizer(str(path), load_tokenizer(path, read_metadata(path)))
    assert_same(found, expected)
    messages: list[dict[str, object]] = [{"role": "user", "content": "Add 1 and 2."}]
    assert found.render_chat(messages) == expected.render_chat(messages)


def test_tokenizer_json_beside_the_file_replaces_the_one_in_it(tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_gguf.read_bytes())
    state = json.loads(read_metadata(path)[HF_JSON])
    (added,) = (token for token in state["added_tokens"] if token["content"] == "<think>")
    added["content"] = "<thought>"
    (tmp_path / "model.gguf.tokenizer.json").write_text(json.dumps(state))
    tokenizer = HFTokenizer(str(path), load_tokenizer(path, read_metadata(path)))
    assert tokenizer.encode("<thought>", allow_special=True) == [added["id"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, r"\(llama, gpt-2\) is not supported.*tiny.gguf.tokenizer.json"),
        ({"tokenizer.ggml.pre": "unheard-of"}, r"\(gpt2, unheard-of\) is not supported"),
        ({"tokenizer.ggml.merges": ["no such"]}, "can't be read"),
    ],
)
def test_rejects_other_vocabularies(tiny_gguf: Path, changes: dict[str, Any], message: str) -> None:
    metadata = {**read_metadata(tiny_gguf), **changes}
    del metadata[HF_JSON]
    with pytest.raises(EngineError, match=message):
        load_tokenizer(tiny_gguf, metadata)


def test_unused_ids_between_tokens_keep_the_other_ids(tiny_gguf: Path) -> None:
    metadata = dict(read_metadata(tiny_gguf))
    del metadata[HF_JSON]
    for name, first, last in (
        ("tokens", "[PAD0]", "<after>"),
        ("token_type", 5, 4),
    ):
        metadata[f"tokenizer.ggml.{name}"] = [*metadata[f"tokenizer.ggml.{name}"], first, last]
    tokenizer = HFTokenizer("x", load_tokenizer(tiny_gguf, metadata))
    after = len(metadata["tokenizer.ggml.tokens"]) - 1
    assert tokenizer.encode("a<after>", allow_special=True)[-1] == after
    assert after not in tokenizer.encode("a<after>", allow_special=False)
    assert tokenizer.decode([after]) == "<after>"


def test_pattern_name_of_other_pre_tokenizers() -> None:
    assert pattern_name(None) is None
    assert pattern_name({"type": "ByteLevel", "use_regex": True, "add_prefix_space": True}) is None
    split = {"type": "Split", "pattern": {"Regex": "."}}
    assert pattern_name({"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel"}]}) is None
