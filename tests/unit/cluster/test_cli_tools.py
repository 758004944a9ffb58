"""`autonomous tool` against a system that answers HTTP with the real tools behind it."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import run

Captured = pytest.CaptureFixture[str]


def test_tools_are_listed_called_and_answer(system: Any, capsys: Captured, tmp_path: Path) -> None:
    def say(*arguments: str, status: int = 0) -> str:
        assert run(["tool", *arguments, "--config", str(system.config_path)]) == status
        shown = capsys.readouterr()
        return shown.out or shown.err

    assert "calculator" in say("list")
    assert say("call", "calculator", "expression=15% of 80") == "15% of 80 = 12\n"
    (tmp_path / "program.py").write_text("print('[bold]', 6 * 7)")
    shown = say("call", "python", f"source=@{tmp_path / 'program.py'}")
    assert shown.startswith("[bold] 42\n")
    assert "isolation: " in shown
    assert "ZeroDivisionError" in say("call", "python", "source=1/0", status=3)
    found = json.loads(say("call", "documentation", "query=nothing", "k:=2", 'sources:=["nobody"]', "--json"))
    assert found["is_empty"]
    answer = say("answer", "What is 12 * (3 + 4)?")
    assert answer.startswith("12 * (3 + 4) = 84\n")
    assert "calculator" in answer


@pytest.mark.parametrize(
    ("arguments", "words"), [(["expression"], "KEY=TEXT"), (["k:=x"], "no JSON"), (["=1"], "KEY=TEXT")]
)
def test_arguments_that_cannot_be_read_are_named(
    system: Any, capsys: Captured, arguments: list[str], words: str
) -> None:
    assert run(["tool", "call", "calculator", *arguments, "--config", str(system.config_path)]) == 2
    assert words in capsys.readouterr().err
    assert run(["tool", "call", "rm", "--config", str(system.config_path)]) == 1
    assert "no tool 'rm'" in capsys.readouterr().err
