from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from service.cli.main import app
from tests.support.eval_results import eval_result
from trainer.evaluation.results import ResultLog

RUN = CliRunner()


def evaluation(directory: Path, reward: float) -> str:
    log = ResultLog(directory, {})
    for problem in range(8):
        log.add(eval_result(str(problem), 0, reward))
    return str(directory)


def test_compare(tmp_path: Path) -> None:
    a, b = evaluation(tmp_path / "a", 0.0), evaluation(tmp_path / "b", 1.0)
    result = RUN.invoke(app, ["eval", "compare", a, b, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "+100.0" in result.stdout
    assert (tmp_path / "out" / "comparison.html").is_file()
    assert RUN.invoke(app, ["eval", "compare", "--help"]).stdout.startswith("Usage: ih-grpo eval compare")


def test_errors_are_one_line(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", 0.0)
    for args in ([a, str(tmp_path / "gone")], [a, a, "--out", f"{a}/settings.json/x"]):
        result = RUN.invoke(app, ["eval", "compare", *args])
        assert result.exit_code == 2
        assert result.stderr.startswith("error ")
        assert "Traceback" not in result.output
