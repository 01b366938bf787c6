from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from service.engines import factory
from service.engines.factory import make_engine
from service.engines.remote.engine import RemoteEngine
from service.engines.settings import GGUFSettings
from service.engines.transformers.engine import TransformersEngine
from service.engines.vllm.engine import VLLMEngine
from service.server.settings import Settings

URL = ("http://gpu:8000",)


@pytest.fixture(params=[False, True])
def has_vllm(request: pytest.FixtureRequest) -> Iterator[bool]:
    with patch.object(factory, "find_spec", lambda _name: request.param or None):
        yield request.param


def test_gguf_file_selects_its_engine(has_vllm: bool) -> None:
    for name in ("a/b.gguf", "B.GGUF"):
        assert Settings(model=name).engine_kind == Settings(model=name, engine="gguf").engine_kind == "gguf"


def test_gguf_engine_gets_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "my.model.gguf"
    path.touch()
    settings = Settings(model=str(path), gguf_cache_tokens=99, max_slots=3, max_context=50, device="cpu")
    assert settings.engine_settings(path) == GGUFSettings(
        model=str(path), model_name="my.model", device="cpu", max_slots=3, max_context=50, cache_tokens=99
    )


@pytest.mark.parametrize("has_gpu", [False, True])
def test_auto_engine_selection(has_vllm: bool, has_gpu: bool) -> None:
    with patch("torch.cuda.is_available", lambda: has_gpu):
        assert Settings().engine_kind == ("vllm" if has_vllm and has_gpu else "transformers")
        assert Settings(device="cpu").engine_kind == "transformers"
        assert Settings(engine_url=URL).engine_kind == "remote"
        assert Settings(vllm_args={"seed": 1}).engine_kind == "vllm"
        assert Settings(lora={"poet": Path("p")}).engine_kind == Settings().engine_kind
        assert Settings(engine="transformers").engine_kind == "transformers"


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"engine": "transformers"}, TransformersEngine),
        ({"engine": "vllm"}, VLLMEngine),
        ({"engine": "remote", "engine_url": URL}, RemoteEngine),
    ],
)
def test_all_engines_use_the_same_model_name(
    tiny_checkpoint: Path, options: dict[str, object], kind: type
) -> None:
    settings = Settings(model=str(tiny_checkpoint), max_context=100, **options)  # type: ignore[arg-type]
    engine = make_engine(settings.engine_settings(tiny_checkpoint))
    assert isinstance(engine, kind)
    assert (engine.model_name, engine.context_length, engine.healthy) == (tiny_checkpoint.name, 100, False)
    named = settings.model_copy(update={"served_model_name": "mine"})
    assert make_engine(named.engine_settings(tiny_checkpoint)).model_name == "mine"


def test_lora_setting_reaches_the_embedded_engine(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = Settings(model=str(tiny_checkpoint), engine="transformers", lora={"poet": tmp_path})
    assert make_engine(settings.engine_settings(tiny_checkpoint)).adapters == ("poet",)
