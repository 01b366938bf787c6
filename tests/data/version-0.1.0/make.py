"""Make the data in this folder with the code of version 0.1.0.

Run it in a checkout of that version, whose tests must be importable, not in a later one:
``PYTHONPATH=. python .../make.py FOLDER``.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from service.deferral.policy import ASSISTANT_POLICY
from service.server.settings import Settings
from tests.support.fake_files import FakeFileSandbox
from tests.support.scripted import EOS, ScriptedEngine
from tests.support.serving import make_app, serve

KEY = "sk-of-version-0.1.0"
CODE = "Run\n```python\n{}\n```<tool_call>"
SEAL_KEY = "one:" + "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="
DAYS = 36_500.0
"""So that the test finds the data in later years, too."""


async def use(folder: Path, out: Path) -> dict[str, Any]:
    """Use every part of the API that stores something, and return the ids."""
    engine = ScriptedEngine("x")
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = f"# keys\nsha256:{digest} name=ann rpm=600 concurrency=8\nsha256:{'0' * 64} name=ops scope=admin\n"
    (out / "keys").write_text(keys)
    app = make_app(
        engine,
        FakeFileSandbox(),  # type: ignore[arg-type]
        store_url=f"sqlite:///{folder / 'responses.db'}",
        api_keys_file=str(out / "keys"),
        store_days=DAYS,
        container_files_days=DAYS,
        seal_keys=SEAL_KEY,
    )
    tools: Any = [{"type": "code_interpreter", "container": {"type": "auto"}}]
    async with serve(app, KEY) as served:
        client = served.openai

        def script(code: str, answer: str) -> None:
            engine._turns[:] = [CODE.format(code), answer + EOS]

        file = await client.files.create(file=("täble.csv", b"1,2\n3,4\n"), purpose="user_data")
        tools[0]["container"]["file_ids"] = [file.id]
        script("work['out.txt'] = inputs['täble.csv'][:3]\nprint('seen')", "See /sandbox/out.txt.")
        first = await client.responses.create(
            model="scripted", input="Read the täble", tools=tools, metadata={"team": "a"}
        )
        engine._turns[:] = ["Again." + EOS]
        second = await client.responses.create(
            model="scripted", input="And now?", previous_response_id=first.id
        )
        script("print(6 * 7)", "It is 42.")
        background = await client.responses.create(
            model="scripted", input="Later", tools=tools, background=True
        )
        while background.status in ("queued", "in_progress"):
            await asyncio.sleep(0.1)
            background = await client.responses.retrieve(background.id)
        assert background.status == "completed", background
        script("print('kept')", "Chat.")
        messages: Any = [{"role": "user", "content": "Run something"}]
        chat = await client.chat.completions.create(model="scripted", messages=messages)
        container = next(item.container_id for item in first.output if item.type == "code_interpreter_call")
        written = await client.containers.files.list(container)
        return {
            "key": KEY,
            "seal_key": SEAL_KEY,
            "file": file.id,
            "first": first.id,
            "second": second.id,
            "background": background.id,
            "texts": {one.id: one.output_text for one in (first, second, background)},
            "chat": [*messages, {"role": "assistant", "content": chat.choices[0].message.content}],
            "container": container,
            "container_files": {one.path: one.id for one in written.data},
        }


def main(out: Path) -> None:
    """Write the store, the files, the settings and the recipes."""
    work = out / "work"
    work.mkdir(parents=True)
    ids = asyncio.run(use(work, out))
    (out / "expected.json").write_text(json.dumps(ids, indent=2) + "\n")
    with closing(sqlite3.connect(work / "responses.db")) as connection:
        dump = "\n".join(connection.iterdump())
    (out / "store.sql.gz").write_bytes(gzip.compress(dump.encode(), mtime=0))
    shutil.copytree(work / "files", out / "files")
    shutil.rmtree(work)
    for recipe in Path("recipes").glob("*.toml"):
        (out / "recipes").mkdir(exist_ok=True)
        shutil.copy(recipe, out / "recipes")
    shutil.copy(".env.example", out / "settings.env")
    (out / "settings.txt").write_text("\n".join(Settings.model_fields) + "\n")
    (out / "deferral").mkdir()
    for checkpoint in Path("checkpoints").iterdir():
        shutil.copy(checkpoint / "deferral.json", out / "deferral" / f"{checkpoint.name}.json")
    ASSISTANT_POLICY.save(out / "deferral")
    (out / "deferral" / "deferral.json").rename(out / "deferral" / "assistant.json")
    oldest = {"schema_version": 1, "max_turns": 3}
    (out / "deferral" / "oldest.json").write_text(json.dumps(oldest) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
