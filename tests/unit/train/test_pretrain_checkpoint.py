"""A checkpoint that one division of the state saved loads into every other one, or says which file is at fault."""

import errno
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from train.pretrain import checkpoint
from train.pretrain.checkpoint import CheckpointConfig, CheckpointManager
from train.pretrain.checkpoint_files import CheckpointError, TakenOver, UnknownVersion
from train.pretrain.pieces import TensorPiece, flat_pieces

STATE = {
    "model.embed_tokens.weight": torch.randn(10, 6, generator=torch.Generator().manual_seed(1)),
    "model.layers.0.mlp.experts.w1": torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(2)),
    "model.norm.weight": torch.randn(6, generator=torch.Generator().manual_seed(3)),
}
Division = Callable[[str, Tensor, int, int], list[TensorPiece]]
"""Of a tensor: the pieces of one of so many ranks, with memory of their own."""


def _along(dim: int) -> Division:
    def divide(name: str, whole: Tensor, rank: int, world: int) -> list[TensorPiece]:
        axis = min(dim, whole.dim() - 1)
        borders = [whole.shape[axis] * place // world for place in range(world + 1)]
        start, stop = list(pairwise(borders))[rank]
        offsets = tuple(start if at == axis else 0 for at in range(whole.dim()))
        part = whole.narrow(axis, start, stop - start).clone()
        return [TensorPiece("weight", name, tuple(whole.shape), offsets, part, True)]

    return divide


def _flat(name: str, whole: Tensor, rank: int, world: int) -> list[TensorPiece]:
    start, stop = whole.numel() * rank // world, whole.numel() * (rank + 1) // world
    part = whole.flatten()[start:stop].clone()
    return flat_pieces(kind="weight", name=name, shape=tuple(whole.shape), start=start, tensor_1d=part, is_owner=True)


def _replicated(name: str, whole: Tensor, rank: int, world: int) -> list[TensorPiece]:
    return [TensorPiece("weight", name, tuple(whole.shape), (0,) * whole.dim(), whole.clone(), rank == 0)]


DIVISIONS: dict[str, Division] = {"rows": _along(0), "columns": _along(1), "flat": _flat, "replicas": _replicated}


def _managers(folder: Path, world: int, *, attempt: str = "a", **config: float) -> list[CheckpointManager]:
    settings_ = CheckpointConfig(commit_timeout_s=20, **config)  # type: ignore[arg-type]
    return [
        CheckpointManager(folder, config=settings_, rank=rank, world_size=world, attempt=attempt)
        for rank in range(world)
    ]


def _pieces(divide: Division, rank: int, world: int, *, fill: float | None = None) -> list[TensorPiece]:
    found = [piece for name, whole in STATE.items() for piece in divide(name, whole, rank, world)]
    for piece in found:
        if fill is not None:
            piece.tensor.fill_(fill)
    return found


def _save(managers: list[CheckpointManager], divide: Division, *, step: int = 7) -> None:
    world = len(managers)
    for rank, manager in enumerate(managers):
        manager.save(step, _pieces(divide, rank, world), shared={"step": step}, own={"rank": rank})
    for manager in managers:
        manager.finish_staging()
        info = manager.wait()
        assert info is not None
        assert info.step == step


def _expect_loaded(folder: Path, divide: Division, world: int) -> None:
    for rank, manager in enumerate(_managers(folder, world)):
        info = manager.latest()
        assert info is not None
        pieces = _pieces(divide, rank, world, fill=float("nan"))
        manager.load(info, pieces)
        for piece in pieces:
            box = tuple(slice(at, at + size) for at, size in zip(piece.offsets, piece.tensor.shape, strict=True))
            assert torch.equal(piece.tensor, STATE[piece.name][box]), piece.name


@pytest.mark.parametrize("saved", DIVISIONS)
@pytest.mark.parametrize("loaded", DIVISIONS)
def test_every_division_loads_into_every_other_bit_for_bit(tmp_path: Path, saved: str, loaded: str):
    _save(_managers(tmp_path, 3), DIVISIONS[saved])
    for world in (1, 2, 3, 4):
        _expect_loaded(tmp_path, DIVISIONS[loaded], world)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.data())
@settings(deadline=None, max_examples=60)
def test_the_boxes_of_a_flat_range_hold_its_elements_once_and_are_few(shape: list[int], data: st.DataObject):
    size = int(torch.tensor(shape).prod())
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    whole = torch.arange(size)
    pieces = flat_pieces(
        kind="weight", name="w", shape=tuple(shape), start=start, tensor_1d=whole[start:stop].clone(), is_owner=True
    )
    boxes = [
        whole.view(shape)[tuple(slice(a, a + n) for a, n in zip(piece.offsets, piece.tensor.shape, strict=True))]
        for piece in pieces
    ]
    assert all(torch.equal(box, piece.tensor) for box, piece in zip(boxes, pieces, strict=True))
    assert sorted(torch.cat([box.flatten() for box in boxes]).tolist() if boxes else []) == list(range(start, stop))
    assert len(pieces) <= 2 * len(shape) - 1


