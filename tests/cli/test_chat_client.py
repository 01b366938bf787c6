from __future__ import annotations

import asyncio

import pytest

from service.cli.chat import ChatError, Client
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, serve


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_a_base_url_may_end_in_v1(suffix: str) -> None:
    def first_model(url: str) -> str:
        with Client(url, None) as client:
            return client.model()[0]

    app = make_app(ScriptedEngine(EOS), ScriptedSandbox(lambda blocks: printed("")))
    async with serve(app) as served:
        assert await asyncio.to_thread(first_model, served.url + suffix) == "scripted"
        with pytest.raises(ChatError, match=r"/elsewhere/v1/models answered 404: is .* the base URL"):
            await asyncio.to_thread(first_model, f"{served.url}/elsewhere")
