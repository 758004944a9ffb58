"""`autonomous train continue`, as a user runs it: a run goes on with new data in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

from tests.pretrain_runs import LENGTH, tiny_run, write_shards
from train.pretrain.engine import open_run, run_alone


def test_a_run_goes_on_with_new_data_and_the_command_says_how_much_of_the_old_is_read(tmp_path: Path) -> None:
    write_shards(tmp_path / "tokens")
    write_shards(tmp_path / "fresh", seed=1)
    previous = tiny_run(tmp_path)
    run_alone(previous)
    (tmp_path / "next.toml").write_text(
        f"""
run = "run"
output = "next"
tokens = {previous.tokens}
sample_sequences = 64
[[sources]]
name = "fresh"
location = "fresh"
held_out_every = 4
[schedule]
warmup_steps = 2
"""
    )
    command = ["train", "continue", "--config", str(tmp_path / "next.toml"), "--driver", "local", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", *command, "--set", "optimizer.lr=0.005", "--set", f"tokens={4 * 8 * LENGTH}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.replace("\n", " ").count("bits from the old, whose share is 5%") == 1
    told = json.loads(done.stdout)
    assert (told["ending"], told["step"]) == ("finished", 4)
    config = open_run(tmp_path / "next")
    assert [source.name for source in config.data.sources] == ["fresh", "walks"]
    assert config.optimizer.lr == 0.005
    assert (tmp_path / "next" / "report.html").is_file()
