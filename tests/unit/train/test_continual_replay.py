"""Replay in the training loop, and progressive columns: shares, laws, files, bytes."""

import errno
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from train.continual.buffer import ReplayBuffer
from train.continual.method import Learner, Task
from train.continual.mixing import BatchReplay, ReplayConfig
from train.continual.progressive import ProgressiveColumns, ProgressiveNetworks
from train.continual.rows import Batch, classify, join
from train.continual.trainer import ContinualTrainer

TASKS = [Task(name, index) for index, name in enumerate(("first", "second", "third"))]


def _samples(first: int, count: int) -> Batch:
    """`x` says which sample it is."""
    ids = torch.arange(first, first + count)
    x = torch.stack([ids.float(), ids.float() ** 2 / 100], dim=1)
    return {"id": ids, "x": x, "y": ids % 3}


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(2, 3)


def _sgd(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=1e-4)


# The buffer.


@pytest.mark.slow
@pytest.mark.parametrize("is_on_disk", [False, True])
def test_samples_come_back_as_they_were_and_the_oldest_are_kept_as_often_as_the_newest(
    tmp_path: Path, is_on_disk: bool
):
    counts = torch.zeros(40)
    for seed in range(300):
        buffer = ReplayBuffer(10, seed=seed, folder=tmp_path / "buffer" if is_on_disk else None)
        for first in range(0, 40, 8):
            buffer.add(_samples(first, 8))
            buffer.add(_samples(first, 8))  # a repeated offer changes nothing
        found = buffer.take(buffer.ids())
        assert torch.equal(found["x"][:, 0], found["id"].float())
        assert torch.equal(found["y"], found["id"] % 3)
        assert len(buffer) == 10
        counts[found["id"]] += 1
    assert float(counts[:20].sum() / counts.sum()) == pytest.approx(0.5, abs=0.05)
    assert {path.name for path in tmp_path.rglob("*.array")} == (
        {"id.array", "x.array", "y.array"} if is_on_disk else set()
    )


