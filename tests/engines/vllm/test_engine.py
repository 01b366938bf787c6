"""The in-process vLLM engine, compared with the embedded engine on the same random weights."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from prometheus_client import REGISTRY
from safetensors.torch import load_file, save_file

from service.engines import adapters
from service.engines.base import Engine, EngineError, InvalidRequestError, Sampling, TokenChunk, unsupported
from service.engines.model_lookup import locate
from service.engines.settings import TransformersSettings, VLLMSettings
from service.engines.transformers.engine import TransformersEngine
from service.engines.vllm.engine import VLLMEngine
from tests.support.streams import assert_greedy
from tests.support.tiny_qwen3 import make_checkpoint, make_model, make_tokenizer, save
from tests.support.tokens import prompt, sampled
from tests.support.vllm_args import BLOCK, VLLM_ARGS

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]

GREEDY = Sampling(temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a head width that vLLM's CPU attention supports."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), head_dim=32)


@pytest.fixture(scope="module")
def adapter(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter with random weights, wide enough to change every token."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"])
    tuned: Any = get_peft_model(model, config)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    path = tmp_path_factory.mktemp("adapter")
    tuned.save_pretrained(path)
    merged = tmp_path_factory.mktemp("merged")
    tuned.merge_and_unload().save_pretrained(merged)
    (path / "merged").symlink_to(merged)
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(checkpoint: Path, adapter: Path) -> AsyncIterator[VLLMEngine]:
    args = {**VLLM_ARGS, "disable_log_stats": False}  # its counters are read here
    settings = VLLMSettings(model=str(checkpoint), adapters={"poet": adapter}, args=args)
    engine = VLLMEngine(settings)
    await engine.start()
    yield engine
    assert engine.healthy
    await engine.stop()
    assert not engine.healthy


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embedded(checkpoint: Path) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(TransformersSettings(model=str(checkpoint), device="cpu"))
    await engine.start()
    yield engine
    await engine.stop()


async def collect(
    engine: Engine, ids: Sequence[int], sampling: Sampling = GREEDY, stop: Sequence[int] = ()
) -> list[TokenChunk]:
    return [chunk async for chunk in engine.generate(ids, sampling, stop)]


def logprobs(chunks: Sequence[TokenChunk]) -> list[float]:
    return [logprob for chunk in chunks for logprob in chunk.logprobs]


@torch.inference_mode()
def true_logprobs(checkpoint: Path, ids: Sequence[int], output: Sequence[int]) -> list[float]:
    """Logprobs of the tokens of ``output`` at temperature 1, from one plain forward pass."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    logits = model(input_ids=torch.tensor([[*ids, *output]]), use_cache=False).logits[0]
    table = logits[len(ids) - 1 : -1].log_softmax(-1)
    picked: list[float] = table.gather(1, torch.tensor(output)[:, None])[:, 0].tolist()
    return picked


@pytest.mark.parametrize(
    "options",
    [
        {"top_logprobs": 5},
        {"frequency_penalty": 1.5, "presence_penalty": 0.5, "logprobs": False},
        {"repetition_penalty": 1.7, "logprobs": False},
        {"logit_bias": ((7, 4.0), (9, -100.0)), "frequency_penalty": 0.5, "logprobs": False},
    ],
)
async def test_matches_the_embedded_engine(
    engine: VLLMEngine, embedded: TransformersEngine, options: dict[str, Any]
) -> None:
    sampling = replace(GREEDY, **options)
    for length in (1, 40, 130):
        ids = prompt(length)
        ours, theirs = await collect(embedded, ids, sampling), await collect(engine, ids, sampling)
        assert sampled(theirs) == sampled(ours)
        assert "".join(chunk.text for chunk in theirs) == "".join(chunk.text for chunk in ours)
        assert theirs[-1].finish_reason == "length"
        if sampling.logprobs:
            assert logprobs(theirs) == pytest.approx(logprobs(ours), abs=1e-4)
        tops = [[top for chunk in chunks for top in chunk.top_logprobs] for chunks in (ours, theirs)]
        for mine, other in zip(*tops, strict=True):
            assert [top.token_id for top in other] == [top.token_id for top in mine]
            assert [top.logprob for top in other] == pytest.approx([top.logprob for top in mine], abs=1e-4)


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.7}, {"top_k": 5}, {"min_p": 0.1}])
async def test_logprobs_at_temperature_1_ignore_filters(
    engine: VLLMEngine, checkpoint: Path, filters: dict[str, Any]
) -> None:
    ids, sampling = prompt(30), Sampling(seed=5, max_tokens=40, **filters)
    chunks = await collect(engine, ids, sampling)
    found = true_logprobs(checkpoint, ids, sampled(chunks))
    assert logprobs(chunks) == pytest.approx(found, abs=1e-4)
    assert sampled(await collect(engine, ids, sampling)) == sampled(chunks)
    assert sampled(await collect(engine, ids, replace(sampling, seed=6))) != sampled(chunks)


