"""Third-party API clients, in separate processes, installed by `scripts/ensure-test-tools clients`.

``IHGRPO_CLIENTS_TABLE=docs/reference/clients.md pytest -m clients`` writes the table of outcomes.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.conftest import KEY

pytestmark = [pytest.mark.clients, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).with_name("clients")
FEATURES = (
    *("chat", "streaming", "deferred code", "own functions", "functions and code", "JSON by schema"),
    *("thinking", "log-probabilities", "errors", "Responses API"),
)
CLIENTS = {
    "openai_python.py": "OpenAI SDK for Python",
    "openai_javascript.mjs": "OpenAI SDK for JavaScript",
    "ai_sdk.mjs": "Vercel AI SDK",
    "langchain.py": "LangChain, `ChatOpenAI`",
    "langgraph_client.py": "LangGraph",
    "pydantic_ai_client.py": "Pydantic AI",
    "autogen_client.py": "AutoGen",
    "agents_sdk.py": "OpenAI Agents SDK",
    "litellm_client.py": "LiteLLM",
    "llm_client.py": "`llm`",
}
BEGIN, END = "<!-- clients: written by tests/conformance/test_clients.py -->", "<!-- end of clients -->"

Outcomes = dict[str, dict[str, str | None]]


@pytest.fixture(scope="module")
def table() -> Iterator[Outcomes]:
    outcomes: Outcomes = {}
    yield outcomes
    if path := os.environ.get("IHGRPO_CLIENTS_TABLE"):
        write(Path(path), outcomes)


def write(path: Path, outcomes: Outcomes) -> None:
    lines = ["| client | " + " | ".join(FEATURES) + " |", "| --- |" + " --- |" * len(FEATURES)]
    for program, title in CLIENTS.items():
        words = [_word(outcomes.get(program, {}), feature) for feature in FEATURES]
        lines.append(f"| {title} | " + " | ".join(words) + " |")
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text("\n".join([before + BEGIN, *lines, END + after]), encoding="utf-8")


def _word(outcomes: dict[str, str | None], feature: str) -> str:
    if feature not in outcomes:
        return "–"
    return "works" if outcomes[feature] is None else "**fails**"


def command(program: str) -> list[str]:
    clients = Path(os.environ.get("IHGRPO_CACHE", ROOT / ".cache")) / "clients"
    if not (clients / ".installed").exists():
        pytest.fail("the clients are not installed: scripts/ensure-test-tools clients", pytrace=False)
    interpreter = "node" if program.endswith(".mjs") else str(clients / "venv/bin/python")
    return [interpreter, str(PROGRAMS / program)]


@pytest.mark.parametrize("program", CLIENTS)
def test_client_features_work(program: str, url: str, table: Outcomes, tmp_path: Path) -> None:
    clients = Path(os.environ.get("IHGRPO_CACHE", ROOT / ".cache")) / "clients"
    environment = {**os.environ, "HOME": str(tmp_path), "OPENAI_API_KEY": KEY, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command(program), url, KEY],
        capture_output=True, text=True, cwd=clients, env=environment, timeout=300, check=False,
    )  # fmt: skip
    words = [line for line in done.stdout.splitlines() if line.startswith("OUTCOMES ")]
    assert words, done.stdout[-2000:] + done.stderr[-4000:]
    outcomes: dict[str, str | None] = json.loads(words[0].removeprefix("OUTCOMES "))
    table[program] = outcomes
    assert set(outcomes) <= set(FEATURES)
    failures = [f"{name}: {error}" for name, error in outcomes.items() if error is not None]
    assert failures == [], "\n".join(failures)
