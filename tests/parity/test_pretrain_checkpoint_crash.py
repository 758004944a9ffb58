"""Saves that end badly: killed before and after every operation that makes something durable, or without room in the middle.

Whatever happens, the newest checkpoint that was reported loads, with every hash checked.
"""

import contextlib
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import RanksFailed, run_ranks
from train.pretrain.checkpoint import CheckpointConfig, CheckpointManager
from train.pretrain.checkpoint_files import CheckpointError
from train.pretrain.pieces import TensorPiece

ROWS, COLUMNS = 64, 512
"""256 KB over both ranks."""


def _pieces(rank: int, world: int, *, step: int) -> list[TensorPiece]:
    """Rows of a matrix that says which step it is of."""
    rows = ROWS // world
    tensor = torch.full((rows, COLUMNS), float(step)) + torch.arange(COLUMNS)
    return [TensorPiece("weight", "w", (ROWS, COLUMNS), (rank * rows, 0), tensor, True)]


def _manager(folder: Path, rank: int, world: int, attempt: str) -> CheckpointManager:
    config = CheckpointConfig(keep_last=2, commit_timeout_s=1)
    return CheckpointManager(folder, config=config, rank=rank, world_size=world, attempt=attempt)


def _count_calls(number: int, *, is_after: bool) -> None:
    """Let this process die at its `number`-th fsync, rename, deletion of a file or of a folder, counted from 1."""
    count = iter(range(1, 10_000))

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            is_last = next(count) == number
            if is_last and not is_after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*arguments, **options)
            finally:
                if is_last:
                    os.kill(os.getpid(), signal.SIGKILL)

        return run

    for name in ("fsync", "rename", "unlink", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))


def _save_and_die(rank: int, world: int, folder: Path, number: int, death: tuple[int, bool]) -> int:
    """Three saves; rank death[0] dies in the last one. What was reported is written to a file, as a launcher would know it."""
    dying_rank, is_after = death
    manager = _manager(folder, rank, world, f"a{number}")
    manager.begin_attempt()
    torch.distributed.barrier()
    last = manager.latest()
    first = 1 if last is None else last.step + 1
    for step in range(first, first + 3):
        if step == first + 2 and rank == dying_rank:
            _count_calls(number, is_after=is_after)
        manager.save_blocking(step, _pieces(rank, world, step=step), shared={"step": step}, own={})
        if rank == 0:
            (folder.parent / "reported").write_text(str(step))
    return first + 2


@pytest.mark.parametrize(
    ("world", "dying_rank", "is_after"), [(1, 0, False), (1, 0, True), (2, 0, False), (2, 1, False), (2, 1, True)]
)
def test_a_save_killed_at_any_durable_operation_leaves_the_last_reported_checkpoint_loadable(
    tmp_path: Path, world: int, dying_rank: int, is_after: bool
) -> None:
    folder = tmp_path / "checkpoints"
    num_deaths = 0
    for number in range(1, 200):
        has_died = False
        try:
            run_ranks(_save_and_die, world, folder, number, (dying_rank, is_after))
        except RanksFailed:
            has_died = True
        reader = _manager(folder, 0, 1, "reader")
        info = reader.latest()
        assert info is not None
        reported = int((tmp_path / "reported").read_text())
        assert info.step in (reported, reported + 1)
        (piece,) = _pieces(0, 1, step=0)
        loaded = reader.load(info, [piece])
        (expected,) = _pieces(0, 1, step=info.step)
        assert torch.equal(piece.tensor, expected.tensor)
        assert loaded.shared == {"step": info.step}
        if not has_died:
            break
        num_deaths += 1
    assert num_deaths >= (5 if dying_rank else 9)


def _save_without_room(rank: int, world: int, folder: Path, full_rank: int) -> str:
    """The file of one rank breaks off in the middle; then there is room again."""
    manager = _manager(folder, rank, world, "a")
    manager.save_blocking(1, _pieces(rank, world, step=1), shared={}, own={})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == full_rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    told = ""
    try:
        manager.save_blocking(2, _pieces(rank, world, step=2), shared={}, own={})
    except CheckpointError as error:
        told = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    last = manager.latest()
    assert last is not None
    assert last.step == 1
    torch.distributed.barrier()
    info = manager.save_blocking(3, _pieces(rank, world, step=3), shared={}, own={})
    assert info.step == 3
    with contextlib.suppress(CheckpointError):
        manager.wait()
    return told


@pytest.mark.parametrize(("world", "full_rank"), [(1, 0), (2, 0), (2, 1)])
def test_a_disk_that_is_full_in_the_middle_of_a_write_is_told_on_all_ranks_and_the_next_save_works(
    tmp_path: Path, world: int, full_rank: int
) -> None:
    told = run_ranks(_save_without_room, world, tmp_path / "checkpoints", full_rank)
    assert "no room" in told[full_rank]
    assert "Free space or lower keep_last; the last committed checkpoint is untouched" in told[full_rank]
    assert all("was not saved" in text or "no room" in text for text in told)
    assert [path.name[:13] for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000001",
        "step-00000003",
    ]
