from __future__ import annotations

import openai
import pytest

from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve


async def test_the_model_and_no_other() -> None:
    engine = ScriptedEngine(EOS)
    engine.model_name = "Qwen/Qwen3-4B"  # a name with a slash in it
    async with serve(make_app(engine, ScriptedSandbox(lambda blocks: printed("")))) as served:
        assert [model.id async for model in served.openai.models.list()] == ["Qwen/Qwen3-4B"]
        model = await served.openai.models.retrieve("Qwen/Qwen3-4B")
        assert (model.id, model.object) == ("Qwen/Qwen3-4B", "model")
        with pytest.raises(openai.NotFoundError) as caught:
            await served.openai.models.retrieve("other")
    assert caught.value.code == "model_not_found"
