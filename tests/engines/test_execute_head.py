from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from service.engines.base import EngineError, Sampling
from service.engines.execute_head import ExecuteHead, apply_execute_head
from service.engines.settings import TransformersSettings, VLLMSettings
from service.engines.transformers.engine import TransformersEngine
from service.engines.transformers.weight_loading import can_pack
from service.engines.vllm.engine import VLLMEngine
from tests.support.tiny_qwen3 import make_checkpoint, make_tokenizer
from tests.support.tokens import prompt

MARKER: int = make_tokenizer().convert_tokens_to_ids("<tool_call>")  # type: ignore[assignment]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = make_checkpoint(tmp_path / "model")
    torch.manual_seed(0)
    ExecuteHead("<tool_call>", tuple(torch.randn(48).tolist()), -0.5).save(directory)
    return directory


def two_levels(logits: torch.Tensor, decision: float, temperature: float) -> torch.Tensor:
    """The policy as its definition says: probabilities [V] from logits [V]."""
    rest = logits.clone()
    rest[MARKER] = -torch.inf
    execute = torch.sigmoid(torch.tensor(decision / temperature))
    probabilities = (1 - execute) * torch.softmax(rest / temperature, dim=-1)
    probabilities[MARKER] = execute
    return probabilities


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("decision", [-12.0, 0.3, 9.0])
def test_softmax_of_the_logits_is_the_two_level_policy(temperature: float, decision: float) -> None:
    torch.manual_seed(0)
    logits = 5 * torch.randn(2, 400)
    expected = two_levels(logits[1], decision, temperature)
    found = apply_execute_head(logits, torch.tensor([0.0, decision]), MARKER, [1.0, temperature])
    torch.testing.assert_close(torch.softmax(found[1] / temperature, dim=-1), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("decision", "executes"), [(0.01, True), (-0.01, False)])
def test_greedy_executes_above_zero(decision: float, executes: bool) -> None:
    torch.manual_seed(0)
    found = apply_execute_head(5 * torch.randn(1, 400), torch.tensor([decision]), MARKER, [0.0])
    assert (int(found.argmax()) == MARKER) == executes


def test_file_is_exact_and_invalid_files_are_named(tmp_path: Path) -> None:
    assert ExecuteHead.load(tmp_path) is None
    weight = tuple(torch.randn(5).tolist())
    ExecuteHead("<tool_call>", weight, 0.1).save(tmp_path)
    assert ExecuteHead.load(tmp_path) == ExecuteHead("<tool_call>", weight, 0.1)
    (tmp_path / "execute_head.json").write_text("{}")
    with pytest.raises(EngineError, match="is not an execute head"):
        ExecuteHead.load(tmp_path)


async def first_token(engine: TransformersEngine, ids: list[int], sampling: Sampling) -> tuple[int, float]:
    async for chunk in engine.generate(ids, sampling):
        assert chunk.logprobs is not None
        return chunk.ids[0], chunk.logprobs[0]
    raise AssertionError("no token")


@pytest.mark.parametrize("temperature", [1.0, 0.6])
async def test_engine_samples_from_the_two_level_policy(checkpoint: Path, temperature: float) -> None:
    ids = prompt(30)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    head = ExecuteHead.load(checkpoint)
    assert head is not None
    with torch.no_grad():
        states = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        decision = float(states @ torch.tensor(head.weight) + head.bias)
        expected = two_levels(model.lm_head(states), decision, temperature).log()
    settings = TransformersSettings(model=str(checkpoint), threads=1, dtype="float32", prefill_chunk=8)
    engine = TransformersEngine(settings)
    await engine.start()
    try:
        drawn = set()
        for seed in range(24):
            sampling = Sampling(temperature=temperature, seed=seed, max_tokens=1, logprobs=True)
            token, logprob = await first_token(engine, ids, sampling)
            assert logprob == pytest.approx(float(expected[token]), abs=1e-3)
            drawn.add(token)
        assert len(drawn) > 1
    finally:
        await engine.stop()


async def test_packed_weights_in_bfloat16(checkpoint: Path) -> None:
    if not can_pack(torch.device("cpu"), torch.bfloat16):
        pytest.skip("this CPU has no bfloat16 products")
    ids, greedy = prompt(30), Sampling(temperature=0.0, max_tokens=1, logprobs=True)
    found = []
    for dtype in ("float32", "bfloat16"):
        ExecuteHead("<tool_call>", (0.05,) * 48, 3.0).save(checkpoint)
        engine = TransformersEngine(TransformersSettings(model=str(checkpoint), threads=1, dtype=dtype))
        await engine.start()
        found.append(await first_token(engine, ids, greedy))
        await engine.stop()
    assert found[0][0] == found[1][0] == MARKER
    assert found[1][1] == pytest.approx(found[0][1], abs=0.05)


async def test_new_weights_replace_or_remove_the_head(checkpoint: Path, tmp_path: Path) -> None:
    ids, greedy = prompt(30), Sampling(temperature=0.0, max_tokens=1, logprobs=True)
    engine = TransformersEngine(TransformersSettings(model=str(checkpoint), threads=1, dtype="float32"))
    await engine.start()
    try:
        plain = make_checkpoint(tmp_path / "plain")
        await engine.load_weights(plain)
        without = await first_token(engine, ids, greedy)
        ExecuteHead("<tool_call>", (0.0,) * 48, 30.0).save(plain)
        await engine.load_weights(plain)
        assert (await first_token(engine, ids, greedy))[0] == MARKER != without[0]
        ExecuteHead("<tool_call>", (0.0,) * 47, 30.0).save(plain)
        with pytest.raises(EngineError, match=r"has shape \[47\], not \[48\]"):
            await engine.load_weights(plain)
    finally:
        await engine.stop()


def test_vllm_refuses(checkpoint: Path) -> None:
    with pytest.raises(
        EngineError, match=r"execute head .* which vLLM does not support.*--engine transformers"
    ):
        VLLMEngine(VLLMSettings(model=str(checkpoint)))
