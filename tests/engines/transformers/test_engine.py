from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import pytest
import torch
from structlog.testing import capture_logs
from transformers import AutoModelForCausalLM, PreTrainedModel

from service.engines.base import ContextLengthExceededError, Engine, EngineError, Sampling, TokenChunk
from service.engines.settings import TransformersSettings
from service.engines.transformers.engine import TransformersEngine
from service.engines.transformers.engine_thread import FAILURES_IN_A_ROW
from service.engines.transformers.runner import ModelRunner
from service.engines.transformers.scheduler import WORTH_WAITING
from tests.support import streams
from tests.support.streams import assert_greedy
from tests.support.tiny_qwen3 import make_checkpoint, make_model, make_qwen2, make_tokenizer, save
from tests.support.tokens import prompt, sampled

GREEDY = Sampling(temperature=0, max_tokens=20)
SLOTS = 4


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> torch.nn.Module:
    """The same weights with transformers' eager attention, without a cache."""
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        tiny_checkpoint, attn_implementation="eager"
    )
    return model.eval()


@pytest.fixture
async def engine(tiny_checkpoint: Path) -> AsyncIterator[TransformersEngine]:
    # Small limits, so that a few short prompts exercise chunks, queues, evictions and cache growth.
    engine = TransformersEngine(
        TransformersSettings(model=str(tiny_checkpoint), max_slots=SLOTS, prefill_chunk=24)
    )
    await engine.start()
    yield engine
    await engine.stop()


async def collect(
    engine: Engine, ids: Sequence[int], sampling: Sampling = GREEDY, stop: Sequence[int] = ()
) -> list[TokenChunk]:
    return await streams.collect(engine, ids, sampling, stop)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for the engine thread; bounded by the test's timeout."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def is_idle(engine: TransformersEngine) -> bool:
    stats = engine.stats()
    return stats.running == stats.waiting == 0


async def test_one_request_is_plain_greedy_decoding(
    engine: TransformersEngine, reference: torch.nn.Module
) -> None:
    ids = prompt(100)
    chunks = await collect(engine, ids)
    assert_greedy(reference, ids, chunks)
    assert len(chunks) == GREEDY.max_tokens
    assert [chunk.finish_reason for chunk in chunks] == [None] * 19 + ["length"]
    assert "".join(chunk.text for chunk in chunks) == engine.tokenizer.decode(sampled(chunks))


@pytest.mark.parametrize("length", [1, 2, 25, 100])
async def test_prompt_logprobs_are_those_of_the_model(
    engine: TransformersEngine, reference: torch.nn.Module, length: int
) -> None:
    ids = prompt(length)
    await collect(engine, ids)  # a cached prefix must not hide tokens
    first, *others = await collect(engine, ids, replace(GREEDY, prompt_logprobs=2, max_tokens=3))
    assert len(others) == 2
    assert not any(chunk.prompt_logprobs for chunk in others)
    assert len(first.prompt_logprobs) == length - 1
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0].log_softmax(-1)
    for place, item in enumerate(first.prompt_logprobs):
        assert item.logprob == pytest.approx(float(expected[place, ids[place + 1]]), abs=1e-3)
        best = expected[place].topk(2)
        assert [top.token_id for top in item.top_logprobs] == best.indices.tolist()
        assert [top.logprob for top in item.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-3)
    assert_greedy(reference, ids, [first, *others])


async def test_concurrent_requests_with_cancellation_and_slot_reuse(
    engine: TransformersEngine, reference: torch.nn.Module
) -> None:
    """Staggered conversations of different lengths; some cancel a turn midway and continue from there."""

    async def conversation(n: int) -> None:
        rng = random.Random(n)
        ids = prompt(rng.choice([1, 2, 15, 40, 130]), seed=n)
        for _ in range(3):
            await asyncio.sleep(rng.random() * 0.02)
            limit = rng.randint(1, 30)
            cut = rng.randint(1, 40)
            chunks = []
            settings = Sampling(temperature=0, max_tokens=limit)
            async with aclosing(engine.generate(ids, settings)) as stream:
                async for chunk in stream:
                    chunks.append(chunk)
                    if len(chunks) == cut:
                        break
            assert len(chunks) == min(limit, cut)
            assert_greedy(reference, ids, chunks)
            ids = [*ids, *sampled(chunks), *prompt(rng.choice([0, 1, 12]), seed=n)]

    await asyncio.gather(*(conversation(n) for n in range(24)))
    await until(lambda: is_idle(engine))


