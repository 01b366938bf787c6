from __future__ import annotations

import pytest
import typer

from service.cli.output import abort, warn


def test_complaints_are_told_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        abort("pip install 'ih-grpo[train]'", "and [/this] too")
    assert caught.value.exit_code == 2
    assert capsys.readouterr().err == "error pip install 'ih-grpo[train]'\nerror and [/this] too\n"


def test_a_warning_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    warn("IHGRPO_[PROT] is no setting", "nor is this")
    assert capsys.readouterr().err == "warning IHGRPO_[PROT] is no setting\nwarning nor is this\n"
