from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from service.engines.checkpoint import DEMO_NOTICE, DEMO_WITHOUT_DEFERRAL, is_demo, quickstart
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve


async def test_lists_the_model_only() -> None:
    engine = ScriptedEngine(EOS)
    engine.model_name = "Qwen/Qwen3-4B"  # a name with a slash in it
    async with serve(make_app(engine, ScriptedSandbox(lambda blocks: printed("")))) as served:
        assert [model.id async for model in served.openai.models.list()] == ["Qwen/Qwen3-4B"]
        model = await served.openai.models.retrieve("Qwen/Qwen3-4B")
        assert (model.id, model.object) == ("Qwen/Qwen3-4B", "model")
        with pytest.raises(openai.NotFoundError) as caught:
            await served.openai.models.retrieve("other")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("demo", [True, False])
async def test_demo_model_has_a_notice(demo: bool, tiny_checkpoint: Path) -> None:
    model = str(quickstart() if demo else tiny_checkpoint)
    app = make_app(ScriptedEngine("Hi" + EOS), ScriptedSandbox(lambda blocks: printed("")), model=model)
    ask: Any = {"model": "scripted", "messages": [{"role": "user", "content": "?"}]}
    async with serve(app) as served:
        notice = (await served.openai.models.retrieve("scripted")).notice  # type: ignore[attr-defined]
        assert notice == (DEMO_NOTICE if demo else None)
        on = await served.openai.chat.completions.create(**ask)
        off = await served.openai.chat.completions.create(**ask, extra_body={"deferral": {"enabled": False}})
        assert getattr(on, "notice", None) is None
        assert getattr(off, "notice", None) == (DEMO_WITHOUT_DEFERRAL if demo else None)


def test_only_the_packaged_checkpoint_is_the_demo(tmp_path: Path) -> None:
    assert is_demo(str(quickstart()))
    assert not is_demo("Qwen/Qwen3-4B")
    assert not is_demo(str(tmp_path))
