"""Third-party API clients, in separate processes, installed by `scripts/ensure-test-tools clients`.

``IHGRPO_CLIENTS_RESULTS=tests/conformance/clients/results.json pytest -m clients`` records the outcomes.
`scripts/generate` makes the table in `docs/reference/clients.md` from this file.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conformance.conftest import KEY

pytestmark = [pytest.mark.clients, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).with_name("clients")
FEATURES = (
    *("chat", "streaming", "deferred code", "own functions", "functions and code", "functions from code"),
    *(
        "JSON by schema",
        "thinking",
        "log-probabilities",
        "text completions",
        "errors",
        "Responses API",
        "Messages API",
    ),
)
CLIENTS = {
    "openai_python.py": ("OpenAI SDK for Python", "openai"),
    "openai_javascript.mjs": ("OpenAI SDK for JavaScript", "npm:openai"),
    "anthropic_python.py": ("Anthropic SDK for Python", "anthropic"),
    "anthropic_javascript.mjs": ("Anthropic SDK for JavaScript", "npm:@anthropic-ai/sdk"),
    "ai_sdk.mjs": ("Vercel AI SDK", "npm:ai"),
    "langchain.py": ("LangChain for Python, `ChatOpenAI` and `ChatAnthropic`", "langchain-openai"),
    "langchain_javascript.mjs": ("LangChain for JavaScript, `ChatOpenAI`", "npm:@langchain/openai"),
    "langgraph_client.py": ("LangGraph for Python", "langgraph"),
    "langgraph_javascript.mjs": ("LangGraph for JavaScript", "npm:@langchain/langgraph"),
    "pydantic_ai_client.py": ("Pydantic AI", "pydantic-ai-slim"),
    "autogen_client.py": ("AutoGen", "autogen-ext"),
    "agents_sdk.py": ("OpenAI Agents SDK", "openai-agents"),
    "litellm_client.py": ("LiteLLM", "litellm"),
    "llm_client.py": ("`llm`", "llm"),
    "codex_client.py": ("Codex CLI", "npm:@openai/codex"),
    "lm_eval_client.py": ("lm-evaluation-harness", "lm_eval"),
}
"""Title and package of each client, by program."""

Outcomes = dict[str, dict[str, str | None]]


@pytest.fixture(scope="module")
def recorded() -> Iterator[Outcomes]:
    """Outcomes of the programs that ran. They replace those of an earlier run in the file of results."""
    outcomes: Outcomes = {}
    yield outcomes
    if path := os.environ.get("IHGRPO_CLIENTS_RESULTS"):
        record(Path(path), outcomes)


def record(path: Path, outcomes: Outcomes) -> None:
    results = json.loads(path.read_text(encoding="utf-8"))["clients"] if path.exists() else {}
    versions = installed_versions()
    for program, features in outcomes.items():
        title, package = CLIENTS[program]
        results[program] = {
            "title": title,
            "package": package,
            "version": versions[package],
            "date": datetime.now(UTC).date().isoformat(),
            "features": {name: error is None for name, error in features.items()},
        }
    ordered = {program: results[program] for program in CLIENTS if program in results}
    path.write_text(json.dumps({"features": FEATURES, "clients": ordered}, indent=2) + "\n", encoding="utf-8")


def installed_versions() -> dict[str, str]:
    """Return the pinned version of each client's package."""
    npm = json.loads((PROGRAMS / "package.json").read_text(encoding="utf-8"))["dependencies"]
    lines = (PROGRAMS / "requirements.txt").read_text(encoding="utf-8").split()
    pip = {
        re.sub(r"\[.*\]", "", name): version for name, _, version in (line.partition("==") for line in lines)
    }
    return {**pip, **{f"npm:{name}": version for name, version in npm.items()}}


def command(program: str) -> list[str]:
    clients = Path(os.environ.get("IHGRPO_CACHE", ROOT / ".cache")) / "clients"
    if not (clients / ".installed").exists():
        pytest.fail("the clients are not installed: scripts/ensure-test-tools clients", pytrace=False)
    interpreter = "node" if program.endswith(".mjs") else str(clients / "venv/bin/python")
    return [interpreter, str(PROGRAMS / program)]


@pytest.mark.parametrize("program", CLIENTS)
def test_client_features_work(program: str, url: str, recorded: Outcomes, tmp_path: Path) -> None:
    clients = Path(os.environ.get("IHGRPO_CACHE", ROOT / ".cache")) / "clients"
    environment = {**os.environ, "HOME": str(tmp_path), "OPENAI_API_KEY": KEY, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command(program), url, KEY],
        capture_output=True, text=True, cwd=clients, env=environment, timeout=300, check=False,
    )  # fmt: skip
    words = [line for line in done.stdout.splitlines() if line.startswith("OUTCOMES ")]
    assert words, done.stdout[-2000:] + done.stderr[-4000:]
    outcomes: dict[str, str | None] = json.loads(words[0].removeprefix("OUTCOMES "))
    recorded[program] = outcomes
    assert set(outcomes) <= set(FEATURES)
    failures = [f"{name}: {error}" for name, error in outcomes.items() if error is not None]
    assert failures == [], "\n".join(failures)
