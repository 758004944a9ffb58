"""The list of the code that judges is whole: what judging code imports is in it, or named here as what judges nothing."""

import ast
from pathlib import Path

import pytest

from autonomous.judging_code import JUDGING, ROOT, judging_files

JUDGES_NOTHING = {
    "autonomous.benchmark_config": "its values are in the benchmark's report",
    "autonomous.candidates": "the name of the agent",
    "autonomous.config": "its values are hashed as the thresholds",
    "autonomous.cycle_watch": "told of a report afterwards",
    "autonomous.holds": "stores what was decided",
    "autonomous.ports": "signatures",
    "autonomous.retraining": "runs jobs",
    "autonomous.run_board": "shows what is going on",
    "autonomous.safety.latch": "stops",
    "autonomous.schedule_rows": "stores runs",
    "autonomous.triggers": "what a benchmark asks to be learned",
    "autonomous.turns": "a lock",
    "autonomous.versions.audit": "hashes",
    "autonomous.versions.ledger": "executes what was decided, by rules of its own that its audit log shows",
    "autonomous.versions.schema": "rows",
    "autonomous.versions.states": "names of states",
    "memory.beliefs": "claims as they are stored",
    "memory.types": "rows",
    "train.adapt.reference": "where a version lies",
    "train.data.document": "describes what is no text",
    "train.data.filesystem": "opens files",
    "train.data.jit": "compiles",
    "train.data.lines": "reads files",
    "train.data.records": "finds fields",
    "train.data.schema": "columns of tables",
    "train.data.stored_file": "tells of files that cannot be read",
    "train.dtype": "a setting",
    "train.files": "writes to disk",
    "train.model.checkpoint_hf": "names of files",
    "train.model.embedded": "finds a model folder, whose hash is in the report",
    "train.model.hf_families": "names of architectures",
    "train.replay_share": "how much is replayed",
}


def file_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported_by(path: Path) -> set[str]:
    """Modules of the project that a file imports from, also where only types are checked."""
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    modules = {node.module for node in tree if isinstance(node, ast.ImportFrom) and node.module}
    return {module for module in modules if module.split(".")[0] in ("autonomous", "memory", "train")}


@pytest.mark.parametrize("path", judging_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_judging_code_imports_is_judging_code_or_judges_nothing(path: Path) -> None:
    missing = {one for one in imported_by(path) if file_of(one) not in judging_files() and one not in JUDGES_NOTHING}
    assert missing == set(), "add it to JUDGING, or to JUDGES_NOTHING with the reason"


def test_every_name_of_the_list_is_of_a_file_that_is_there() -> None:
    assert [pattern for pattern in JUDGING if not list(ROOT.glob(pattern))] == []


@pytest.mark.parametrize("name", ["evaluation", "judge", "panel", "panel_weights", "data_report", "versions/gates"])
def test_what_judges_is_in_the_list_itself(name: str) -> None:
    assert ROOT / "autonomous" / f"{name}.py" in judging_files()
