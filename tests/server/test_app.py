from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.deferral.policy import DeferralPolicy
from service.engines.base import EngineError
from service.sandbox.base import SandboxError
from service.sandbox.bubblewrap.sandbox import ProcessSandbox
from service.server.app import _sandbox, create_app
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, settings


class Counting(ScriptedEngine):
    """An engine or sandbox that counts its starts and stops."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(EOS)
        self.started = self.stopped = 0
        self._error = error

    async def start(self) -> None:
        self.started += 1
        if self._error is not None:
            raise self._error

    async def stop(self) -> None:
        self.stopped += 1


class Locked(ScriptedSandbox):
    async def start(self) -> None:
        raise SandboxError("Docker does not answer")


def sandbox() -> ScriptedSandbox:
    return ScriptedSandbox(lambda blocks: printed(""))


async def run_lifespan(app: Any) -> None:
    async with app.router.lifespan_context(app):
        pass


async def test_lifespan_starts_and_stops_engine_and_sandbox() -> None:
    engine = Counting()
    await run_lifespan(make_app(engine, sandbox()))
    assert (engine.started, engine.stopped) == (1, 1)


async def test_startup_failure_is_stored_and_the_rest_stopped() -> None:
    engine = Counting(EngineError("no weights"))
    app = make_app(engine, sandbox())
    with pytest.raises(EngineError):
        await run_lifespan(app)
    assert str(app.state.failure) == "no weights"
    assert engine.stopped == 1


async def test_model_is_not_loaded_if_the_sandbox_fails() -> None:
    engine = Counting()
    with pytest.raises(SandboxError):
        await run_lifespan(make_app(engine, Locked(lambda blocks: printed(""))))
    assert engine.started == 0


def test_runner_requires_a_token(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IHGRPO_RUNNER_TOKEN", raising=False)
    with pytest.raises(ValueError, match="IHGRPO_RUNNER_TOKEN"):
        create_app(settings(model=str(tiny_checkpoint), sandbox="runner"))


def test_settings_select_engine_and_sandbox(tiny_checkpoint: Path) -> None:
    app = create_app(settings(model=str(tiny_checkpoint), served_model_name="mine"))
    paths = {"/v1/chat/completions", "/v1/models", "/health", "/ready", "/metrics"}
    assert paths <= set(app.openapi()["paths"])


def test_bubblewrap_is_used_if_accepted(tiny_checkpoint: Path) -> None:
    accepted = settings(model=str(tiny_checkpoint), sandbox="process", accept_weaker_isolation=True)
    chosen = _sandbox(accepted, DeferralPolicy.load(tiny_checkpoint))
    assert isinstance(chosen, ProcessSandbox)
    assert chosen.settings.max_containers == accepted.max_containers
