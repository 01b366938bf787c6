"""The profile `store`: responses in Postgres survive restarts of api and database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai.types.responses import Response

from tests.compose.stack import Stack, image_of, new_stack

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.compose, pytest.mark.timeout(1500)]

COUNT = ["psql", "--username=ih_grpo", "--dbname=ih_grpo", "-tAc", "select count(*) from responses"]
DATA = "/var/lib/ih-grpo/data"
"""The folder of the SQLite file."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with new_stack(
        "v1",
        tmp_path_factory.mktemp("stored-"),
        POSTGRES_IMAGE=image_of("postgres"),
        COMPOSE_PROFILES="store",
        IHGRPO_STORE_URL="postgresql://ih_grpo@postgres/ih_grpo",
    ) as stack:
        stack.compose("up", "-d")
        stack.wait_ready()
        yield stack


def answer(stack: Stack, **more: Any) -> Response:
    """Create a response whose code runs in a sandbox."""
    with stack.client() as client:
        reply = client.responses.create(
            model="quickstart",
            input="What is 739184 times 52967 plus 90412 times 33771?",
            tools=[{"type": "code_interpreter", "container": {"type": "auto"}}],
            temperature=0,
            **more,
        )
    assert reply.status == "completed", reply
    return reply


@pytest.fixture(scope="module")
def first(stack: Stack) -> str:
    """The id of a stored response."""
    return answer(stack).id


def test_responses_are_stored_in_postgres(stack: Stack, first: str) -> None:
    assert stack.container("postgres").exec_run(COUNT).output.strip() == b"1"


def test_postgres_requires_the_password(stack: Stack) -> None:
    wrong = (
        "import asyncio, asyncpg\n"
        "try: asyncio.run(asyncpg.connect('postgresql://ih_grpo:wrong@postgres/ih_grpo'))\n"
        "except asyncpg.InvalidPasswordError as error: print(type(error).__name__)"
    )
    done = stack.container("api").exec_run(["/opt/ih-grpo/bin/python", "-c", wrong])
    assert done.output.strip() == b"InvalidPasswordError"


def test_api_recovers_after_a_database_outage(stack: Stack, first: str) -> None:
    stack.compose("restart", "postgres")
    stack.wait_ready()
    with stack.client() as client:
        assert client.responses.retrieve(first).status == "completed"


def test_responses_survive_a_restart(stack: Stack, first: str) -> None:
    stack.compose("up", "-d", "--force-recreate")
    stack.wait_ready()
    assert answer(stack, previous_response_id=first).previous_response_id == first
    assert stack.container("postgres").exec_run(COUNT).output.strip() == b"2"


def test_token_and_password_rotation_from_the_guide(stack: Stack, first: str) -> None:
    read = ["cat", "/run/ih-grpo/runner-token", "/run/ih-grpo/pgpass"]
    before = stack.container("api").exec_run(read).output.split()
    stack.follow(__file__, "change-secrets")
    stack.wait_ready()
    after = stack.container("api").exec_run(read).output.split()
    assert len(after) == len(before) == 2
    assert not set(after) & set(before)
    assert answer(stack, previous_response_id=first).previous_response_id == first


def test_restores_a_backup_after_data_loss(stack: Stack, first: str) -> None:
    count = stack.container("postgres").exec_run(COUNT).output
    keep = ["sh", "-c", f"echo kept > {DATA}/kept"]
    assert stack.container("api").exec_run(keep).exit_code == 0
    stack.follow(__file__, "back-up")
    stack.compose("down", "--volumes", "--timeout", "60")
    stack.follow(__file__, "restore")
    stack.wait_ready()
    assert stack.container("postgres").exec_run(COUNT).output == count
    with stack.client() as client:
        assert client.responses.retrieve(first).status == "completed"
    add = ["sh", "-c", f"echo too >> {DATA}/kept && cat {DATA}/kept"]  # still owned by the api
    assert stack.container("api").exec_run(add).output == b"kept\ntoo\n"
