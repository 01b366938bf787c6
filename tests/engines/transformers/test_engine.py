from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from service.engines.base import EngineError, Sampling, TokenChunk
from service.engines.settings import TransformersSettings
from service.engines.transformers.engine import TransformersEngine
from service.engines.transformers.runner import ModelRunner
from tests.support.batching_engine import *  # noqa: F403  the tests of every such engine
from tests.support.batching_engine import Create, collect
from tests.support.streams import Reference, assert_greedy
from tests.support.tiny_qwen3 import make_checkpoint, make_model, make_qwen2, make_tokenizer, save
from tests.support.tokens import prompt, sampled


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    """The same weights with transformers' eager attention, without a cache."""
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        tiny_checkpoint, attn_implementation="eager"
    )
    return Reference(model.eval())


@pytest.fixture
def create(tiny_checkpoint: Path) -> Create:
    return lambda **fields: TransformersEngine(TransformersSettings(model=str(tiny_checkpoint), **fields))


@pytest.fixture
def runner_class() -> type:
    return ModelRunner


async def test_new_weights_from_a_checkpoint(engine: TransformersEngine, tmp_path: Path) -> None:
    ids = prompt(40)
    old = await collect(engine, ids)
    await engine.load_weights(make_checkpoint(tmp_path, seed=1))
    new = await collect(engine, ids)
    assert_greedy(make_model(make_tokenizer(), seed=1), ids, new)
    assert sampled(new) != sampled(old)
    assert engine.stats().cached_tokens == 0


async def test_running_request_continues_with_new_weights(
    engine: TransformersEngine, reference: Reference
) -> None:
    ids = prompt(40)
    other = make_model(make_tokenizer(), seed=1)
    stream = engine.generate(ids, Sampling(temperature=0, max_tokens=400))
    chunks = [await anext(stream) for _ in range(5)]
    await engine.load_weights(other.state_dict(), version=7)
    chunks += [chunk async for chunk in stream]
    assert len(chunks) == 400
    # The weights changed somewhere after the fifth chunk; all later tokens come from the new ones.
    with torch.inference_mode():
        everything = torch.tensor([[*ids, *sampled(chunks)]])
        old, new = (
            model(everything).logits[0, len(ids) - 1 : -1].argmax(-1) for model in (reference.model, other)
        )
    tokens = torch.tensor(sampled(chunks))
    changed = int((tokens != old).nonzero()[0])
    assert 5 <= changed < 400
    assert torch.equal(tokens[changed:], new[changed:])
    # Each token reports the weights that sampled it, exactly.
    versions = [chunk.weights_version for chunk in chunks]
    assert sorted(set(versions)) == [0, 7]
    swapped = versions.index(7)
    assert versions == [0] * swapped + [7] * (400 - swapped)
    assert torch.equal(tokens[:swapped], old[:swapped])
    assert torch.equal(tokens[swapped:], new[swapped:])


async def test_overwriting_the_checkpoint_does_not_change_the_model(tmp_path: Path) -> None:
    ids = prompt(10)
    engine = TransformersEngine(TransformersSettings(model=str(make_checkpoint(tmp_path))))
    await engine.start()
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as stream:  # in place, as `cp` does
        stream.seek(file.stat().st_size // 2)
        stream.write(bytes(file.stat().st_size // 2))
    assert_greedy(make_model(make_tokenizer()), ids, await collect(engine, ids))
    await engine.stop()


async def test_rejected_weights_keep_the_old_ones(engine: TransformersEngine, reference: Reference) -> None:
    state = make_model(make_tokenizer(), seed=1).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    for wrong, message in [
        ({**state, "extra": torch.zeros(1)}, "'extra' is not a parameter"),
        ({**state, name: torch.zeros(2, 2)}, r"up_proj.weight' is \[2, 2\]"),
        ({key: value for key, value in state.items() if key != name}, "up_proj.weight' is missing"),
    ]:
        with pytest.raises(EngineError, match=message):
            await engine.load_weights(wrong)
    ids = prompt(10)
    reference.assert_greedy(ids, await collect(engine, ids))
    tied = {key: value for key, value in state.items() if key != "lm_head.weight"}
    await engine.load_weights(tied)


async def test_limits_from_the_checkpoint(tiny_checkpoint: Path) -> None:
    engine = TransformersEngine(TransformersSettings(model=str(tiny_checkpoint)))
    assert engine.model_name == tiny_checkpoint.name
    assert engine.context_length == 512
    names = ("<|im_end|>", "<|endoftext|>")
    assert engine.eos_token_ids == {engine.tokenizer.token_id(name) for name in names}
    assert not engine.healthy
    await engine.stop()


async def test_rejects_other_kinds_of_attention(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, use_sliding_window=True, sliding_window=8, max_window_layers=0)
    engine = TransformersEngine(TransformersSettings(model=str(tmp_path)))
    with pytest.raises(EngineError, match="sliding_attention"):
        await engine.start()


@pytest.mark.parametrize("make", [make_model, make_qwen2])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_architectures(
    tmp_path: Path, make: Callable[..., PreTrainedModel], tied: bool, dtype: Literal["float32", "bfloat16"]
) -> None:
    """Qwen2 (also Qwen2.5) and Qwen3, each with tied and untied head, including weight replacement."""
    models = [make(make_tokenizer(), seed=seed, tie_word_embeddings=tied) for seed in (0, 1)]
    engine = TransformersEngine(
        TransformersSettings(model=str(save(models[0], tmp_path / "0")), dtype=dtype, prefill_chunk=24)
    )
    await engine.start()
    for model in models:
        for ids in (prompt(1), prompt(70)):
            chunks = await collect(engine, ids, Sampling(temperature=0, max_tokens=12, top_logprobs=1))
            if dtype == "float32":
                assert_greedy(model, ids, chunks)
            else:
                assert_close(model, ids, chunks)
        await engine.load_weights(save(models[1], tmp_path / "1"))
    await engine.stop()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_loads_weights_of_another_dtype(tmp_path: Path, dtype: str) -> None:
    """A trainer keeps its weights in float32, regardless of the engine's dtype."""
    models = [make_model(make_tokenizer(), seed=seed) for seed in (0, 1)]
    other = torch.float32 if dtype == "bfloat16" else torch.bfloat16
    engine = TransformersEngine(
        TransformersSettings(model=str(save(models[0], tmp_path)), dtype=dtype, prefill_chunk=24)
    )
    await engine.start()
    await engine.load_weights({name: tensor.to(other) for name, tensor in models[1].state_dict().items()})
    chunks = await collect(engine, prompt(70), Sampling(temperature=0, max_tokens=12, top_logprobs=1))
    await engine.stop()
    assert_close(models[1], prompt(70), chunks)


@torch.inference_mode()
def assert_close(model: torch.nn.Module, ids: Sequence[int], chunks: Sequence[TokenChunk]) -> None:
    """Compare logprobs in bfloat16 with float32: close for equal weights, far for other weights."""
    output = sampled(chunks)
    logits = model(input_ids=torch.tensor([[*ids, *output]]), use_cache=False).logits[0]
    expected = logits[len(ids) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(output)[:, None])[:, 0]
    found = torch.tensor([logprob for chunk in chunks for logprob in chunk.logprobs])
    assert (found - expected).abs().mean() < 0.15
