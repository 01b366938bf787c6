"""The GGUF engine, compared with transformers on the same random weights."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from service.engines.base import EngineError, Sampling
from service.engines.gguf.export import export
from service.engines.settings import GGUFSettings
from tests.support.batching_engine import *  # noqa: F403  the tests of every such engine
from tests.support.batching_engine import GREEDY, Create, collect
from tests.support.streams import Reference, assert_greedy
from tests.support.tiny_qwen3 import make_checkpoint, make_model, make_qwen2, make_tokenizer, save
from tests.support.tokens import prompt, sampled

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: make test-gguf")

from service.engines.gguf import runner
from service.engines.gguf.engine import GGUFEngine
from service.engines.gguf.runner import LlamaRunner

pytestmark = pytest.mark.gguf

ATOL = 0.05
"""llama.cpp rounds keys and values, and rotates by angles that differ in the last bits."""


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        tiny_checkpoint, attn_implementation="eager"
    )
    return Reference(model.eval(), ATOL)


@pytest.fixture(scope="module")
def path(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    export(tiny_checkpoint, path, "f32")
    return path


@pytest.fixture
def create(path: Path) -> Create:
    return lambda **fields: make(path, **fields)


@pytest.fixture
def runner_class() -> type:
    return LlamaRunner


def make(path: Path, **fields: Any) -> GGUFEngine:
    return GGUFEngine(GGUFSettings(model=str(path), **{"threads": 1, **fields}))


@pytest.mark.parametrize("make_model", [make_model, make_qwen2])
@pytest.mark.parametrize("tied", [True, False])
async def test_exported_architectures_give_the_same_tokens(
    tmp_path: Path, make_model: Callable[..., PreTrainedModel], tied: bool
) -> None:
    model = make_model(make_tokenizer(), tie_word_embeddings=tied)
    file = tmp_path / "model.gguf"
    export(save(model, tmp_path / "model"), file, "f32")
    engine = make(file)
    await engine.start()
    for ids in (prompt(1), prompt(70)):
        assert_greedy(model, ids, await collect(engine, ids), atol=ATOL)
    await engine.stop()


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
async def test_smaller_types_give_similar_log_probabilities(tmp_path: Path, kind: Any) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", hidden_size=64)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    export(checkpoint, tmp_path / "model.gguf", kind)
    engine = make(tmp_path / "model.gguf")
    await engine.start()
    ids = prompt(200)
    (chunk,) = await collect(engine, ids, Sampling(max_tokens=1, prompt_logprobs=0))
    await engine.stop()
    with torch.no_grad():
        rows = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    expected = rows.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    found = torch.tensor([item.logprob for item in chunk.prompt_logprobs])
    assert (found - expected).abs().mean() < 0.15


async def test_sequences_that_do_not_fit_take_turns(path: Path, reference: Reference) -> None:
    """Four sequences of 90 tokens in a cache of 200."""
    engine = make(path, cache_tokens=200, max_slots=4, prefill_chunk=24)
    await engine.start()
    assert engine.context_length == 200
    prompts = [prompt(50, seed=n) for n in range(4)]
    results = await asyncio.gather(*(collect(engine, ids, replace(GREEDY, max_tokens=40)) for ids in prompts))
    for ids, chunks in zip(prompts, results, strict=True):
        assert len(chunks) == 40
        reference.assert_greedy(ids, chunks)
    # Idle sequences leave the cache for a new one.
    long = prompt(180)
    reference.assert_greedy(long, await collect(engine, long))
    assert engine.healthy
    await engine.stop()


async def test_sequences_share_the_cells_of_their_prompt(path: Path, reference: Reference) -> None:
    """Four samples of a prompt of 150 tokens and 20 new tokens need 680 cells if each has its own copy."""
    engine = make(path, cache_tokens=400, max_slots=4, prefill_chunk=24)
    await engine.start()
    ids = prompt(150)
    results = await asyncio.gather(*(collect(engine, ids) for _ in range(4)))
    for chunks in results:
        reference.assert_greedy(ids, chunks)
    stats = engine.stats()
    await engine.stop()
    assert stats.prompt_tokens == 4 * 150  # nothing was prefilled again


async def test_only_the_last_position_has_logits(path: Path) -> None:
    engine = make(path, prefill_chunk=64)
    await engine.start()
    shapes = []
    forward = LlamaRunner.forward

    def spy(self: LlamaRunner, plan: list) -> object:  # type: ignore[type-arg]
        result = forward(self, plan)
        shapes.append(tuple(result[1].shape))
        return result

    with patch.object(LlamaRunner, "forward", spy):
        await collect(engine, prompt(150), replace(GREEDY, max_tokens=2))
    await engine.stop()
    vocabulary = engine.tokenizer.vocab_size
    assert shapes == [(0, vocabulary), (0, vocabulary), (1, vocabulary), (1, vocabulary)]


async def test_structured_output(path: Path) -> None:
    engine = make(path)
    await engine.start()
    stop = sorted(engine.eos_token_ids)
    chunks = await collect(engine, prompt(20), Sampling(seed=1, max_tokens=40, regex="[0-9]{3}(ab)+"), stop)
    await engine.stop()
    text = "".join(chunk.text for chunk in chunks).removesuffix("<|im_end|>").removesuffix("<|endoftext|>")
    assert text[:3].isdecimal()
    assert set(text[3:]) <= {"a", "b"}


async def test_name_limits_and_end_tokens_come_from_the_file(path: Path) -> None:
    engine = make(path)
    assert (engine.model_name, engine.context_length, engine.adapters) == ("tiny", 512, ())
    names = ("<|im_end|>", "<|endoftext|>")
    assert engine.eos_token_ids == {engine.tokenizer.token_id(name) for name in names}
    assert not engine.healthy
    await engine.stop()


async def test_quickstart_gives_the_tokens_of_the_embedded_engine(tmp_path: Path) -> None:
    from service.engines.checkpoint import quickstart
    from service.engines.settings import TransformersSettings
    from service.engines.transformers.engine import TransformersEngine

    file = tmp_path / "quickstart.gguf"
    export(quickstart(), file, "f16")
    messages: list[dict[str, object]] = [{"role": "user", "content": "What is 739184 times 52967?"}]
    outputs = []
    for engine in (
        GGUFEngine(GGUFSettings(model=str(file))),
        TransformersEngine(TransformersSettings(model=str(quickstart()))),
    ):
        await engine.start()
        ids = engine.tokenizer.render_chat(messages)
        stop = sorted(engine.eos_token_ids)
        outputs.append(sampled(await collect(engine, ids, Sampling(temperature=0, max_tokens=60), stop)))
        await engine.stop()
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(("cpu", "repacks"), [(b"AMX_INT8 = 1 | AVX2 = 1", False), (b"AVX2 = 1", True)])
async def test_amx_is_not_used(path: Path, cpu: bytes, repacks: bool) -> None:
    given = []

    def load(_path: bytes, params: Any) -> None:
        given.append(bool(params.use_extra_bufts))

    with (
        patch.object(runner.llama, "llama_print_system_info", lambda: cpu),
        patch.object(runner.llama, "llama_model_load_from_file", load),
        pytest.raises(EngineError, match="can't load"),
    ):
        await make(path).start()
    assert given == [repacks]


async def test_rejects_a_damaged_file(path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    shutil.copyfile(path, damaged)
    os.truncate(damaged, 200_000)
    engine = make(damaged)
    with pytest.raises(EngineError, match=r"llama\.cpp can't load .*damaged\.gguf"):
        await engine.start()
    assert not engine.healthy