async def test_continuation_prefills_only_new_tokens(
    engine: TransformersEngine, reference: torch.nn.Module
) -> None:
    ids = prompt(60)
    first = await collect(engine, ids)
    going_on = [*ids, *sampled(first), *prompt(10, seed=1)]
    before = engine.stats()
    second = await collect(engine, going_on)
    after = engine.stats()
    # The last sample had no keys and values yet, so only it and the new tokens are computed.
    assert after.prompt_tokens - before.prompt_tokens == len(going_on)
    assert after.cached_tokens - before.cached_tokens == len(ids) + GREEDY.max_tokens - 1
    assert_greedy(reference, going_on, second)


async def test_only_new_tokens_go_through_the_model(engine: TransformersEngine) -> None:
    """Count the tokens that reach the model, independent of the reported counters."""
    computed = []
    forward = ModelRunner.forward

    def spy(self: ModelRunner, plan: list) -> object:  # type: ignore[type-arg]
        computed.append(sum(work.stop - work.start for work in plan))
        return forward(self, plan)

    ids = prompt(60)
    with patch.object(ModelRunner, "forward", spy):
        first = await collect(engine, ids)
        assert sum(computed) == len(ids) + GREEDY.max_tokens - 1
        computed.clear()
        await collect(engine, [*ids, *sampled(first), 5, 6])
        assert sum(computed) == 3 + GREEDY.max_tokens - 1


async def test_samples_of_one_prompt_prefill_it_once(
    engine: TransformersEngine, reference: torch.nn.Module
) -> None:
    ids = prompt(100)
    results = await asyncio.gather(*(collect(engine, ids) for _ in range(SLOTS)))
    for chunks in results:
        assert_greedy(reference, ids, chunks)
    assert engine.stats().cached_tokens >= (SLOTS - 1) * (len(ids) - 1 - WORTH_WAITING)


async def test_growing_cache_keeps_its_content(
    engine: TransformersEngine, reference: torch.nn.Module
) -> None:
    short, long = prompt(200), prompt(400)
    both = await asyncio.gather(
        collect(engine, short, Sampling(temperature=0, max_tokens=100)), collect(engine, long)
    )
    assert_greedy(reference, short, both[0])
    assert_greedy(reference, long, both[1])


async def test_seeded_tokens_do_not_depend_on_the_batch(engine: TransformersEngine) -> None:
    ids = prompt(30)
    settings = Sampling(seed=7, max_tokens=40, top_p=0.9)
    alone = await collect(engine, ids, settings)
    crowd = [collect(engine, prompt(n, seed=n), Sampling(seed=n, max_tokens=n)) for n in range(1, 30, 3)]
    crowded, *_ = await asyncio.gather(collect(engine, ids, settings), *crowd)
    assert sampled(crowded) == sampled(alone)
    other = await collect(engine, ids, Sampling(seed=8, max_tokens=40, top_p=0.9))
    assert sampled(other) != sampled(alone)


async def test_stop_token_is_included_and_ends_the_stream(engine: TransformersEngine) -> None:
    ids = prompt(30)
    free = sampled(await collect(engine, ids))
    stop = free[5]
    chunks = await collect(engine, ids, stop=[stop])
    assert sampled(chunks) == free[: free.index(stop) + 1]
    assert chunks[-1].finish_reason == "stop"


async def test_stop_token_waits_for_min_tokens(engine: TransformersEngine) -> None:
    ids = prompt(30)
    stop = sampled(await collect(engine, ids))[5]
    chunks = await collect(engine, ids, replace(GREEDY, min_tokens=12), stop=[stop])
    assert stop not in sampled(chunks)[:12]
    assert len(sampled(chunks)) > 12


async def test_top_logprobs_are_reported_beside_the_sample(engine: TransformersEngine) -> None:
    for chunk in await collect(engine, prompt(9), Sampling(temperature=0, max_tokens=3, top_logprobs=4)):
        (top,) = chunk.top_logprobs
        assert len(top) == 4
        assert (top[0].token_id, top[0].logprob) == (chunk.ids[0], chunk.logprobs[0])
        assert [t.logprob for t in top] == sorted((t.logprob for t in top), reverse=True)
    (chunk,) = await collect(engine, prompt(9), Sampling(max_tokens=1))
    assert chunk.top_logprobs == ()