async def test_rejects_unavailable_logprobs(engine: VLLMEngine) -> None:
    assert unsupported(engine, Sampling(temperature=0.7)) == ["logprobs"]
    with pytest.raises(EngineError, match="does not support logprobs"):
        await collect(engine, [1], Sampling(temperature=0.7))
    chunks = await collect(engine, [1], Sampling(temperature=0.7, logprobs=False, max_tokens=4))
    assert all(logprob != logprob for logprob in logprobs(chunks))  # NaN
    assert len(logprobs(chunks)) == 4


async def test_only_the_given_stop_token_ends_the_stream(engine: VLLMEngine) -> None:
    ids = prompt(30)
    reply = sampled(await collect(engine, ids))
    stop = reply[9]
    chunks = await collect(engine, ids, stop=[stop])
    assert sampled(chunks) == reply[: reply.index(stop) + 1]
    assert chunks[-1].finish_reason == "stop"
    (eos, *_) = engine.eos_token_ids
    biased = replace(GREEDY, logit_bias=((eos, 100.0),), logprobs=False)
    assert sampled(await collect(engine, ids, biased)) == [eos] * 24
    assert sampled(await collect(engine, ids, biased, stop=[eos])) == [eos]


async def test_context_can_be_filled_but_not_exceeded(engine: VLLMEngine) -> None:
    chunks = await collect(engine, prompt(500), Sampling(max_tokens=100))
    assert (len(sampled(chunks)), chunks[-1].finish_reason) == (12, "length")
    with pytest.raises(EngineError, match="leaves no room"):
        await collect(engine, prompt(512))


async def test_resuming_after_a_flush_prefills_only_new_tokens(engine: VLLMEngine) -> None:
    """Checked with vLLM's counters of prefix cache queries and hits."""
    turn = prompt(200, seed=9)
    before = cache_counters()
    first = await collect(engine, turn, replace(GREEDY, max_tokens=60))
    middle = cache_counters()
    going_on = [*turn, *sampled(first), *prompt(11, seed=10)]
    second = await collect(engine, going_on)
    after = cache_counters()
    assert middle[0] - before[0] == len(turn)
    assert first[0].cached_tokens == middle[1] - before[1] == 0
    assert after[0] - middle[0] == len(going_on)
    # The last sample has no keys yet, and incomplete blocks are not cached.
    kept = (len(turn) + len(sampled(first)) - 1) // BLOCK * BLOCK
    assert second[0].cached_tokens == after[1] - middle[1] == kept
    assert len(going_on) - kept <= BLOCK + 11
    assert [chunk.cached_tokens for chunk in second[1:]] == [None] * (len(second) - 1)


def cache_counters() -> tuple[float, float]:
    names = ("vllm:prefix_cache_queries", "vllm:prefix_cache_hits")
    values = []
    for name in names:
        samples = [s for metric in REGISTRY.collect() if metric.name == name for s in metric.samples]
        values.append(sum(s.value for s in samples if s.name.endswith("_total")))
    return values[0], values[1]


async def test_closing_the_stream_frees_the_request(engine: VLLMEngine) -> None:
    async with aclosing(engine.generate([1], Sampling(max_tokens=500))) as stream:
        await anext(stream)
        assert engine.stats().running == 1
    assert engine.stats().running == engine.stats().waiting == 0
    assert engine._llm.get_num_unfinished_requests() == 0
    many = [collect(engine, prompt(20, seed=n), Sampling(seed=n, max_tokens=9)) for n in range(20)]
    assert {len(sampled(chunks)) for chunks in await asyncio.gather(*many)} == {9}


async def test_adapter_is_served_as_a_model(engine: VLLMEngine, adapter: Path, tmp_path: Path) -> None:
    assert engine.adapters == ("poet",)
    ids = prompt(50, seed=3)
    plain, tuned = await collect(engine, ids), await collect(engine, ids, replace(GREEDY, adapter="poet"))
    assert sampled(plain) != sampled(tuned)
    found = true_logprobs(adapter / "merged", ids, sampled(tuned))
    assert logprobs(tuned) == pytest.approx(found, abs=2e-4)
    assert tuned[0].cached_tokens == 0  # the adapter can't reuse keys and values of the plain model


