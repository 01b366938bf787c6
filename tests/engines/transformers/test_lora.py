from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, PeftModel
from safetensors.torch import load_file, save_file

from service.engines.base import EngineError, Sampling
from service.engines.settings import TransformersSettings
from service.engines.transformers.engine import TransformersEngine
from tests.support.peft_adapters import make_adapter
from tests.support.streams import assert_greedy, collect
from tests.support.tiny_qwen3 import make_checkpoint, make_model, make_tokenizer
from tests.support.tokens import prompt, sampled

POET = {"r": 4}
CHEMIST = {"r": 2, "target_modules": ["q_proj", "down_proj"], "use_rslora": True, "lora_alpha": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, torch.nn.Module]:
    """peft's reference models: the base under None, and one model per adapter name."""
    base = make_checkpoint(tmp_path_factory.mktemp("base"))
    models: dict[str | None, torch.nn.Module] = {None: make_model(make_tokenizer())}
    for seed, (name, config) in enumerate({"poet": POET, "chemist": CHEMIST}.items()):
        model = make_model(make_tokenizer())
        models[name] = make_adapter(model, base / name, base=base, seed=seed, **config)
    return models


@pytest.fixture(scope="module")
def base(models: dict[str | None, torch.nn.Module]) -> Path:
    poet = models["poet"]
    assert isinstance(poet, PeftModel)
    return Path(str(poet.peft_config["default"].base_model_name_or_path))


def settings(base: Path, **options: Any) -> TransformersSettings:
    adapters = {"poet": base / "poet", "chemist": base / "chemist"}
    return TransformersSettings(
        model=str(base), model_name="base", max_slots=4, prefill_chunk=24, adapters=adapters, **options
    )


@pytest.fixture
async def engine(base: Path) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(settings(base))
    await engine.start()
    yield engine
    await engine.stop()


def greedy(adapter: str | None, tokens: int = 20) -> Sampling:
    return Sampling(temperature=0, max_tokens=tokens, adapter=adapter)


async def test_mixed_batch_matches_peft(
    engine: TransformersEngine, models: dict[str | None, torch.nn.Module]
) -> None:
    assert engine.adapters == ("poet", "chemist")
    calls = [(name, prompt(10 + 15 * n, seed=n)) for n in range(3) for name in (None, "poet", "chemist")]
    results = await asyncio.gather(*(collect(engine, ids, greedy(name)) for name, ids in calls))
    for (name, ids), chunks in zip(calls, results, strict=True):
        assert_greedy(models[name], ids, chunks)
    outputs = {name: sampled(chunks) for (name, _), chunks in zip(calls[:3], results, strict=False)}
    assert len({tuple(output) for output in outputs.values()}) == 3


async def test_cached_prefix_is_reused_only_by_its_adapter(
    engine: TransformersEngine, models: dict[str | None, torch.nn.Module]
) -> None:
    ids = prompt(80)
    for name in ("poet", "chemist", None):
        before = engine.stats().cached_tokens
        assert_greedy(models[name], ids, await collect(engine, ids, greedy(name)))
        assert engine.stats().cached_tokens == before
        assert_greedy(models[name], ids, await collect(engine, ids, greedy(name)))
        assert engine.stats().cached_tokens == before + len(ids) - 1


async def test_new_weights_of_the_base_keep_the_adapters(engine: TransformersEngine, base: Path) -> None:
    other = make_model(make_tokenizer(), seed=5)
    await engine.load_weights(other.state_dict())
    ids = prompt(30)
    assert_greedy(other, ids, await collect(engine, ids, greedy(None)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = PeftModel.from_pretrained(make_model(make_tokenizer(), seed=5), str(base / "poet"))
    assert_greedy(expected, ids, await collect(engine, ids, greedy("poet")))


async def test_adapters_on_packed_bfloat16_layers(
    base: Path, models: dict[str | None, torch.nn.Module]
) -> None:
    engine = TransformersEngine(settings(base, dtype="bfloat16"))
    await engine.start()
    ids = prompt(30)
    for name in (None, "poet"):
        chunks = await collect(
            engine, ids, Sampling(temperature=0, max_tokens=1, top_logprobs=8, adapter=name)
        )
        with torch.inference_mode():
            expected = models[name](input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        found = {top.token_id: top.logprob for top in chunks[0].top_logprobs[0]}
        differences = [abs(expected[token_id] - logprob) for token_id, logprob in found.items()]
        assert max(differences) < 0.5  # bfloat16 rounding; another adapter differs by whole units
    await engine.stop()


async def test_unknown_adapter_is_rejected(engine: TransformersEngine) -> None:
    with pytest.raises(EngineError, match=r"adapter 'painter' is unknown; .*: poet, chemist"):
        await collect(engine, [1], greedy("painter"))


def test_adapter_with_the_models_name_is_rejected(base: Path) -> None:
    with pytest.raises(EngineError, match="has the same name as the model"):
        TransformersEngine(
            TransformersSettings(model=str(base), model_name="poet", adapters={"poet": base / "poet"})
        )


async def refusal(base: Path, adapter: Path) -> str:
    engine = TransformersEngine(TransformersSettings(model=str(base), adapters={"odd": adapter}))
    with pytest.raises(EngineError, match="adapter 'odd'") as caught:
        await engine.start()
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"trainable_token_indices": [3]}, "is more than plain LoRA; merge it instead: --model"),
        ({"modules_to_save": ["lm_head"]}, "is more than plain LoRA"),
        ({"use_dora": True}, "is more than plain LoRA"),
        ({"bias": "lora_only", "lora_bias": True}, "is more than plain LoRA"),
        ({"target_modules": ["lm_head"]}, "is more than plain LoRA"),
        ({"layer_replication": [[0, 2], [0, 1]]}, "layer_replication"),
    ],
)
async def test_rejects_adapter_beyond_plain_lora(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    base = make_checkpoint(tmp_path / "base", tie_word_embeddings=False)
    model = make_model(make_tokenizer(), tie_word_embeddings=False)
    make_adapter(model, tmp_path / "odd", base=base, **config)
    assert message in await refusal(base, tmp_path / "odd")


async def test_unreadable_adapter_is_rejected(base: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    assert "adapter_config.json is missing" in await refusal(base, odd)
    (odd / "adapter_config.json").write_text((base / "poet" / "adapter_config.json").read_text())
    assert "adapter_model.safetensors" in await refusal(base, odd)
    tensors = load_file(base / "poet" / "adapter_model.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: torch.zeros(1, 1)}, odd / "adapter_model.safetensors")
    assert "is [1, 1], the model needs [" in await refusal(base, odd)
    save_file(
        {other: tensors[other] for other in tensors if other != name}, odd / "adapter_model.safetensors"
    )
    assert "is missing in adapter_model.safetensors" in await refusal(base, odd)
    IA3Config(target_modules=["k_proj"], feedforward_modules=[]).save_pretrained(odd)
    assert "not LoRA" in await refusal(base, odd)
