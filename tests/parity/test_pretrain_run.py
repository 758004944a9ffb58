"""Whole runs: one that is killed anywhere ends as if it had not been, bit for bit; on other ranks within rounding."""

import contextlib
import errno
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pretrain_runs import STEPS, Kill, final_state, loader_state, read_log, run_rank, tiny_run, write_shards
from tests.ranks import RanksFailed, run_ranks
from train.data.batch import TokenBatch
from train.data.stored_file import UnreadableFile
from train.model.checkpoint_hf import load_model
from train.model.config import RopeConfig
from train.pretrain import engine as engine_module
from train.pretrain.checkpoint_files import CheckpointError
from train.pretrain.checkpoint_store import CheckpointStore
from train.pretrain.config import PretrainingConfig
from train.pretrain.engine import PretrainingEngine
from train.pretrain.export import export_checkpoint
from train.pretrain.loop import RunEnd
from train.pretrain.parallel import check_run
from train.pretrain.step import StepSums

TWO = {"workers__num_workers": 2, "parallel__ep": 2, "parallel__zero_stage": 2}


def _copy_of(config: PretrainingConfig, output: Path) -> PretrainingConfig:
    return config.model_copy(update={"output": output})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_shards(folder / "tokens")
    return folder


@pytest.fixture(scope="module")
def runs(data: Path) -> dict[int, PretrainingConfig]:
    """Uninterrupted, on one rank and on two."""
    configs = {1: tiny_run(data, output=data / "one"), 2: tiny_run(data, output=data / "two", **TWO)}
    for world, config in configs.items():
        ends = run_ranks(run_rank, world, config)
        assert [(end.ending, end.step) for end in ends] == [("finished", STEPS)] * world
    return configs


def _assert_same(config: PretrainingConfig, expected: PretrainingConfig) -> None:
    ours, theirs = final_state(config), final_state(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert loader_state(config) == loader_state(expected)
    first, second = read_log(config), read_log(expected)
    assert first.column("loss").tolist() == second.column("loss").tolist()
    assert first.column("grad_norm").tolist() == second.column("grad_norm").tolist()
    assert [one.loss for one in first.evaluations] == [one.loss for one in second.evaluations]


def test_a_run_learns_and_leaves_its_records(runs: dict[int, PretrainingConfig]) -> None:
    log = read_log(runs[1])
    assert [record.step for record in log.steps] == list(range(1, STEPS + 1))
    assert log.evaluations[-1].loss < log.steps[0].loss - 0.1
    assert [record.step for record in log.evaluations] == [4, 8, 12]
    assert log.evaluations[0].by_source.keys() == {"walks"}
    assert all(len(record.expert_max_over_mean) == 3 for record in log.steps)
    assert log.steps[-1].seconds.keys() >= {"data", "forward and backward", "update"}
    output = runs[1].output
    assert (output / "report.html").stat().st_size > 10_000
    assert (output / f"model-{STEPS:08d}" / "config.json").is_file()
    assert any((output / "tensorboard").iterdir())


@pytest.mark.parametrize("world", [1, 2])
def test_the_model_folder_has_the_trained_weights_and_transformers_computes_the_same(
    runs: dict[int, PretrainingConfig], world: int
) -> None:
    from transformers import AutoModelForCausalLM

    config = runs[world]
    folder = config.output / f"model-{STEPS:08d}"
    ours = load_model(folder)
    state = final_state(config)
    for name, tensor in ours.state_dict().items():
        if name != "lm_head.weight":
            assert torch.equal(tensor, state[f"weight/{name}"].bfloat16()), name
    info = CheckpointStore(config.output / "checkpoints").find(6)
    with pytest.raises(CheckpointError, match=r"mlp\.gate\.weight has shape .* export with the model that was trained"):
        export_checkpoint(info, folder.with_name("other"), config=config.model.replace(num_experts=4))
    single = export_checkpoint(info, folder.with_name("float32"), config=config.model, dtype="float32")
    ids = torch.arange(1, 33).view(2, 16)
    with torch.no_grad():
        expected = load_model(single)(ids).logits
        found = AutoModelForCausalLM.from_pretrained(single, dtype=torch.float32)(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("world", "steps"), [(1, (1, 5, 9, 10)), (2, (2, 7))])
def test_a_run_that_is_killed_before_random_steps_ends_bitwise_equal(
    runs: dict[int, PretrainingConfig], tmp_path: Path, world: int, steps: tuple[int, ...]
) -> None:
    config = _copy_of(runs[world], tmp_path / "killed")
    for step in steps:
        with pytest.raises(RanksFailed, match="SIGKILL"):
            run_ranks(run_rank, world, config, Kill(step=step, rank=world - 1))
    run_ranks(run_rank, world, config)
    _assert_same(config, runs[world])
    assert sum(event.event == "resume" for event in read_log(config).events) >= len(steps) - 1


def test_a_run_of_the_deepspeed_engine_has_the_losses_of_the_native_one_and_survives_a_kill(
    runs: dict[int, PretrainingConfig], data: Path, tmp_path: Path
) -> None:
    config = tiny_run(data, output=tmp_path / "deepspeed", **TWO, parallel__engine="deepspeed")
    with pytest.raises(RanksFailed, match="SIGKILL"):
        run_ranks(run_rank, 2, config, Kill(step=8, rank=1), needs_deepspeed=True)
    run_ranks(run_rank, 2, config, needs_deepspeed=True)
    assert read_log(config).column("loss") == pytest.approx(read_log(runs[2]).column("loss"), rel=1e-5)
    assert read_log(config).column("grad_norm") == pytest.approx(read_log(runs[2]).column("grad_norm"), rel=1e-5)
    assert loader_state(config) == loader_state(runs[2])


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_that_is_killed_while_it_saves_ends_bitwise_equal(
    runs: dict[int, PretrainingConfig], tmp_path: Path, world: int
) -> None:
    config = _copy_of(runs[world], tmp_path / "killed")
    for number, delay_ms in ((1, 0.0), (2, 1.0), (1, 4.0), (2, 9.0), (1, 20.0)):
        with contextlib.suppress(RanksFailed):  # or it was done before it was killed
            run_ranks(run_rank, world, config, Kill(save=number, delay_ms=delay_ms))
    run_ranks(run_rank, world, config)
    _assert_same(config, runs[world])


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4)])
def test_a_run_that_goes_on_with_another_number_of_ranks_has_the_same_losses(
    runs: dict[int, PretrainingConfig], data: Path, tmp_path: Path, before: int, after: int
) -> None:
    config = _copy_of(runs[before], tmp_path / "moved")
    with pytest.raises(RanksFailed, match="SIGKILL"):
        run_ranks(run_rank, before, config, Kill(step=8))
    options = {} if after == 1 else {"parallel__ep": 2, "parallel__zero_stage": 3, "micro_batch": 1}
    run_ranks(run_rank, after, tiny_run(data, output=config.output, **options))
    assert read_log(config).column("loss") == pytest.approx(read_log(runs[1]).column("loss"), rel=1e-5)
    assert read_log(config).column("grad_norm") == pytest.approx(read_log(runs[1]).column("grad_norm"), rel=1e-5)
    assert loader_state(config) == loader_state(runs[1])
    expected = final_state(runs[1])
    for name, tensor in final_state(config).items():
        if name.startswith("weight/"):
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


