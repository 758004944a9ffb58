"""What ends a pre-training run from outside: a file, a signal, the system's emergency stop."""

import os
import signal
from pathlib import Path

import pytest

from autonomous.safety.latch import Latch
from cluster.pretraining import _interrupts, following, read_stop, stop_of
from tests.pretrain_runs import tiny_run
from train.pretrain.run_writer import RunWriter


def test_a_file_in_the_folder_is_a_stop_with_its_text_as_the_reason(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    assert read_stop(stop, None) is None
    stop.touch()
    assert read_stop(stop, None) == f"{stop} is there"
    stop.write_text("enough\n")
    assert read_stop(stop, None) == "enough"


def test_the_emergency_stop_of_a_system_is_a_stop_until_it_is_reset(tmp_path: Path) -> None:
    (tmp_path / "home" / "safety").mkdir(parents=True)
    latch = Latch.create(tmp_path / "home" / "safety" / "latch")
    asked = stop_of(tiny_run(tmp_path), tmp_path / "home")
    assert asked() is None
    latch.stop(reason="hold", by="test")
    assert asked() == "the emergency stop stands (stopped): hold"


def test_a_stop_of_an_earlier_attempt_is_forgotten(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    config.output.mkdir()
    (config.output / "stop").write_text("old")
    assert stop_of(config, tmp_path / "nowhere")() is None


def test_the_first_signal_asks_and_the_second_one_is_the_process_s_own(tmp_path: Path) -> None:
    stop = tmp_path / "run" / "stop"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
    with _interrupts(stop):
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
        writer.step(
            3, tokens=1, loss=2.5, lr=0.1, grad_norm=1.0, tokens_per_s=1000.0, mfu=0.1, seconds={},
            expert_max_over_mean=[], dead_experts=[],
        )  # fmt: skip
    writer.close()
    assert shown == [(3, config.total_steps, "loss 2.5000, 1,000 tokens/s")]
