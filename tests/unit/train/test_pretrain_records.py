"""What a run writes and keeps beside tensors: metrics that survive a kill, TensorBoard, random states, peaks of devices."""

import json
import random
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

from tests.pretrain_runs import tiny_run, write_shards
from train.data.loader import LoaderConfig, StreamingDataLoader
from train.pretrain.flops import peak_flops
from train.pretrain.random_state import random_state, set_random_state
from train.pretrain.run_log import load_run
from train.pretrain.run_writer import METRICS_NAME, TENSORBOARD_NAME, PhaseTimer, RunWriter

STEP: dict[str, Any] = {
    "tokens": 128, "loss": 2.5, "lr": 0.1, "grad_norm": 1.0, "tokens_per_s": 1000.0, "mfu": 0.1,
    "seconds": {"forward and backward": 0.5}, "expert_max_over_mean": [1.5, 1.25], "dead_experts": [0, 2],
}  # fmt: skip


def test_every_step_is_in_the_file_and_every_nth_goes_on_to_the_rest(tmp_path: Path) -> None:
    published: list[Any] = []
    shown: list[int] = []
    writer = RunWriter(
        tmp_path,
        every_steps=2,
        total_steps=5,
        publish=published.append,
        on_progress=lambda step, *_: shown.append(step),
    )
    for step in range(1, 6):
        writer.step(step, **STEP)
    writer.evaluation(5, tokens=640, loss=2.0, by_source={"web": 2.0})
    writer.close()
    log = load_run(tmp_path / METRICS_NAME, name="run")
    assert [record.step for record in log.steps] == [1, 2, 3, 4, 5]
    assert log.steps[0].expert_max_over_mean == (1.5, 1.25)
    assert log.evaluations[0].by_source == {"web": 2.0}
    assert shown == [2, 4, 5]
    assert published[0]["dead_experts"] == 2
    assert published[0]["seconds/forward_and_backward"] == 0.5
    assert published[-1] == {"held_out_loss": 2.0}


def test_tensorboard_gets_the_values_under_their_names(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, every_steps=1, total_steps=1)
    writer.step(1, **STEP)
    writer.close()
    (path,) = (tmp_path / TENSORBOARD_NAME).iterdir()
    data, tags = path.read_bytes(), {}
    while data:  # length, its checksum, the record, its checksum
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        tags |= {value.tag: value.simple_value for value in event.summary.value}
        data = data[16 + size :]
    assert tags["train/loss"] == 2.5
    assert tags["train/expert_max_over_mean"] == 1.5


def test_a_line_that_a_kill_cut_off_does_not_swallow_the_next_one(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, every_steps=1, total_steps=9)
    writer.step(1, **STEP)
    writer.close()
    with (tmp_path / METRICS_NAME).open("a") as file:
        file.write('{"kind": "step", "step": 2, "to')
    writer = RunWriter(tmp_path, every_steps=1, total_steps=9)
    writer.step(2, **STEP)
    writer.close()
    log = load_run(tmp_path / METRICS_NAME, name="run")
    assert [record.step for record in log.steps] == [1, 2]
    assert log.num_torn == 1


def test_a_record_that_no_reader_knows_is_refused(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, every_steps=1, total_steps=1)
    with pytest.raises(KeyError):
        writer.write("unknown", step=1)
    with pytest.raises(ValueError, match="loss"):
        writer.write("evaluation", step=1, tokens=3)
    with pytest.raises(ValueError, match="los: no field of a evaluation record"):
        writer.write("evaluation", step=1, tokens=3, los=2.0)
    writer.close()


def test_a_full_disk_loses_records_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The limit on the size of a file stands for the disk; TensorBoard's file reaches it too."""
    writer = RunWriter(tmp_path, every_steps=1, total_steps=9_000)
    writer.step(1, **STEP)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))
        for step in range(2, 200):
            writer.step(step, **STEP)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    writer.step(200, **STEP)
    writer.close()
    log = load_run(tmp_path / METRICS_NAME, name="run")
    assert [log.steps[0].step, log.steps[-1].step] == [1, 200]
    assert len(log.steps) < 10
    assert "no room for a record" in caplog.text


def test_seconds_of_a_phase_add_up_until_they_are_taken() -> None:
    ticks = iter([0.0, 1.0, 5.0, 7.0])
    timer = PhaseTimer(clock=lambda: next(ticks))
    for _ in range(2):
        with timer("data"):
            pass
    assert timer.take() == {"data": 3.0}
    assert timer.take() == {}


def test_random_states_go_through_json_and_draw_the_same_again() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), float(np.random.rand()), float(torch.rand(()))]

    draw()
    state = json.loads(json.dumps(random_state()))
    first = draw()
    draw()
    set_random_state(state)
    assert draw() == first


def test_a_loader_that_skips_gives_what_it_would_have_given(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    write_shards(tmp_path / "tokens")
    settings = LoaderConfig(sequence_length=config.data.sequence_length, global_batch_size=4, reservoir_size=8)

    def batches(skipped: int) -> list[Any]:
        with StreamingDataLoader(config.data.sources, config=settings) as loader:
            first = next(loader).input_ids
            loader.skip(skipped)
            return [first, *(next(loader).input_ids for _ in range(3)), loader.state_dict()["position"]]

    whole, skipping = batches(0), batches(2)
    assert np.array_equal(whole[3], skipping[1])
    assert skipping[-1] == whole[-1] + 2 * 4


def test_the_peak_of_a_cpu_is_what_a_matmul_reaches() -> None:
    found = peak_flops(torch.device("cpu"), torch.float32)
    assert 1e9 < found < 1e14
