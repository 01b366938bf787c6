"""Data of version 0.1.0 works with the current code; see tests/data/version-0.1.0/README.md."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from service.deferral.policy import DeferralPolicy
from service.server.settings import Settings, unknown_env_vars
from service.store.backup import back_up, restore
from service.store.blobs import open_blobs
from tests.support.fake_files import FakeFileSandbox
from tests.support.scripted import EOS, ScriptedEngine
from tests.support.serving import Served, make_app, serve

DATA = Path(__file__).parents[1] / "data" / "version-0.1.0"
EXPECTED: Any = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    """The store of version 0.1.0, with its files beside it."""
    with closing(sqlite3.connect(tmp_path / "responses.db")) as connection:
        connection.executescript(gzip.decompress((DATA / "store.sql.gz").read_bytes()).decode())
    shutil.copytree(DATA / "files", tmp_path / "files")
    return f"sqlite:///{tmp_path / 'responses.db'}"


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine("Next." + EOS)


@pytest.fixture
async def served(store_url: str, engine: ScriptedEngine) -> AsyncGenerator[Served, None]:
    app = make_app(
        engine,
        FakeFileSandbox(),  # type: ignore[arg-type]
        store_url=store_url,
        api_keys_file=str(DATA / "keys"),
        container_files_days=36_500.0,
        seal_keys=EXPECTED["seal_key"],
    )
    async with serve(app, EXPECTED["key"]) as running:
        yield running


def prompt(engine: ScriptedEngine) -> str:
    return engine.tokenizer.decode(engine.calls[-1][0])


async def test_responses_are_kept_and_continued(served: Served, engine: ScriptedEngine) -> None:
    for response_id, text in EXPECTED["texts"].items():
        response = await served.openai.responses.retrieve(response_id)
        assert (response.output_text, response.status) == (text, "completed")
        assert [item async for item in served.openai.responses.input_items.list(response_id)]
    first = await served.openai.responses.retrieve(EXPECTED["first"])
    assert first.metadata == {"team": "a"}
    third = await served.openai.responses.create(
        model="scripted", input="Third", previous_response_id=EXPECTED["second"]
    )
    assert third.output_text == "Next."
    assert "Read the täble" in prompt(engine)
    assert "Code execution result: seen" in prompt(engine)
    assert "Again." in prompt(engine)


async def test_events_of_a_background_response_can_be_read_again(served: Served) -> None:
    stream = await served.openai.responses.retrieve(EXPECTED["background"], stream=True)
    kinds = [event.type async for event in stream]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")


async def test_files_and_containers_are_kept(served: Served, engine: ScriptedEngine) -> None:
    client = served.openai
    [file] = [file async for file in client.files.list()]
    assert (file.id, file.filename, file.bytes) == (EXPECTED["file"], "täble.csv", 8)
    assert (await client.files.content(file.id)).content == b"1,2\n3,4\n"
    container = await client.containers.retrieve(EXPECTED["container"])
    assert container.status == "expired"
    files = {one.path: one.id async for one in client.containers.files.list(container.id)}
    assert files == EXPECTED["container_files"]
    content = await client.containers.files.content.retrieve(
        files["/sandbox/out.txt"], container_id=container.id
    )
    assert content.content == b"1,2"
    # A new container gets the files of the conversation.
    engine._turns[:] = ["```python\nprint(inputs)\n```<tool_call>", "Done." + EOS]
    tools: Any = [{"type": "code_interpreter", "container": {"type": "auto"}}]
    again = await client.responses.create(
        model="scripted",
        input="Again",
        previous_response_id=EXPECTED["first"],
        tools=tools,
        include=["code_interpreter_call.outputs"],
    )
    call: Any = next(item for item in again.output if item.type == "code_interpreter_call")
    assert call.outputs[0].logs == "{'täble.csv': b'1,2\\n3,4\\n'}"
    with pytest.raises(openai.NotFoundError):
        await client.files.content("file-" + "0" * 32)


async def test_chat_replies_are_recognised(served: Served, engine: ScriptedEngine) -> None:
    messages = [*EXPECTED["chat"], {"role": "user", "content": "More"}]
    await served.openai.chat.completions.create(model="scripted", messages=messages)
    marker = engine.tokenizer.token_id("<tool_call>")
    assert marker in engine.calls[-1][0]


async def test_seconds_of_code_are_part_of_the_usage(served: Served) -> None:
    quotas = served.app.state.server.quotas
    results = await quotas.usage.results(0, 2**40, width_s=86_400)
    assert [one.used.sandbox_seconds for one in results] == [0.5]
    async with httpx.AsyncClient(base_url=served.url, headers={"x-api-key": EXPECTED["key"]}) as client:
        assert (await client.get("/v1/usage")).json()["stored_bytes"] > 1000


async def test_upgraded_store_can_be_backed_up_and_restored(
    served: Served, store_url: str, tmp_path: Path
) -> None:
    blobs = open_blobs(str(tmp_path / "files"))
    made = await back_up(store_url, blobs, tmp_path / "backup", version="0.1.0")
    assert (made.responses, made.files) == (3, 2)
    there = f"sqlite:///{tmp_path / 'there' / 'responses.db'}"
    await restore(tmp_path / "backup", there, open_blobs(str(tmp_path / "there" / "files")))


def test_all_settings_still_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (DATA / "settings.txt").read_text(encoding="utf-8").split()
    assert len(names) > 60
    assert [name for name in names if name not in Settings.model_fields] == []
    lines = re.findall(r"^#IHGRPO_(\w+)=(.+)$", (DATA / "settings.env").read_text("utf-8"), re.MULTILINE)
    defaults = {f"IHGRPO_{name}": value for name, value in lines if name.lower() in names}
    assert len(defaults) > 30
    assert list(unknown_env_vars(defaults)) == []
    for name, value in defaults.items():
        monkeypatch.setenv(name, value)
    assert Settings().store_days == 30.0


@pytest.mark.parametrize(
    ("name", "turns", "run_limit_s", "mode"),
    [
        ("oldest", 3, 3.0, "deferred"),
        ("quickstart", 5, 3.0, "deferred"),
        ("qwen2.5-coder-0.5b-ih-grpo", 20, 60.0, "deferred"),
        ("assistant", 20, 60.0, "immediate"),
    ],
)
def test_policies_of_all_schema_versions_are_read(
    name: str, turns: int, run_limit_s: float, mode: str, tmp_path: Path
) -> None:
    shutil.copy(DATA / "deferral" / f"{name}.json", tmp_path / "deferral.json")
    policy = DeferralPolicy.load(tmp_path)
    assert (policy.max_turns, policy.run_limit_s, policy.mode) == (turns, run_limit_s, mode)
    written = json.loads((tmp_path / "deferral.json").read_text())
    assert all(
        getattr(policy, field) == value for field, value in written.items() if field != "schema_version"
    )


@pytest.mark.parametrize("recipe", sorted((DATA / "recipes").iterdir()), ids=lambda path: path.stem)
def test_recipes_are_accepted(recipe: Path) -> None:
    from trainer.quickstart.config import WarmStartConfig
    from trainer.training.config import load_config
    from trainer.warm_start.recipe import load_warm_start

    match recipe.stem:
        case "warm-start":
            assert load_warm_start(recipe).steps == 120
        case name if "warm-start" in name:
            assert WarmStartConfig.load(recipe).steps > 0
        case _:
            assert load_config(recipe).steps > 0