def _run_with_nan(rank: int, world: int, config: PretrainingConfig, batches: tuple[int, ...]) -> RunEnd:
    """The loss of these batches, counted from 0, is NaN, as a broken device would give it."""
    engine = PretrainingEngine(config, device=torch.device("cpu"))
    run, count = engine.trainer.engine.run, iter(range(1000))

    def broken(*arguments: Any, **options: Any) -> StepSums:
        sums = run(*arguments, **options)
        return sums._replace(loss=math.nan) if next(count) in batches else sums

    engine.trainer.engine.run = broken  # type: ignore[method-assign]
    return engine.run()


@pytest.mark.parametrize("world", [1, 2])
def test_a_step_that_is_not_finite_is_skipped_and_changes_nothing(data: Path, tmp_path: Path, world: int) -> None:
    config = tiny_run(data, output=tmp_path / "run", **(TWO if world == 2 else {}), checkpoint__every_steps=1)
    run_ranks(_run_with_nan, world, config, (4,))
    log, store = read_log(config), CheckpointStore(config.output / "checkpoints")
    assert [record.step for record in log.steps] == [1, 2, 3, 4, *range(6, STEPS + 1)]
    assert [event.step for event in log.events if event.event == "skip"] == [5]
    last = store.latest()
    assert last is not None
    assert last.manifest.shared["num_updates"] == STEPS - 1


def test_a_checkpoint_that_is_due_behind_a_skipped_step_is_saved_behind_the_next(data: Path, tmp_path: Path) -> None:
    config = tiny_run(data, output=tmp_path / "run", checkpoint__keep_last=10)
    run_ranks(_run_with_nan, 1, config, (2,))
    steps = [info.step for info in CheckpointStore(config.output / "checkpoints").committed()]
    assert steps == [0, 4, 6, 9, 12]


def _run_stopped(rank: int, world: int, config: PretrainingConfig, step: int) -> RunEnd:
    """Asked to stop behind a step, on the last rank."""
    engine: PretrainingEngine
    engine = PretrainingEngine(
        config, device=torch.device("cpu"),
        stop_reason=lambda: "asked" if rank == world - 1 and engine.state.step >= step else None,
    )  # fmt: skip
    return engine.run()


