"""Runs of the token pipeline that are refused, and runs that find another one in their folder: nothing is mixed or lost."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline_inputs import EXAM, config_of, write_inputs
from train.data.config import DataConfigError, load_pipeline_config
from train.data.listing import NoAccess
from train.data.pipeline import DataPipeline
from train.data.report import PipelineReport
from train.data.run_folder import PLAN_VERSION, RunFolder, RunMismatch


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PipelineReport]:
    """A run in this process that nothing disturbed."""
    output = tmp_path_factory.mktemp("finished")
    return output, DataPipeline(config_of(inputs, output)).run()


def test_a_finished_run_is_returned_at_once_and_a_damaged_one_is_refused(
    inputs: Path, finished: tuple[Path, PipelineReport], tmp_path: Path
) -> None:
    output = tmp_path / "copy"
    shutil.copytree(finished[0], output)
    stamps = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert DataPipeline(config_of(inputs, output)).run() == finished[1]
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == stamps
    shard = next((output / "tokens").glob("*.h5"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(RunMismatch, match=r"shard-000000\.h5 is missing or has another size"):
        DataPipeline(config_of(inputs, output)).run()


def test_another_configuration_or_changed_inputs_do_not_mix(
    inputs: Path, finished: tuple[Path, PipelineReport]
) -> None:
    with pytest.raises(RunMismatch, match=r"differs in config\.packing.*--restart"):
        DataPipeline(config_of(inputs, finished[0], packing={"sequence_length": 64})).run()


def test_a_folder_with_other_files_is_left_alone(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for restart in (False, True):
        with pytest.raises(RunMismatch, match="not empty and holds no run"):
            DataPipeline(config_of(inputs, tmp_path)).run(restart=restart)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_changed_evaluation_set_is_another_run(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs, tmp_path / "in")
    config = config_of(tmp_path / "in", tmp_path / "out")
    DataPipeline(config).run()
    (tmp_path / "in" / "exam.jsonl").write_text(json.dumps({"text": EXAM + " or after"}) + "\n")
    with pytest.raises(RunMismatch, match=r"differs in .*inputs\.evaluation_sets"):
        DataPipeline(config).run()


def test_a_missing_evaluation_set_or_tokenizer_is_named_before_anything_is_written(
    inputs: Path, tmp_path: Path
) -> None:
    missing = {"evaluation_sets": [{"name": "gone", "path": str(tmp_path / "gone.jsonl")}]}
    tokenizer = {"tokenizer": {"folder": str(tmp_path)}}
    for change, field in ((missing, "evaluation_sets.gone"), (tokenizer, "tokenizer.folder")):
        with pytest.raises(DataConfigError, match=field):
            DataPipeline(config_of(inputs, tmp_path / "out", **change)).run()
    assert not (tmp_path / "out").exists()


def test_a_file_that_may_not_be_read_ends_the_run_and_the_rest_stays(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses; a test that runs as root must say so itself."""
    config = config_of(inputs, tmp_path)
    real_open = os.open

    def open_(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("code/decoder.py"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_open(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_)
        with pytest.raises(NoAccess, match=r"source 'code': .*decoder\.py may not be read"):
            DataPipeline(config).run()
    units = [unit["source"] for unit in RunFolder(str(tmp_path)).read_plan()["units"]]  # type: ignore[index]
    done = {int(path.stem) for path in (tmp_path / "work" / "prepare").glob("*.json")}
    assert done == {number for number, source in enumerate(units) if source != "code"}
    assert DataPipeline(config).run().losses > 0


def test_a_tokenizer_that_cannot_be_used_is_refused_before_anything_is_read(
    inputs: Path, finished: tuple[Path, PipelineReport], tmp_path: Path
) -> None:
    good = json.loads((finished[0] / "tokenizer" / "tokenizer.json").read_text())
    too_large = {"id": 1 << 32, "content": "<far>", "special": True}
    for added, message in (
        ([*good["added_tokens"], too_large], r"ids up to 4,294,967,296, above"),
        ([], "has no token"),
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(good | {"added_tokens": added}))
        with pytest.raises(DataConfigError, match=rf"tokenizer\.folder = .* cannot be used: .*{message}"):
            DataPipeline(config_of(inputs, tmp_path / "out", tokenizer={"folder": str(tmp_path)})).run()
        assert not (tmp_path / "out").exists()


def test_an_output_within_a_source_is_refused_before_anything_is_written(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs / "manual", tmp_path / "manual")
    sources = [{"name": "manual", "kind": "text", "location": str(tmp_path / "manual")}]
    with pytest.raises(ValueError, match=r"output = .* lies in source 'manual'"):
        DataPipeline(config_of(inputs, tmp_path / "manual" / "out", sources=sources)).run()
    assert not (tmp_path / "manual" / "out").exists()


def test_a_late_worker_of_another_run_does_not_count(tmp_path: Path) -> None:
    late, new = RunFolder(str(tmp_path)), RunFolder(str(tmp_path))
    late.begin({"version": PLAN_VERSION, "run_id": "a"})
    new.begin({"version": PLAN_VERSION, "run_id": "b"}, restart=True)
    late.commit("prepare", 0, facts={"documents": 1})
    assert new.record("prepare", 0) is None


def test_a_kill_while_a_run_begins_anew_leaves_a_folder_that_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "plan.json.partial-12345678").write_text("{")
    folder = RunFolder(str(tmp_path))
    assert not folder.begin({"version": PLAN_VERSION, "run_id": "a"})
    (tmp_path / "work").mkdir()
    assert not folder.begin({"version": PLAN_VERSION, "run_id": "b"}, restart=True)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("", "sources: Field required"),
        ("[[sources]]\nname = 'a'\nkind = 'text'\nlocation = 'missing'\n", "missing"),
        ("[[sources]]\nname = 'a'\nkind = 'novel'\nlocation = '.'\n", "sources.0.kind"),
        ("nonsense = 1\n", "nonsense"),
        ("= 3", "no valid TOML"),
    ],
)
def test_a_bad_configuration_is_named(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(f'output = "out"\n{change}')
    with pytest.raises((DataConfigError, ValueError), match=message):
        DataPipeline(load_pipeline_config(path)).run()
