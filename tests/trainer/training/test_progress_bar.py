from __future__ import annotations

import io

import pytest
from rich.console import Console

from trainer.training.progress import figures_bar


@pytest.mark.parametrize("is_terminal", [True, False])
def test_it_is_drawn_for_those_who_watch(is_terminal: bool) -> None:
    screen = io.StringIO()
    with figures_bar(Console(file=screen, force_terminal=is_terminal, width=100)) as bar:
        bar.add_task("rollout", total=8, completed=3, figures="reward 0.500")
    drawn = screen.getvalue()
    assert [part in drawn for part in ("rollout", "3/8", "reward 0.500", "eta")] == [is_terminal] * 4