@pytest.mark.parametrize("world", [1, 2])
def test_a_stop_behind_a_checkpoint_does_not_write_it_again(data: Path, tmp_path: Path, world: int) -> None:
    config = tiny_run(data, output=tmp_path / "run", **(TWO if world == 2 else {}))
    store = CheckpointStore(config.output / "checkpoints")
    for step, steps in ((6, [0, 3, 6]), (6, [0, 3, 6]), (7, [3, 6, 7])):
        ends = run_ranks(_run_stopped, world, config, step)
        assert [(end.ending, end.step) for end in ends] == [("stopped", step)] * world
        assert [info.step for info in store.committed()] == steps


def test_a_loss_that_stays_bad_goes_back_to_the_last_checkpoint_and_reads_on_behind_it(
    data: Path, tmp_path: Path
) -> None:
    config = tiny_run(data, output=tmp_path / "run", checkpoint__every_steps=4)
    (end,) = run_ranks(_run_with_nan, 1, config, (5, 6, 7, 8))
    assert (end.ending, end.step) == ("finished", STEPS)
    log = read_log(config)
    assert [(event.event, event.step) for event in log.events if event.event in ("skip", "rewind")] == [
        ("skip", 6), ("skip", 7), ("skip", 8), ("rewind", 8),
    ]  # fmt: skip
    assert [record.step for record in log.steps] == list(range(1, STEPS + 1))
    assert loader_state(config)["position"] == (9 + STEPS - 4) * config.global_batch_size


def test_another_model_or_batch_is_refused_and_leaves_the_run_as_it_was(runs: dict[int, PretrainingConfig]) -> None:
    """Nor is anything of it deleted, though the new configuration keeps less."""
    config = runs[1]
    before = _files(config.output)
    theta = config.model.replace(rope=RopeConfig(theta=5e5))
    keeps_less = {"checkpoint": config.checkpoint.model_copy(update={"keep_last": 1})}
    for change, words in (
        ({"model": theta}, r"model\.rope = .*500000\.0.* here, and .*10000\.0.* in the run"),
        ({"global_batch_size": 4}, "global_batch_size = 4 here, and 8 in the run"),
    ):
        with pytest.raises(RanksFailed, match=words):
            run_ranks(run_rank, 1, config.model_copy(update=change | keeps_less))
    assert _files(config.output) == before


def _files(folder: Path) -> dict[Path, int]:
    """When each was changed last."""
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and "tensorboard" not in path.parts
    }


def test_a_run_that_goes_on_does_not_need_the_folder_that_it_began_with(
    runs: dict[int, PretrainingConfig], tmp_path: Path
) -> None:
    start = {"start_from": tmp_path / "gone"}
    check_run(runs[1].model_copy(update=start))
    with pytest.raises(ValueError, match="gone"):
        check_run(runs[1].model_copy(update=start | {"output": tmp_path / "new"}))


def _run_preempted(rank: int, world: int, config: PretrainingConfig) -> RunEnd:
    """A node will be taken away, as Ray says from the second question on."""
    questions = iter(range(1000))
    engine_module.PREEMPTION_EVERY_S = 0.0
    return PretrainingEngine(config, device=torch.device("cpu"), is_preempted=lambda: next(questions) > 0).run()


@pytest.mark.parametrize("world", [1, 2])
def test_when_a_node_will_be_taken_away_a_checkpoint_is_saved_once_and_training_goes_on(
    data: Path, tmp_path: Path, world: int
) -> None:
    changes = {"checkpoint__every_steps": 1000} | (TWO if world == 2 else {})
    config = tiny_run(data, output=tmp_path / "run", **changes)
    ends = run_ranks(_run_preempted, world, config)
    assert [end.step for end in ends] == [STEPS] * world
    events = [
        (event.event, event.step) for event in read_log(config).events if event.event in ("preemption", "checkpoint")
    ]
    assert ("preemption", 1) in events
    steps = [info.step for info in CheckpointStore(config.output / "checkpoints").committed()]
    assert steps == [0, 2, STEPS]


def _run_preempted_on_a_full_disk(rank: int, world: int, config: PretrainingConfig) -> RunEnd:
    """The first checkpoint that is saved for it cannot be written, on the last rank alone."""
    questions, saves = iter(range(1000)), iter(range(1000))
    engine_module.PREEMPTION_EVERY_S = 0.0
    engine = PretrainingEngine(config, device=torch.device("cpu"), is_preempted=lambda: next(questions) > 0)
    write = engine.checkpoints._write

    def fail_once(*arguments: Any) -> None:
        if rank == world - 1 and next(saves) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*arguments)

    engine.checkpoints._write = fail_once  # type: ignore[method-assign]
    return engine.run()


