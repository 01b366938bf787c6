from __future__ import annotations

import os

from service.common.process_id import boot_id, pid_namespace, process_start


def test_start_time_of_a_process() -> None:
    assert process_start(os.getpid()) == process_start(os.getpid())
    assert process_start(2**22 + 1) is None


def test_boot_id_and_namespace_are_stable() -> None:
    assert boot_id() == boot_id()
    assert pid_namespace().startswith("pid:[")