async def test_closing_the_generator_frees_the_slot(engine: TransformersEngine) -> None:
    running = [engine.generate(prompt(5, seed=n), Sampling(max_tokens=400)) for n in range(SLOTS)]
    for stream in running:
        await anext(stream)
    assert engine.stats().running == SLOTS
    waiting = asyncio.create_task(collect(engine, prompt(9)))
    await running[0].aclose()
    assert len(await waiting) == GREEDY.max_tokens
    for stream in running[1:]:
        await stream.aclose()
    await until(lambda: is_idle(engine))


async def test_cancelling_the_task_frees_the_slot_and_the_queue(engine: TransformersEngine) -> None:
    tasks = [
        asyncio.create_task(collect(engine, prompt(5, seed=n), Sampling(max_tokens=400)))
        for n in range(2 * SLOTS)
    ]
    await until(lambda: engine.stats().running == SLOTS)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: is_idle(engine))


async def test_end_of_context_ends_the_stream(tiny_checkpoint: Path, reference: torch.nn.Module) -> None:
    engine = TransformersEngine(TransformersSettings(model=str(tiny_checkpoint), max_context=40))
    await engine.start()
    assert engine.context_length == 40
    chunks = await collect(engine, prompt(35))
    assert len(chunks) == 5
    assert chunks[-1].finish_reason == "length"
    assert_greedy(reference, prompt(35), chunks)
    assert len(await collect(engine, prompt(39))) == 1
    with pytest.raises(ContextLengthExceededError, match="40 tokens and leaves no room in the context of 40"):
        await collect(engine, prompt(40))
    await engine.stop()


@pytest.mark.parametrize(
    ("ids", "sampling", "message"),
    [
        ([], GREEDY, "prompt is empty"),
        ([1, 365], GREEDY, "outside of 0..364"),
        ([-1], GREEDY, "outside of 0..364"),
        ([1], Sampling(temperature=-1), "temperature is -1, must be 0 or more"),
        ([1], Sampling(temperature=float("nan")), "temperature is nan"),
        ([1], Sampling(top_p=0), "top_p is 0"),
        ([1], Sampling(top_k=-1), "top_k is -1"),
        ([1], Sampling(min_p=1.5), "min_p is 1.5"),
        ([1], Sampling(max_tokens=0), "max_tokens is 0"),
        ([1], Sampling(top_logprobs=-1), "top_logprobs is -1"),
        ([1], Sampling(repetition_penalty=0), "repetition_penalty is 0"),
        ([1], Sampling(presence_penalty=float("inf")), "presence_penalty is inf"),
        ([1], Sampling(logit_bias=((365, 1.0),)), "logit_bias: 365 is outside of 0..364"),
        ([1], Sampling(json_schema='{"contains": {}}'), "can't be enforced"),
        ([1], Sampling(adapter="poet"), "adapter 'poet' is unknown"),
    ],
)
async def test_rejects_invalid_calls_and_names_the_field(
    engine: TransformersEngine, ids: list[int], sampling: Sampling, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        await collect(engine, ids, sampling)


async def test_bias_and_penalties_apply_to_sampled_tokens(engine: TransformersEngine) -> None:
    """A bias makes one token win until its frequency penalty exceeds the bias."""
    sampling = Sampling(temperature=0, max_tokens=40, logit_bias=((7, 100.0),), frequency_penalty=10.0)
    plain, penalised = await asyncio.gather(
        collect(engine, prompt(20), replace(sampling, frequency_penalty=0.0)),
        collect(engine, prompt(20), sampling),
    )
    assert sampled(plain) == [7] * 40
    assert 5 <= sampled(penalised).count(7) < 20


async def test_first_chunk_reports_cached_tokens(engine: TransformersEngine) -> None:
    ids = prompt(60)
    first = await collect(engine, ids)
    again = await collect(engine, [*ids, *sampled(first), 5, 6, 7])
    assert [chunk.cached_tokens for chunk in first] == [0] + [None] * 19
    assert again[0].cached_tokens == 60 + 19  # all but the last sample, which has no keys yet


async def test_engine_continues_after_a_failed_step(
    engine: TransformersEngine, reference: torch.nn.Module
) -> None:
    permits, calls, broken = threading.Semaphore(0), [], threading.Event()
    forward = ModelRunner.forward

    def step_by_step(self: ModelRunner, plan: list) -> object:  # type: ignore[type-arg]
        calls.append(plan)
        permits.acquire(timeout=100)
        if broken.is_set():
            broken.clear()
            raise RuntimeError("out of luck")
        return forward(self, plan)

    with patch.object(ModelRunner, "forward", step_by_step), capture_logs() as logs:
        tasks = [asyncio.create_task(collect(engine, prompt(5, seed=n))) for n in range(SLOTS + 2)]
        await until(lambda: engine.stats().running + engine.stats().waiting == len(tasks))
        permits.release()
        await until(lambda: len(calls) == 2)  # all requests were received and as many as fit are running
        broken.set()
        permits.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, EngineError) and "out of luck" in str(result) for result in results)
    assert [entry["event"] for entry in logs] == ["engine_step_failed"]
    assert engine.healthy
    ids = prompt(20)
    assert_greedy(reference, ids, await collect(engine, ids))