def test_own_state_comes_back_on_as_many_ranks_alone_and_shared_state_on_any_number(tmp_path: Path):
    _save(_managers(tmp_path, 2), _along(0))
    for world in (1, 2):
        for rank, manager in enumerate(_managers(tmp_path, world)):
            info = manager.latest()
            assert info is not None
            state = manager.load(info, _pieces(_along(0), rank, world))
            assert state.shared == {"step": 7}
            assert state.own == ({"rank": rank} if world == 2 else None)


def test_a_folder_without_a_manifest_is_no_checkpoint_and_is_cleaned_away(tmp_path: Path):
    _save(_managers(tmp_path, 1), _replicated, step=7)
    _save(_managers(tmp_path, 1), _replicated, step=8)
    manager = _managers(tmp_path, 1, attempt="b")[0]
    newest = manager.latest()
    assert newest is not None
    (newest.folder / "manifest.json").unlink()
    before = manager.latest()
    assert before is not None
    assert before.step == 7
    manager.begin_attempt()
    assert not newest.folder.exists()
    assert before.folder.exists()
    assert {path.name for path in tmp_path.iterdir()} == {before.name, "attempt"}


def test_what_a_configuration_does_not_keep_is_deleted_when_it_is_tidied_up(tmp_path: Path):
    """Lowering keep_last frees a full disk, on which no save would come to delete anything."""
    for step in (5, 6, 7):
        _save(_managers(tmp_path, 1), _replicated, step=step)
    (manager,) = _managers(tmp_path, 1, attempt="b", keep_last=1)
    manager.begin_attempt()
    assert [info.step for info in manager.store.committed()] == [5, 6, 7]
    manager.tidy()
    assert [info.step for info in manager.store.committed()] == [7]