async def test_adapter_with_a_trained_token_row_is_served_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM does not support such adapters, but serves the merged checkpoint."""
    from tests.support.peft_adapters import make_adapter

    monkeypatch.setattr(adapters, "cache_dir", lambda: tmp_path / "cache")
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, head_dim=32)
    base = save(model, tmp_path / "base")
    marker = tokenizer.convert_tokens_to_ids("<tool_call>")
    tuned = make_adapter(model, tmp_path / "adapter", base=base, trainable_token_indices=[marker])
    engine = VLLMEngine(VLLMSettings(model=str(locate(str(tmp_path / "adapter"))), args=VLLM_ARGS))
    await engine.start()
    ids = [*prompt(30), marker]
    assert_greedy(tuned, ids, await collect(engine, ids), atol=2e-4)
    await engine.stop()


async def test_reply_matches_the_schema(engine: VLLMEngine) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 99}, "ok": {"type": "boolean"}},
        "required": ["n", "ok"],
        "additionalProperties": False,
    }
    # JSON allows unlimited white space between tokens, which random weights would emit.
    tokens = ((token_id, engine.tokenizer.decode([token_id])) for token_id in range(365))
    spaces = tuple((token_id, -100.0) for token_id, text in tokens if text != text.strip())
    sampling = Sampling(
        seed=1, max_tokens=60, json_schema=json.dumps(schema), logit_bias=spaces, logprobs=False
    )
    chunks = await collect(engine, prompt(20), sampling, stop=[*engine.eos_token_ids])
    reply = json.loads(text_without_end(engine, chunks))
    assert isinstance(reply["n"], int)
    assert isinstance(reply["ok"], bool)


def text_without_end(engine: VLLMEngine, chunks: list[TokenChunk]) -> str:
    """The text of a reply. Its end-of-turn token may share a chunk with the tokens before it."""
    text = "".join(chunk.text for chunk in chunks)
    for token_id in engine.eos_token_ids:
        text = text.removesuffix(engine.tokenizer.decode([token_id]))
    return text


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"regex": "[0-9]{3}-[ab]{2}"}, "[0-9]{3}-[ab]{2}"),
        ({"grammar": 'root ::= "<" [a-c] [a-c] ">"'}, "<[a-c]{2}>"),
        ({"grammar": 'start: "yes" | "no"'}, "yes|no"),
    ],
)
async def test_reply_matches_the_regex_or_grammar(
    engine: VLLMEngine, constraint: dict[str, str], pattern: str
) -> None:
    sampling = Sampling(seed=1, max_tokens=60, logprobs=False, **constraint)  # type: ignore[arg-type]
    chunks = await collect(engine, prompt(20), sampling, stop=[*engine.eos_token_ids])
    assert re.fullmatch(pattern, text_without_end(engine, chunks))
    with pytest.raises(InvalidRequestError):
        await collect(engine, [1], replace(GREEDY, regex="("))


async def test_prompt_logprobs_match_the_embedded_engine(engine: VLLMEngine, checkpoint: Path) -> None:
    embedded = TransformersEngine(TransformersSettings(model=str(checkpoint), dtype="float32"))
    await embedded.start()
    sampling = replace(GREEDY, max_tokens=1, prompt_logprobs=2)
    try:
        ids = prompt(70)
        [[one], [other]] = [await collect(either, ids, sampling) for either in (engine, embedded)]
    finally:
        await embedded.stop()
    assert len(one.prompt_logprobs) == len(other.prompt_logprobs) == len(ids) - 1
    for mine, theirs in zip(one.prompt_logprobs, other.prompt_logprobs, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-3)
        assert [top.logprob for top in mine.top_logprobs] == pytest.approx(
            [top.logprob for top in theirs.top_logprobs], abs=1e-3
        )


def quantise(checkpoint: Path, target: Path) -> None:
    """Write a copy with linear weights in 8 bits, in the format compressed-tensors: a scale per output."""
    weights: dict[str, torch.Tensor] = {}
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            scale = weight.abs().amax(dim=1, keepdim=True) / 127
            weights[name] = (weight / scale).round().to(torch.int8)
            weights[name + "_scale"] = scale
        else:
            weights[name] = weight.bfloat16()
    shutil.copytree(checkpoint, target)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    eight_bits = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**eight_bits, "strategy": "channel", "dynamic": False},
        "input_activations": {**eight_bits, "strategy": "token", "dynamic": True},
    }
    config = json.loads((target / "config.json").read_text())
    config["dtype"] = "bfloat16"
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    (target / "config.json").write_text(json.dumps(config))


async def test_serves_a_quantised_checkpoint(tmp_path: Path) -> None:
    ids = prompt(70)
    checkpoint = make_checkpoint(
        tmp_path / "whole", head_dim=32, hidden_size=64
    )  # the kernels need multiples of 32
    quantise(checkpoint, tmp_path / "quantised")
    sampling = replace(GREEDY, max_tokens=1, prompt_logprobs=1)
    scored = []
    for engine in (
        VLLMEngine(VLLMSettings(model=str(tmp_path / "quantised"), args=VLLM_ARGS)),
        TransformersEngine(TransformersSettings(model=str(checkpoint), dtype="float32")),
    ):
        await engine.start()
        try:
            [chunk] = await collect(engine, ids, sampling)
        finally:
            await engine.stop()
        scored.append(torch.tensor([token.logprob for token in chunk.prompt_logprobs]))
    difference = (scored[0] - scored[1]).abs()
    assert 0 < difference.mean() < 0.15, difference


async def test_vllm_errors_are_reported(engine: VLLMEngine) -> None:
    with pytest.raises(EngineError, match=r"vLLM: .*no such type"):
        await collect(engine, [1], replace(GREEDY, json_schema='{"type": "no such type"}'))
    assert engine.healthy
    with pytest.raises(EngineError, match=r"outside of 0\.\.364"):
        await collect(engine, [365])


async def test_rejects_unknown_vllm_arguments(checkpoint: Path) -> None:
    engine = VLLMEngine(VLLMSettings(model=str(checkpoint), args={"tensor_paralel_size": 2}))
    with pytest.raises(EngineError, match="tensor_paralel_size"):
        await engine.start()
    assert not engine.healthy
