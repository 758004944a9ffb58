"""`autonomous train`, as a user runs it: a run goes on with new data in a process of its own; what is made of a run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import run
from tests.pretrain_runs import LENGTH, tiny_run, write_continuation, write_shards
from train.pretrain.alone import run_alone
from train.pretrain.engine import open_run


@pytest.mark.slow
def test_a_run_goes_on_with_new_data_and_the_command_says_how_much_of_the_old_is_read(tmp_path: Path) -> None:
    path = write_continuation(tmp_path)
    command = ["train", "continue", "--config", str(path), "--driver", "local", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", *command, "--set", "optimizer.lr=0.005", "--set", f"tokens={4 * 8 * LENGTH}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stderr.split()).count("bits from the old; the share of old data is 5%") == 1
    told = json.loads(done.stdout)
    assert (told["ending"], told["step"]) == ("finished", 4)
    config = open_run(tmp_path / "next")
    assert [source.name for source in config.data.sources] == ["fresh", "walks"]
    assert config.optimizer.lr == 0.005
    assert (tmp_path / "next" / "report.html").is_file()


def test_a_report_and_an_exported_model_say_where_they_are_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path / "tokens")
    config = tiny_run(tmp_path, tokens=3 * 8 * LENGTH)
    run_alone(config)
    capsys.readouterr()
    assert run(["train", "report", str(config.output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(config.output / "report.html")}
    assert run(["train", "export", str(config.output), "--to", str(tmp_path / "model"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "model"), "step": 3}
    assert (tmp_path / "model" / "config.json").is_file()
