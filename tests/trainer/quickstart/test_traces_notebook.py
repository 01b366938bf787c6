from __future__ import annotations

from service.deferral.observation import result_text
from trainer.quickstart.traces import Notebook


def test_names_last_from_run_to_run() -> None:
    notebook = Notebook()
    assert notebook.run("a = 6").stdout == ""
    assert notebook.run("print(a * 7)").stdout == "42\n"


def test_a_failed_run_leaves_the_names_as_they_were() -> None:
    notebook = Notebook()
    notebook.run("a = 1")
    failed = notebook.run("a = 2\nb = 3\nprint(a)\nc = a // 0")
    assert failed.status == "error"
    assert result_text(failed) == "ZeroDivisionError: integer division or modulo by zero"
    assert notebook.run("print(a)").stdout == "1\n"
    assert result_text(notebook.run("print(b)")) == "NameError: name 'b' is not defined"
