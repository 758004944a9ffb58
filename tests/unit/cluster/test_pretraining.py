"""What ends a pre-training run from outside: a file, a signal, the system's emergency stop."""

import os
import pickle
import signal
from pathlib import Path

import pytest

from autonomous.safety.latch import Latch
from cluster.pretraining import StopQuestion, following, interrupts, stop_of
from tests.pretrain_runs import tiny_run
from train.pretrain.run_writer import METRICS_NAME, RunWriter


def _question(folder: Path, *, is_latch_needed: bool = False) -> StopQuestion:
    return StopQuestion(folder / "stop", folder / "latch", is_latch_needed=is_latch_needed)


def test_a_file_in_the_folder_is_a_stop_with_its_text_as_the_reason(tmp_path: Path) -> None:
    asked, stop = _question(tmp_path), tmp_path / "stop"
    assert asked() is None
    stop.touch()
    assert asked() == f"{stop} is there"
    stop.write_text("enough\n")
    assert asked() == "enough"


def test_the_emergency_stop_of_a_system_ends_the_run_also_if_it_was_reset_since(tmp_path: Path) -> None:
    latch = Latch.create(tmp_path / "home" / "safety" / "latch")
    asked = pickle.loads(pickle.dumps(stop_of(tiny_run(tmp_path), tmp_path / "home")))  # as it goes to the workers
    assert asked() is None
    latch.stop(reason="hold", by="test")
    reason = asked()
    assert reason is not None
    assert "stopped by test" in reason
    assert "hold" in reason
    latch.reset(reason="checked", by="test")
    reason = asked()
    assert reason is not None
    assert "stopped and reset since" in reason


def test_questions_keep_no_file_open(tmp_path: Path) -> None:
    Latch.create(tmp_path / "latch")
    asked = _question(tmp_path)
    assert asked() is None
    before = len(os.listdir("/proc/self/fd"))
    assert [asked() for _ in range(50)] == [None] * 50
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_emergency_stop_counts_from_when_it_appears_and_a_named_one_has_to_be_there(tmp_path: Path) -> None:
    asked, needed = _question(tmp_path), _question(tmp_path, is_latch_needed=True)
    assert asked() is None
    assert "cannot be read" in (needed() or "")
    latch = Latch.create(tmp_path / "latch")
    assert (asked(), needed()) == (None, None)
    latch.stop(reason="hold", by="test")
    assert "hold" in (asked() or "")
    with pytest.raises(ValueError, match=r"--home .*nowhere: there is no emergency stop"):
        stop_of(tiny_run(tmp_path), tmp_path / "nowhere")


def test_a_stop_of_an_earlier_attempt_is_forgotten(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    config.output.mkdir()
    (config.output / "stop").write_text("old")
    Latch.create(tmp_path / "home" / "safety" / "latch")
    assert stop_of(config, tmp_path / "home")() is None


def test_the_first_signal_asks_and_the_second_one_is_the_process_s_own(tmp_path: Path) -> None:
    stop = tmp_path / "run" / "stop"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
    with interrupts(_question(tmp_path / "run")):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.read_text() == "SIGINT was received"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_what_the_workers_write_is_shown_to_the_last_step(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    writer = RunWriter(config.output, every_steps=1, total_steps=config.total_steps)
    shown: list[tuple[int, int, str]] = []
    with following(config, lambda *progress: shown.append(progress)):
        with (config.output / METRICS_NAME).open("a") as file:
            file.write('{"kind": "step", "step": 2, "lo\n')  # of a worker that was killed
        writer.step(
            3, tokens=1, loss=2.5, lr=0.1, grad_norm=1.0, tokens_per_s=1000.0, mfu=0.1, seconds={},
            expert_max_over_mean=[], dead_experts=[],
        )  # fmt: skip
    writer.close()
    assert shown == [(3, config.total_steps, "loss 2.5000, 1,000 tokens/s")]