@pytest.mark.parametrize("world", [1, 2])
def test_a_checkpoint_for_a_node_that_will_be_taken_away_is_tried_again(data: Path, tmp_path: Path, world: int) -> None:
    changes = {"checkpoint__every_steps": 1000} | (TWO if world == 2 else {})
    config = tiny_run(data, output=tmp_path / "run", **changes)
    run_ranks(_run_preempted_on_a_full_disk, world, config)
    assert [event.event for event in read_log(config).events].count("checkpoint failed") == 1
    first, second, last = [info.step for info in CheckpointStore(config.output / "checkpoints").committed()]
    assert (first, last) == (0, STEPS)
    assert 2 < second < STEPS


def _run_without_saves(rank: int, world: int, config: PretrainingConfig) -> RunEnd:
    """No checkpoint can be written, and the loss goes bad at once."""
    engine = PretrainingEngine(config, device=torch.device("cpu"))

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    engine.checkpoints._write = fail  # type: ignore[method-assign]
    run = engine.trainer.engine.run
    engine.trainer.engine.run = lambda *a, **k: run(*a, **k)._replace(loss=math.nan)  # type: ignore[method-assign]
    return engine.run()


def test_going_back_without_a_checkpoint_says_why_there_is_none(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RanksFailed, match=r"TrainingFailed: there is no checkpoint to go back to .*Read-only file system"
    ):
        run_ranks(_run_without_saves, 1, tiny_run(data, output=tmp_path / "run"))


def _run_with_unreadable_rows(rank: int, world: int, config: PretrainingConfig, error: Exception) -> str:
    """Rank 1 cannot read its rows of the fourth batch; what each rank raises."""
    engine = PretrainingEngine(config, device=torch.device("cpu"))
    if rank == 1:
        read, count = engine.trainer.read, iter(range(100))

        def fail(batches: Iterator[TokenBatch]) -> Any:
            return read(_raising(error) if next(count) == 3 else batches)

        engine.trainer.read = fail  # type: ignore[method-assign]
    with pytest.raises(type(error) if rank == 1 else RuntimeError) as caught:
        engine.run()
    return f"{caught.type.__name__}: {caught.value}"


def _raising(error: Exception) -> Iterator[TokenBatch]:
    yield from ()
    raise error


@pytest.mark.parametrize(
    ("error", "name"),
    [(UnreadableFile("00.h5 is damaged"), "TrainingFailed"), (OSError("the network is gone"), "RuntimeError")],
)
def test_what_one_rank_cannot_read_ends_all_at_once_with_its_words_and_what_was_saved_stays(
    data: Path, tmp_path: Path, error: Exception, name: str
) -> None:
    config = tiny_run(data, output=tmp_path / "run", **TWO, parallel__timeout_s=300)
    start = time.monotonic()
    told = run_ranks(_run_with_unreadable_rows, 2, config, error)
    assert told == [f"{name}: rank 1: {error}", f"{type(error).__name__}: {error}"]
    assert time.monotonic() - start < 60
    if isinstance(error, ValueError):
        assert [info.step for info in CheckpointStore(config.output / "checkpoints").committed()] == [0, 3]


def _run_with_one_failing_rank(rank: int, world: int, config: PretrainingConfig) -> RunEnd:
    """The second save fails on rank 1 alone, which cannot tell: its folder is on a disk that is gone."""
    engine = PretrainingEngine(config, device=torch.device("cpu"))
    if rank == 1:
        run, count = engine.checkpoints._run, iter(range(100))

        def lose(one: Any) -> None:
            if next(count) != 1:
                return run(one)
            one.error = CheckpointError("the disk is gone")
            one.staged.set()
            one.done.set()
            return None

        engine.checkpoints._run = lose  # type: ignore[method-assign]
    return engine.run()


def test_a_save_that_fails_on_one_rank_alone_is_waited_out_by_all(data: Path, tmp_path: Path) -> None:
    """The others reach their deadline, which is beyond that of collectives."""
    changes = {"checkpoint__commit_timeout_s": 12, "parallel__timeout_s": 6}
    config = tiny_run(data, output=tmp_path / "run", **TWO, **changes)
    ends = run_ranks(_run_with_one_failing_rank, 2, config)
    assert [end.ending for end in ends] == ["finished"] * 2
    log = read_log(config)
    assert [event.step for event in log.events if event.event == "checkpoint failed"] == [6]
    assert [event.step for event in log.events if event.event == "checkpoint"][-1] == STEPS


def test_a_loss_that_never_recovers_ends_the_run_with_what_to_do(data: Path, tmp_path: Path) -> None:
    config = tiny_run(data, output=tmp_path / "run")
    with pytest.raises(RanksFailed, match=r"TrainingFailed: the loss of step .* is nan, and the run went back 3 times"):
        run_ranks(_run_with_nan, 1, config, tuple(range(2, 500)))
