"""``llm``, by its command: a model of its extra-openai-models.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import BASE_URL, HELLO, KEY, MODEL, PLACE_SCHEMA, feature, run

home = Path(tempfile.mkdtemp())
(home / "extra-openai-models.yaml").write_text(
    f"- model_id: ours\n  model_name: {MODEL}\n  api_base: {BASE_URL}\n  supports_tools: true\n"
    "  supports_schema: true\n  api_key_name: ours\n"
)
(home / "keys.json").write_text(json.dumps({"ours": KEY}))


def llm(*arguments: str) -> str:
    environment = {**os.environ, "LLM_USER_PATH": str(home)}
    command = [str(Path(sys.executable).with_name("llm")), *arguments, "-m", "ours"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    if done.returncode:
        raise AssertionError(done.stderr)
    return done.stdout.strip()


@feature("chat")
def chat() -> None:
    assert llm("Hi", "--no-stream") == HELLO


@feature("streaming")
def streaming() -> None:
    assert llm("Hi") == HELLO


@feature("deferred code")
def deferred() -> None:
    assert llm("6 * 7?").endswith("\\boxed{42}.")


@feature("own functions")
def functions() -> None:
    code = "def get_weather(city: str) -> str:\n    'Weather of a city.'\n    return 'sunny in ' + city\n"
    for options in ((), ("--no-stream",)):
        assert "sunny" in llm("weather?", "--functions", code, *options)
        assert llm("Hello", "-c", *options) == HELLO


@feature("JSON by schema")
def structured() -> None:
    assert json.loads(llm("JSON please", "--schema", json.dumps(PLACE_SCHEMA)))["degrees"] == 21


run()