def test_a_folder_that_is_back_behind_its_deletion_is_deleted_again(tmp_path: Path):
    """A rank of the attempt before made it anew, while the first one could not be removed."""
    for name in ("step-00000005-a", ".deleted-step-00000005-a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "failed").touch()
    (manager,) = _managers(tmp_path, 1, attempt="b")
    manager.begin_attempt()
    assert {path.name for path in tmp_path.iterdir()} == {"attempt"}


def test_an_attempt_whose_folder_was_taken_over_neither_commits_nor_deletes(tmp_path: Path):
    (old,) = _managers(tmp_path, 1, keep_last=1)
    (new,) = _managers(tmp_path, 1, attempt="b")
    old.begin_attempt()
    _save([old], _replicated, step=7)
    new.begin_attempt()
    old.save(8, _pieces(_replicated, 0, 1), shared={}, own={})
    with pytest.raises(TakenOver, match="attempt b of this run began after this one, a"):
        old.wait()
    _save([new], _replicated, step=9)
    assert [info.step for info in new.store.committed()] == [7, 9]


def test_a_deletion_that_is_cut_off_leaves_no_checkpoint_and_is_finished_by_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (manager,) = _managers(tmp_path, 1, keep_last=1)
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", _raise_busy)
        for step in (7, 8):
            manager.save_blocking(step, _pieces(_replicated, 0, 1), shared={}, own={})
    assert [info.step for info in manager.store.committed()] == [8]
    assert len(list(tmp_path.glob(".deleted-*"))) == 1
    _managers(tmp_path, 1, attempt="b")[0].begin_attempt()
    assert not list(tmp_path.glob(".deleted-*"))


def _raise_busy(*_: object, **__: object) -> None:
    raise OSError(errno.EBUSY, "a file is open elsewhere")


def test_a_rank_that_fails_before_it_writes_anything_tells_the_others_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first, second = _managers(tmp_path, 2)
    monkeypatch.setattr("train.pretrain.checkpoint.stage", _raise_no_memory)
    second.save(7, _pieces(_along(0), 1, 2), shared={}, own={})
    with pytest.raises(CheckpointError, match=r"rank-00001.* was not written \(RuntimeError: no memory\)"):
        second.wait()
    monkeypatch.undo()
    start = time.monotonic()
    first.save(7, _pieces(_along(0), 0, 2), shared={}, own={})
    with pytest.raises(CheckpointError, match=r"rank 1 failed: .*no memory"):
        first.wait()
    assert time.monotonic() - start < first.config.commit_timeout_s / 2


def _raise_no_memory(*_: object, **__: object) -> None:
    raise RuntimeError("no memory")


def test_a_disk_without_room_for_a_folder_is_told_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (manager,) = _managers(tmp_path / "below", 1)
    monkeypatch.setattr(Path, "mkdir", _raise_full)
    manager.save(7, _pieces(_replicated, 0, 1), shared={}, own={})
    with pytest.raises(CheckpointError, match=r"no room .* bytes are free there now"):
        manager.wait()


def _raise_full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_save_of_this_attempt_is_deleted_behind_the_next_one(tmp_path: Path):
    (manager,) = _managers(tmp_path, 1)
    part = TensorPiece("weight", "w", (4, 2), (0, 0), torch.zeros(3, 2), True)
    manager.save(1, [part], shared={}, own={})
    with pytest.raises(CheckpointError):
        manager.wait()
    assert (tmp_path / "step-00000001-a").exists()
    manager.save_blocking(2, _pieces(_replicated, 0, 1), shared={}, own={})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002-a"]


def test_a_checkpoint_that_another_machine_sees_already_is_waited_for(tmp_path: Path):
    (manager,) = _managers(tmp_path, 1)
    hidden = manager.save_blocking(7, _pieces(_replicated, 0, 1), shared={}, own={}).folder
    hidden.rename(tmp_path / "not-yet")
    threading.Timer(0.3, (tmp_path / "not-yet").rename, (hidden,)).start()
    assert manager.await_name(hidden.name).step == 7
    with pytest.raises(CheckpointError, match="holds no checkpoint 'step-00000009-a'"):
        manager.store.await_name("step-00000009-a", timeout_s=0.1)


@pytest.mark.parametrize("name", ["rank-00001.safetensors", "pieces.npz", "rank-00000.json"])
@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_a_damaged_file_is_named_with_the_checkpoint_to_resume_from_and_nothing_is_filled(
    tmp_path: Path, damage: str, name: str
):
    for step in (7, 8):
        _save(_managers(tmp_path, 2), _along(0), step=step)
    manager = _managers(tmp_path, 2)[0]
    info = manager.latest()
    assert info is not None
    path = info.folder / name
    data = bytearray(path.read_bytes())
    if damage == "altered":
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "truncated":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    pieces = _pieces(_replicated, 0, 1, fill=5.0)
    with pytest.raises(CheckpointError, match=rf"{name}.*step-00000007"):
        manager.load(info, pieces)
    assert all(bool((piece.tensor == 5).all()) for piece in pieces)


def test_what_one_rank_finds_is_raised_on_all_before_anything_is_filled(tmp_path: Path):
    _save(_managers(tmp_path, 2), _along(0))
    (manager, _) = _managers(tmp_path, 2)
    info = manager.latest()
    assert info is not None
    pieces = _pieces(_replicated, 0, 1, fill=5.0)
    with pytest.raises(CheckpointError, match="what rank 1 found"):
        manager.load(info, pieces, agree=lambda text: [text, "what rank 1 found"])
    assert all(bool((piece.tensor == 5).all()) for piece in pieces)


def test_pieces_with_a_gap_are_never_committed_and_the_failure_comes_from_wait(tmp_path: Path):
    manager = _managers(tmp_path, 1)[0]
    part = TensorPiece("weight", "w", (4, 2), (0, 0), torch.zeros(3, 2), True)
    manager.save(1, [part], shared={}, own={})
    with pytest.raises(CheckpointError, match="w"):
        manager.wait()
    assert manager.latest() is None


def test_a_disk_without_room_is_said_before_writing_and_the_last_checkpoint_stays(tmp_path: Path):
    _save(_managers(tmp_path, 1), _replicated)
    full = CheckpointManager(
        tmp_path, config=CheckpointConfig(), rank=0, world_size=1, attempt="b", free_bytes=lambda _: 100
    )
    full.save(8, _pieces(_replicated, 0, 1), shared={}, own={})
    with pytest.raises(CheckpointError, match="100"):
        full.wait()
    latest = full.latest()
    assert latest is not None
    assert latest.step == 7
    _expect_loaded(tmp_path, _replicated, 1)


def test_the_last_checkpoints_stay_and_those_at_multiples(tmp_path: Path):
    (manager,) = _managers(tmp_path, 1, keep_last=2, keep_every=4)
    for step in range(1, 8):
        manager.save_blocking(step, _pieces(_replicated, 0, 1), shared={}, own={})
    assert [info.step for info in manager.store.committed()] == [4, 6, 7]


def test_what_is_saved_is_the_state_when_staging_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The copy waits, so that only finish_staging can keep the loop from changing what is not copied yet."""
    may_copy = threading.Event()
    copy = checkpoint.stage

    def copy_late(*arguments: Any, **options: Any) -> Any:
        may_copy.wait(10)
        return copy(*arguments, **options)

    monkeypatch.setattr(checkpoint, "stage", copy_late)
    (manager,) = _managers(tmp_path, 1)
    pieces = _pieces(_replicated, 0, 1)
    manager.save(7, pieces, shared={}, own={})
    threading.Timer(0.2, may_copy.set).start()
    manager.finish_staging()
    assert may_copy.is_set()
    for piece in pieces:
        piece.tensor.zero_()
    manager.wait()
    _expect_loaded(tmp_path, _replicated, 1)


def test_a_manifest_of_another_version_is_never_taken_for_none(tmp_path: Path):
    (manager,) = _managers(tmp_path, 1)
    path = manager.save_blocking(7, _pieces(_replicated, 0, 1), shared={}, own={}).folder / "manifest.json"
    path.write_text(path.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(UnknownVersion, match="version 1, known here is 2"):
        manager.latest()