async def test_engine_ends_after_repeated_failures(engine: TransformersEngine) -> None:
    failing = patch.object(ModelRunner, "forward", side_effect=RuntimeError("out of luck"))
    with failing, capture_logs() as logs:
        for _ in range(FAILURES_IN_A_ROW):
            with pytest.raises(EngineError, match="out of luck"):
                await collect(engine, prompt(5))
    with pytest.raises(EngineError, match="crashed"):
        await collect(engine, prompt(5))
    assert logs[-1]["event"] == "engine_died"
    assert not engine.healthy


async def test_non_finite_logits_fail_only_their_request(
    engine: TransformersEngine, reference: torch.nn.Module
) -> None:
    poisoned, clean = prompt(20, seed=1), prompt(20, seed=2)
    forward = ModelRunner.forward

    def poison(self: ModelRunner, plan: list) -> object:  # type: ignore[type-arg]
        works, logits, scores = forward(self, plan)
        for row, work in enumerate(works):
            if work.request.tokens[: len(poisoned)] == poisoned:
                logits[row] = torch.nan
        return works, logits, scores

    with patch.object(ModelRunner, "forward", poison):
        failed, fine = await asyncio.gather(
            collect(engine, poisoned), collect(engine, clean), return_exceptions=True
        )
    assert isinstance(failed, EngineError)
    assert "not finite" in str(failed)
    assert not isinstance(fine, BaseException)
    assert_greedy(reference, clean, fine)


async def test_stopping_fails_running_and_later_requests(tiny_checkpoint: Path) -> None:
    engine = TransformersEngine(TransformersSettings(model=str(tiny_checkpoint), max_slots=1))
    with pytest.raises(EngineError, match="not started"):
        await collect(engine, [1])
    await engine.start()
    with pytest.raises(EngineError, match="already started"):
        await engine.start()
    running = engine.generate(prompt(5), Sampling(max_tokens=400))
    await anext(running)
    queued = asyncio.create_task(collect(engine, prompt(6)))
    await asyncio.sleep(0)
    await engine.stop()
    with pytest.raises(EngineError, match="was stopped"):
        async for _ in running:
            pass
    with pytest.raises(EngineError, match="was stopped"):
        await queued
    with pytest.raises(EngineError, match="was stopped"):
        await collect(engine, prompt(5))
    assert not engine.healthy


async def test_new_weights_from_a_checkpoint(engine: TransformersEngine, tmp_path: Path) -> None:
    ids = prompt(40)
    old = await collect(engine, ids)
    await engine.load_weights(make_checkpoint(tmp_path, seed=1))
    new = await collect(engine, ids)
    assert_greedy(make_model(make_tokenizer(), seed=1), ids, new)
    assert sampled(new) != sampled(old)
    assert engine.stats().cached_tokens == 0


async def test_running_request_continues_with_new_weights(
    engine: TransformersEngine, reference: torch.nn.Module
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
        old, new = (model(everything).logits[0, len(ids) - 1 : -1].argmax(-1) for model in (reference, other))
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


async def test_rejected_weights_keep_the_old_ones(
    engine: TransformersEngine, reference: torch.nn.Module
) -> None:
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
    assert_greedy(reference, ids, await collect(engine, ids))
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