def test_two_shards_merge_into_what_one_stream_would_have_kept_and_a_state_comes_back():
    whole, *shards = (ReplayBuffer(6, seed=3) for _ in range(3))
    for first in range(0, 30, 5):
        whole.add(_samples(first, 5))
        shards[first // 5 % 2].add(_samples(first, 5))
    merged, loaded = shards[0].merge(shards[1]), ReplayBuffer(6, seed=3)
    loaded.load_state_dict(whole.state_dict())
    for one in (merged, loaded):
        assert one.ids() == whole.ids()
        assert torch.equal(one.take(one.ids())["x"], whole.take(whole.ids())["x"])
    later = _samples(30, 20)
    for one in (whole, merged, loaded):
        one.add(later)
    assert whole.ids() == merged.ids() == loaded.ids()
    with pytest.raises(ValueError, match="capacity 6 and seed 3, this one 7 and 3"):
        ReplayBuffer(7, seed=3).load_state_dict(whole.state_dict())


def test_what_a_buffer_cannot_hold_is_named():
    buffer = ReplayBuffer(4, seed=0)
    with pytest.raises(ValueError, match="needs a field 'id'"):
        buffer.add({"x": torch.zeros(1, 2)})
    buffer.add(_samples(0, 2))
    with pytest.raises(
        ValueError, match=r"'x' of a batch is torch.float32 of shape \[5\], .* samples before .* shape \[2\]"
    ):
        buffer.add(_samples(2, 1) | {"x": torch.zeros(1, 5)})
    buffer.check(_samples(0, 4), first=_samples(0, 4))
    with pytest.raises(ValueError, match="sample 1 has another 'y' than the sample of that id which was kept"):
        buffer.check(first=_samples(0, 4), batch=_samples(0, 4) | {"y": torch.tensor([0, 2, 2, 0])})


def test_a_buffer_on_disk_goes_on_from_any_state_behind_the_last_saved_one(tmp_path: Path):
    buffer, states, expected = ReplayBuffer(6, seed=1, folder=tmp_path), [], []
    for first in range(0, 200, 10):
        buffer.add(_samples(first, 10))
        states.append(buffer.state_dict())
        expected.append(buffer.take(buffer.ids()))
        for state, wanted in zip(
            states[-4:], expected[-4:], strict=True
        ):  # three that were not saved, and the saved one
            loaded = ReplayBuffer(6, seed=1, folder=tmp_path)
            loaded.load_state_dict(state)
            found = loaded.take(loaded.ids())
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        if len(states) % 4 == 0:
            buffer.saved()
            states, expected = states[-1:], expected[-1:]
    loaded = ReplayBuffer(6, seed=1, folder=tmp_path)
    loaded.load_state_dict(states[-1])
    assert (tmp_path / "x.array").stat().st_size < 80 * 8  # rows are used again
    buffer.add(_samples(200, 40))
    loaded.load_state_dict(states[-1])
    loaded.add(_samples(200, 40))
    assert loaded.ids() == buffer.ids()
    assert "samples" not in states[-1]
    with pytest.raises(ValueError, match="lies on disk: build it with its folder"):
        ReplayBuffer(6, seed=1).load_state_dict(states[-1])
    with pytest.raises(ValueError, match="does not hold the files of the saved buffer"):
        ReplayBuffer(6, seed=1, folder=tmp_path / "other").load_state_dict(states[-1])
    (tmp_path / "x.array").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.array has 0 bytes, the saved buffer \d+: put the file back"):
        ReplayBuffer(6, seed=1, folder=tmp_path).load_state_dict(states[-1])


def test_samples_for_which_there_is_no_disk_are_kept_when_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    buffer = ReplayBuffer(8, seed=0, folder=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", _disk_full)
        with pytest.raises(OSError, match="No space left"):
            buffer.add(_samples(0, 4))
    buffer.add(_samples(0, 4))
    assert torch.equal(buffer.take([0, 1, 2, 3])["x"], _samples(0, 4)["x"])
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        BatchReplay(ReplayConfig(folder=tmp_path / "file"))


def _disk_full(*_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_samples_of_16_bits_are_kept(tmp_path: Path, is_on_disk: bool):
    buffer = ReplayBuffer(10, seed=0, folder=tmp_path if is_on_disk else None)
    buffer.add(_samples(0, 4) | {"x": torch.randn(4, 2).bfloat16()})
    assert buffer.take([2])["x"].dtype == torch.bfloat16


def test_batches_of_other_fields_are_not_joined():
    with pytest.raises(ValueError, match="new and old samples differ in the field 'weight'"):
        join([_samples(0, 2) | {"weight": torch.ones(2)}, _samples(2, 2)])


# In the loop.


def _mixed(replay: BatchReplay, batch: Batch) -> Batch:
    return replay.change_batch(batch, num_samples=len(batch["id"]))


def _watch(replay: BatchReplay) -> list[Batch]:
    seen: list[Batch] = []
    change = replay.change_batch

    def watched(batch: Batch, **options: int) -> Batch:
        seen.append(change(batch, **options))
        return seen[-1]

    replay.change_batch = watched  # type: ignore[method-assign]
    return seen


def test_a_fifth_of_the_mixed_batch_is_of_earlier_tasks():
    replay = BatchReplay(ReplayConfig(capacity=100))
    seen = _watch(replay)
    trainer = ContinualTrainer(_model(), "classifier", methods=[replay], optimizer=_sgd)
    for task in TASKS:
        source = _samples(1000 * task.index, 32)
        trainer.learn(task, lambda _, one=source: one, num_steps=20, samples=lambda one=source: [one])
    assert [len(batch["id"]) for batch in seen] == [32] * 20 + [40] * 40
    of_third = torch.cat([batch["id"][32:] for batch in seen[40:]])
    assert {int(number) // 1000 for number in of_third} == {0, 1}
    assert all(len(set(batch["id"].tolist())) == 40 for batch in seen[20:])
    assert len(replay.buffer) == 96


@pytest.mark.parametrize(("size", "share"), [(1, 0.2), (2, 0.2), (3, 0.3), (32, 0.2)])
def test_the_share_is_kept_whatever_the_size_of_a_batch(size: int, share: float):
    replay = BatchReplay(ReplayConfig(capacity=200, share=share))
    replay.attach(Learner(_model(), "classifier"))
    replay.before_task(TASKS[0])
    replay.after_task(lambda: [_samples(0, 150)])
    num_old = [len(_mixed(replay, _samples(5000, size))["id"]) - size for _ in range(120)]
    assert sum(num_old) == pytest.approx(120 * size * share / (1 - share), abs=1)
    assert max(num_old) - min(num_old) <= 1


def test_what_a_task_has_too_few_samples_for_comes_from_the_others():
    replay = BatchReplay(ReplayConfig(capacity=100))
    replay.attach(Learner(_model(), "classifier"))
    for task, count in zip(TASKS, (40, 2), strict=False):
        replay.before_task(task)
        replay.after_task(lambda first=1000 * task.index, size=count: [_samples(first, size)])
    replay.mix({0: 1.0, 1: 3.0})
    for _ in range(50):
        old = _mixed(replay, _samples(5000, 32))["id"][32:].tolist()
        assert len(set(old)) == 8
        assert sum(number >= 1000 for number in old) <= 2


def test_an_id_of_an_earlier_task_and_fields_that_it_had_not_are_refused_before_training():
    replay = BatchReplay()
    trainer = ContinualTrainer(_model(), "classifier", methods=[replay], optimizer=_sgd)
    trainer.learn(TASKS[0], lambda _: _samples(0, 8), num_steps=2, samples=lambda: [_samples(0, 8)])
    before = trainer.learner.model.weight.detach().clone()  # type: ignore[operator]
    for batch, message in (
        (
            _samples(100, 8) | {"id": torch.arange(8)},
            "sample 0 has another 'x' .* ids have to be unique over all tasks",
        ),
        (_samples(100, 8) | {"weight": torch.ones(8)}, "field 'weight' of a batch is .* samples before missing"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.learn(TASKS[1], lambda _, one=batch: one, num_steps=2, samples=lambda one=batch: [one])
    fresh = ContinualTrainer(_model(), "classifier", methods=[BatchReplay()], optimizer=_sgd)
    unlike = [_samples(0, 8), _samples(8, 8) | {"weight": torch.ones(8)}]
    with pytest.raises(ValueError, match=r"'weight' of a batch is .* samples before missing"):
        fresh.learn(TASKS[0], lambda _: unlike[0], num_steps=2, samples=lambda: unlike)
    fresh.learn(TASKS[0], lambda _: unlike[0], num_steps=2, samples=lambda: unlike[:1])
    assert torch.equal(trainer.learner.model.weight, before)


def _filled(*, share: float = 0.2) -> BatchReplay:
    """With 24 samples of the first task and 8 of the second."""
    replay = BatchReplay(ReplayConfig(capacity=100, share=share))
    for task, count in zip(TASKS, (24, 8), strict=False):
        replay.attach(Learner(_model(), "classifier"))
        replay.before_task(task)
        replay.after_task(lambda first=1000 * task.index, size=count: [_samples(first, size)])
    return replay


def _old(replay: BatchReplay, steps: int) -> list[int]:
    return [number for _ in range(steps) for number in _mixed(replay, _samples(5000, 16))["id"][16:].tolist()]


def test_every_old_sample_comes_up_before_one_comes_up_again():
    replay = _filled()
    for _ in range(3):
        assert len(set(_old(replay, 8))) == 32  # 4 of each batch


def test_weights_share_the_old_samples_among_the_tasks():
    replay = _filled()
    replay.mix({0: 1.0, 1: 3.0})
    of_second = np.mean([number >= 1000 for number in _old(replay, 400)])
    assert of_second == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 1600))
    replay.mix({1: 1.0})
    assert all(number >= 1000 for number in _old(replay, 10))
    replay.mix(None)
    assert len(set(_old(replay, 8))) == 32


@pytest.mark.parametrize("share", [0.2, 0.23])  # 0.23: no whole number of old samples in a batch
def test_draws_go_on_exactly_with_and_without_weights(share: float):
    for weights in (None, {0: 1.0, 1: 1.0}):
        whole, cut = _filled(share=share), _filled(share=share)
        for one in (whole, cut):
            one.mix(weights)
            _old(one, 3)
        resumed = BatchReplay(ReplayConfig(capacity=100, share=share))
        resumed.attach(Learner(_model(), "classifier"))
        resumed.before_task(TASKS[2])
        resumed.load_state_dict(cut.state_dict())
        assert _old(resumed, 9) == _old(whole, 9)


def test_weights_of_unknown_tasks_or_of_nothing_are_refused():
    replay = _filled()
    with pytest.raises(ValueError, match=r"weights name tasks \[5\], .* it has \[0, 1\]"):
        replay.mix({5: 1.0})
    for weights in ({0: 0.0}, {0: -1.0, 1: 2.0}, {}):
        with pytest.raises(ValueError, match="one of them above"):
            replay.mix(weights)


def test_kept_logits_pull_by_their_mean_squared_distance_on_replayed_rows_alone():
    model = _model()
    replay = BatchReplay(ReplayConfig(capacity=100, logits_weight=0.5))
    replay.attach(Learner(model, "classifier"))
    replay.before_task(TASKS[0])
    old = _samples(0, 8)
    said = model(old["x"]).detach()
    replay.after_task(lambda: [old])
    with torch.no_grad():
        model.bias.add_(torch.tensor([1.0, -2.0, 0.5]))
    batch = _mixed(replay, _samples(50, 32))
    assert batch["is_old"].tolist() == [False] * 32 + [True] * 8
    penalty = replay.rows_penalty(batch, classify(model, batch))
    assert penalty is not None
    drawn = batch["id"][32:]
    expected = 0.5 * F.mse_loss(model(old["x"])[drawn], said[drawn], reduction="none").mean(1).sum()
    torch.testing.assert_close(penalty, expected)
    assert float(penalty.detach()) == pytest.approx(0.5 * 8 * (1 + 4 + 0.25) / 3, rel=1e-4)


# Progressive networks.


def test_columns_keep_their_outputs_bit_for_bit_and_grow_as_their_formula_says():
    torch.manual_seed(0)
    sizes = (2, 5, 4, 3)
    model = ProgressiveNetworks(sizes)

    def adamw(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(weights, lr=0.05, weight_decay=0.1)

    trainer = ContinualTrainer(model, "classifier", methods=[ProgressiveColumns()], optimizer=adamw)
    probe, outputs = _samples(7, 9)["x"], []
    for task in TASKS:
        source = _samples(1000 * task.index, 16)
        trainer.learn(task, lambda _, one=source: one, num_steps=5, samples=lambda one=source: [one])
        outputs.append(model(probe).detach())
        for column in range(task.index + 1):
            model.active = column
            assert torch.equal(model(probe), outputs[column])
        model.active = task.index
        own = sum(a * b + b for a, b in pairwise(sizes))
        lateral = sum(a * b for a, b in pairwise(sizes[1:]))
        columns = task.index + 1
        expected = columns * own + columns * (columns - 1) // 2 * lateral
        assert sum(one.numel() for one in model.parameters()) == expected
        assert sum(one.numel() for one in model.parameters() if one.requires_grad) == own + task.index * lateral
    assert not torch.equal(outputs[0], outputs[1])


def test_a_run_of_columns_that_is_cut_off_goes_on_bit_for_bit(tmp_path: Path):
    def trainer() -> ContinualTrainer:
        return ContinualTrainer(
            ProgressiveNetworks((2, 4, 3)), "classifier", methods=[ProgressiveColumns()], optimizer=_sgd
        )

    def learn(one: ContinualTrainer, task: Task, **options: Any) -> None:
        source = _samples(1000 * task.index, 16)
        one.learn(task, lambda _: source, num_steps=5, samples=lambda: [source], **options)

    whole, first = trainer(), trainer()
    torch.manual_seed(0)  # of the columns
    learn(whole, TASKS[0])
    learn(whole, TASKS[1])
    torch.manual_seed(0)
    learn(first, TASKS[0])

    def save(step: int, _: Any) -> None:
        if step == 2:
            torch.save(first.state_dict(), tmp_path / "state")

    learn(first, TASKS[1], on_step=save)
    resumed = trainer()
    resumed.load_state_dict(torch.load(tmp_path / "state"))
    learn(resumed, TASKS[1])
    ours, theirs = resumed.learner.model.state_dict(), whole.learner.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_another_model_is_refused():
    with pytest.raises(ValueError, match="the model is Linear"):
        ProgressiveColumns().attach(Learner(_model(), "classifier"))
