"""Static checks of docker-compose.yml and .env.example: hardening of every service, documented settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).parents[2]
COMPOSE = (REPO / "docker-compose.yml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE)["services"]
ONE_SHOT = {"init", "sandbox-image"}
NAMES_ROOT = {"init", "sandbox-image", "runner"}
"""Services that run as root of their container: to change the owner of files, to exit immediately, to open
the Docker socket."""


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened_and_bounded(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert "privileged" not in service
    assert service.get("network_mode") in (None, "none")


@pytest.mark.parametrize("name", SERVICES)
def test_services_run_as_unprivileged_user(name: str) -> None:
    user = SERVICES[name].get("user")
    if name in NAMES_ROOT:
        assert user in (None, "0:0")
    elif user is None:  # the image's user; the image is built here
        assert "build" in SERVICES[name]
        dockerfile = (REPO / "deploy/Dockerfile").read_text()
        assert "\nUSER 10001:10001\n" in dockerfile.rpartition("\nFROM ")[2]
    else:
        assert not user.startswith(("0", "root"))


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - ONE_SHOT - {"trainer"}))
def test_long_running_services_have_health_checks_and_restart(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]
    assert SERVICES[name]["restart"] == "unless-stopped"


def test_only_the_runner_mounts_the_docker_socket() -> None:
    holders = {name for name, service in SERVICES.items() if "docker.sock" in str(service.get("volumes"))}
    assert holders == {"runner"}
    networks = yaml.safe_load(COMPOSE)["networks"]
    assert [networks[name]["internal"] for name in SERVICES["runner"]["networks"]] == [True]


def test_ports_are_published_on_loopback_by_default() -> None:
    for service in SERVICES.values():
        for port in service.get("ports", []):
            assert re.match(r"\$\{\w+:-127\.0\.0\.1\}:", port)


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_built_locally_or_pinned(name: str) -> None:
    service = SERVICES[name]
    if "build" not in service:
        assert re.search(r":-[\w./-]+:v?\d+\.\d+[\w.-]*\}$", service["image"])


def test_secrets_are_files() -> None:
    # Set by the operator, for external services.
    given = {"HF_TOKEN", "WANDB_API_KEY", "IHGRPO_ENGINE_API_KEY"}
    for service in SERVICES.values():
        for name in service.get("environment") or {}:
            secret = re.search(r"TOKEN(?!S)|PASSWORD|API_KEY", name)  # TOKENS are counted
            assert not secret or name in given or name.endswith(("_FILE", "__FILE")), name


def test_every_variable_is_documented_with_its_default() -> None:
    documented = dict(re.findall(r"^#(\w+)=(.*)$", (REPO / ".env.example").read_text(), re.MULTILINE))
    used = re.findall(r"\$\{(\w+)(?::?-([^}]*))?\}", COMPOSE)
    for name, default in used:
        assert documented.get(name) == default, name
    variables = [item for service in SERVICES.values() for item in (service.get("environment") or {}).items()]
    passed_on = {name for name, value in variables if value is None}
    assert passed_on <= documented.keys()
    assert documented.keys() == {name for name, _ in used} | passed_on | {"COMPOSE_PROFILES"}
