"""Pre-training on Ray Train: a worker that dies is started again, and the run ends as if it had not; a stop ends it."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import ray
import ray.train

from cluster.config import REPOSITORY
from cluster.pretraining import StopQuestion, interrupts
from tests.pretrain_runs import STEPS, final_state, read_log, run_rank, tiny_run, write_continuation, write_shards
from tests.ranks import run_ranks
from train.launch import run_training
from train.pretrain.checkpoint_store import CheckpointStore
from train.pretrain.config import PretrainingConfigError
from train.pretrain.engine import open_run
from train.pretrain.loop import TrainingFailed
from train.pretrain.run_log import load_run

WORKERS = {
    "workers__num_workers": 2, "workers__threads": 1, "workers__resources": {"CPU": 0.5}, "parallel__ep": 2,
    "parallel__zero_stage": 2, "parallel__engine": "deepspeed",
}  # fmt: skip


def _die_once(folder: Path) -> str | None:
    """On the workers: the second one dies, once, when a checkpoint behind step 0 is committed."""
    log = load_run(folder / "run" / "metrics.jsonl", name="run")
    is_committed = any(event.event == "checkpoint" and event.step > 2 for event in log.events)
    marker = folder / "died"
    if is_committed and ray.train.get_context().get_world_rank() == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return None


def test_a_run_whose_worker_dies_goes_on_from_its_last_commit_and_ends_as_one_without_ray(tmp_path: Path) -> None:
    write_shards(tmp_path / "tokens")
    config = tiny_run(tmp_path, **WORKERS, workers__max_failures=1)
    end = run_training(config, stop_reason=partial(_die_once, tmp_path))
    assert (tmp_path / "died").exists()
    assert (end.ending, end.step) == ("finished", STEPS)
    log = read_log(config)
    assert [event.step for event in log.events if event.event == "resume"] in ([3], [6], [9])

    other = tiny_run(tmp_path, **WORKERS, output=tmp_path / "alone" / "run")
    run_ranks(run_rank, 2, other, needs_deepspeed=True)
    ours, theirs = final_state(config), final_state(other)
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert log.column("loss").tolist() == read_log(other).column("loss").tolist()


def _fail(_: Path) -> str | None:
    raise RuntimeError("this worker is broken")


def test_a_worker_that_fails_more_often_than_allowed_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    write_shards(tmp_path / "tokens")
    with pytest.raises(TrainingFailed, match=r"worker 0: .*this worker is broken"):
        run_training(tiny_run(tmp_path, workers__threads=1), stop_reason=partial(_fail, tmp_path))


def test_what_a_person_has_to_mend_is_not_tried_again(tmp_path: Path) -> None:
    write_shards(tmp_path / "tokens")
    config = tiny_run(tmp_path, evaluation__prompts=("a",), workers__threads=1, workers__max_failures=-1)
    with pytest.raises(TrainingFailed, match=r"^evaluation\.prompts needs the tokenizer of the shards"):
        run_training(config)


def test_a_cluster_that_is_too_small_is_an_error_at_once(tmp_path: Path) -> None:
    write_shards(tmp_path / "tokens")
    config = tiny_run(tmp_path, workers__num_workers=4, workers__resources={"CPU": 1000.0})
    with pytest.raises(PretrainingConfigError, match=r"workers\.num_workers = 4 of 1000 CPU each, but the cluster has"):
        run_training(config)


def test_ctrl_c_ends_a_run_behind_a_checkpoint(tmp_path: Path) -> None:
    write_shards(tmp_path / "tokens")
    config = tiny_run(
        tmp_path, workers__threads=1, tokens=10**8, checkpoint__every_steps=10**6, schedule__warmup_steps=2
    )
    stop = StopQuestion(config.output / "stop", tmp_path / "latch", is_latch_needed=False)

    def interrupt() -> None:
        while not ((config.output / "metrics.jsonl").exists() and len(read_log(config).steps) > 2):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with interrupts(stop):
        end = run_training(config, stop_reason=stop)
    signal.signal(signal.SIGINT, before)
    assert (end.ending, end.reason) == ("stopped", "SIGINT was received")
    last = CheckpointStore(config.output / "checkpoints").latest()
    assert last is not None
    assert last.step == end.step > 2


def test_a_run_takes_as_many_workers_as_there_is_room_for(tmp_path: Path) -> None:
    write_shards(tmp_path / "tokens")
    config = tiny_run(
        tmp_path, workers__num_workers=2, workers__min_workers=1, workers__threads=1, workers__resources={"CPU": 1.5}
    )
    assert run_training(config).ending == "finished"
    (start,) = [event for event in read_log(config).events if event.event == "start"]
    assert "dp 1 " in start.detail


def test_the_job_goes_on_with_a_run_on_new_data_on_the_cluster_that_runs(tmp_path: Path) -> None:
    path = write_continuation(tmp_path)
    job = [sys.executable, "-m", "cluster.jobs.continual", "--config", str(path)]
    for change in ("workers.num_workers=2", "workers.threads=1", "workers.resources={CPU = 0.5}"):
        job += ["--set", change]
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        job, env=os.environ | {"RAY_ADDRESS": address}, capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    assert "the share of old data is 5%" in done.stderr
    assert open_run(tmp_path / "next").workers.num_workers == 2
    log = load_run(tmp_path / "next" / "metrics.jsonl", name="next")
    assert log.steps[-1].step == STEPS
    assert set(log.evaluations[-1].by_source) == {"fresh", "walks"}
