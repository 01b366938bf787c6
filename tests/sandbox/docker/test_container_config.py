from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.sandbox.base import SandboxError
from service.sandbox.docker.container_config import DaemonKind, create_arguments, seccomp_profile
from service.sandbox.docker.settings import DockerSandboxSettings
from service.sandbox.worker_program import MASKED_PATHS, fresh_uid

ARGUMENTS = create_arguments(DockerSandboxSettings(), "name", {"label": "value"})


def test_sets_every_limit() -> None:
    host = ARGUMENTS["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"] is True
    assert host["Memory"] == host["MemorySwap"] == 512 << 20
    assert host["PidsLimit"] == 64
    assert host["CapDrop"] == ["ALL"]
    assert sorted(host["CapAdd"]) == ["KILL", "SETGID", "SETUID"]
    assert not host["Privileged"]
    assert not host["Binds"]
    assert not host["Devices"]
    assert "no-new-privileges" in host["SecurityOpt"]
    assert {"Name": "core", "Soft": 0, "Hard": 0} in host["Ulimits"]
    assert all("size=" in options and "nosuid" in options for options in host["Tmpfs"].values())
    assert host["AutoRemove"]
    assert ARGUMENTS["StdinOnce"]


def test_gvisor_gets_an_allowance_and_code_its_own_limits() -> None:
    made = create_arguments(DockerSandboxSettings(runtime="runsc"), "name", {})
    config = json.loads(made["Cmd"][0])
    assert made["HostConfig"]["Runtime"] == "runsc"
    assert made["HostConfig"]["PidsLimit"] > 64 == config["processes"]
    assert made["HostConfig"]["Memory"] > config["address_space_bytes"] > 512 << 20
    assert "Runtime" not in ARGUMENTS["HostConfig"]
    assert "address_space_bytes" not in json.loads(ARGUMENTS["Cmd"][0])


def test_the_workers_writable_folders_are_the_tmpfs_mounts() -> None:
    config = json.loads(ARGUMENTS["Cmd"][0])
    mounts = ARGUMENTS["HostConfig"]["Tmpfs"]
    assert {*config["writable"], config["inputs"]} == set(mounts)
    assert mounts[config["inputs"]].endswith("mode=0755")  # it belongs to the supervisor


def test_uses_the_bundled_seccomp_profile() -> None:
    (profile,) = (
        option for option in ARGUMENTS["HostConfig"]["SecurityOpt"] if option.startswith("seccomp=")
    )
    rules = json.loads(profile.removeprefix("seccomp="))
    assert rules["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {
        name for rule in rules["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]
    }
    denied = (
        "ptrace process_vm_readv io_uring_setup bpf perf_event_open userfaultfd keyctl add_key mount unshare"
    )
    denied += " setns pivot_root chroot kexec_load init_module open_by_handle_at shmget vmsplice clone3"
    denied += " socket bind connect listen accept timer_create timer_settime mq_open setxattr inotify_init1"
    assert not allowed & set(denied.split())


def test_reads_the_kind_of_a_daemon() -> None:
    docker = {"Version": "28.0.4", "Components": [{"Name": "Engine"}, {"Name": "containerd"}]}
    podman = {"Version": "4.3.1", "Components": [{"Name": "Podman Engine"}]}
    seccomp = ["name=seccomp,profile=builtin"]
    assert DaemonKind.read(docker, {"SecurityOptions": seccomp}) == DaemonKind()
    assert DaemonKind.read({}, {}) == DaemonKind()
    assert DaemonKind.read(podman, {"SecurityOptions": seccomp}) == DaemonKind(is_podman=True)
    for option in ("name=rootless", "name=userns"):
        assert DaemonKind.read(docker, {"SecurityOptions": [*seccomp, option]}).maps_users


def test_podman_gets_the_profile_as_a_file_and_no_further_writable_folder() -> None:
    made = create_arguments(DockerSandboxSettings(), "name", {}, DaemonKind(is_podman=True))
    host, docker = made["HostConfig"], ARGUMENTS["HostConfig"]
    no_new_privileges, seccomp, mask = host["SecurityOpt"]
    assert no_new_privileges == "no-new-privileges"
    (bundled,) = (option for option in docker["SecurityOpt"] if option.startswith("seccomp="))
    path = Path(seccomp.removeprefix("seccomp="))
    assert json.loads(path.read_text()) == json.loads(bundled.removeprefix("seccomp="))
    assert mask.removeprefix("mask=").split(":") == [*MASKED_PATHS, "/etc/hosts"]
    added = {path: options for path, options in host["Tmpfs"].items() if path not in docker["Tmpfs"]}
    assert set(added) == {"/run", "/var/tmp"}
    assert all(options.startswith("ro,") for options in added.values())
    for path, options in docker["Tmpfs"].items():
        assert host["Tmpfs"][path] == ",".join(
            option for option in options.split(",") if "nr_inodes" not in option
        )
    differing = {"SecurityOpt", "Tmpfs"}
    assert {key: value for key, value in host.items() if key not in differing} == {
        key: value for key, value in docker.items() if key not in differing
    }


def test_uid_is_within_a_user_namespace_and_not_used_twice() -> None:
    kind = DaemonKind(maps_users=True)
    made = [create_arguments(DockerSandboxSettings(), "name", {}, kind) for _ in range(100)]
    uids = [json.loads(arguments["Cmd"][0])["uid"] for arguments in made]
    assert len(set(uids)) == 100
    assert all(uid % 2 == 0 and 1_000 <= uid < 65_535 for uid in uids)


def test_masks_files_that_all_containers_share() -> None:
    masked = ARGUMENTS["HostConfig"]["MaskedPaths"]
    docker = "/proc/kcore /proc/keys /proc/latency_stats /proc/timer_list /proc/sched_debug /sys/firmware"
    assert {*docker.split(), "/proc/locks", "/proc/sys/fs", "/dev/pts"} <= set(masked)


def test_podman_would_ignore_a_runtime() -> None:
    with pytest.raises(
        SandboxError, match="Podman ignores the runtime of a container, and would not use runsc"
    ):
        create_arguments(DockerSandboxSettings(runtime="runsc"), "name", {}, DaemonKind(is_podman=True))


def test_clone3_is_allowed_only_under_gvisor() -> None:
    def answers(runtime: str | None) -> list[tuple[str, int | None]]:
        rules = json.loads(seccomp_profile(runtime))["syscalls"]
        return [(rule["action"], rule.get("errnoRet")) for rule in rules if "clone3" in rule["names"]]

    assert answers(None) == [("SCMP_ACT_ERRNO", errno.ENOSYS)]
    assert answers("runsc") == [("SCMP_ACT_ALLOW", None)]


def test_each_container_has_its_own_uid() -> None:
    uids = {fresh_uid() for _ in range(100)}
    assert len(uids) > 90
    assert all(uid >= 200_000 and uid % 2 == 0 for uid in uids)


def test_rejects_a_pool_larger_than_the_maximum() -> None:
    with pytest.raises(ValidationError, match="raise max_containers or lower pool_size"):
        DockerSandboxSettings(pool_size=5, max_containers=4)


@pytest.mark.parametrize("host", ["ssh://there", "/var/run/docker.sock", ""])
def test_rejects_unsupported_docker_addresses(host: str) -> None:
    with pytest.raises(ValidationError, match="docker_host"):
        DockerSandboxSettings(docker_host=host)
