"""The commit of a save: rank 0 waits for the files of all ranks, checks that they are the whole state, writes the manifest.

In: the shared folder, in which each rank's index appears when its tensors are on disk. Out: a manifest, or a reason for
which every rank gives up. Nothing here is a collective: a background thread runs it while the ranks train.
"""

import contextlib
import hashlib
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from train.files import sync_path
from train.pretrain.boxes import cover_problem
from train.pretrain.checkpoint_files import (
    FAILED_NAME,
    MANIFEST_NAME,
    CheckpointError,
    FileEntry,
    Manifest,
    PieceEntry,
    RankIndex,
    index_name,
    read_manifest,
    tensors_name,
    write_durably,
    write_manifest,
)
from train.pretrain.checkpoint_table import TensorKey, write_table

LONGEST_PAUSE_S = 1.0
"""Between two looks at the folder; the first pauses are shorter."""


def write_index(folder: Path, index: RankIndex) -> None:
    """Says that this rank's tensors are on disk."""
    sync_path(folder)
    write_durably(folder / index_name(index.rank), index.model_dump_json(indent=1).encode() + b"\n")


def commit(folder: Path, manifest: Manifest, *, timeout_s: float, check_claim: Callable[[], None]) -> Manifest:
    """`manifest` with the files of all ranks, written: run by rank 0. `check_claim` is called right before.

    Raises CheckpointError if a rank failed or is late, or if the pieces are not the whole state; what `check_claim` raises.
    """
    missing = set(range(manifest.world_size))

    def is_whole() -> bool:
        names = {path.name for path in folder.iterdir()}
        missing.difference_update([rank for rank in missing if index_name(rank) in names])
        return not missing

    def sentence() -> str:
        return f"no files of rank {', '.join(map(str, sorted(missing)[:8]))} ({len(missing)} ranks)"

    _wait_until(is_whole, folder=folder, timeout_s=timeout_s, what_is_missing=sentence)
    files: list[FileEntry] = []
    pieces: dict[TensorKey, list[tuple[int, PieceEntry]]] = defaultdict(list)
    for rank in range(manifest.world_size):
        path = folder / index_name(rank)
        data = path.read_bytes()
        index = RankIndex.model_validate_json(data)
        size_bytes = (folder / tensors_name(rank)).stat().st_size
        if size_bytes != index.tensors.size_bytes:
            raise CheckpointError(
                f"{folder.name} was not saved: {tensors_name(rank)} has {size_bytes} bytes, its index says "
                f"{index.tensors.size_bytes}; another process writes there: give each attempt a token of its own"
            )
        sha256 = hashlib.sha256(data).hexdigest()
        files += [FileEntry(name=path.name, size_bytes=len(data), sha256=sha256), index.tensors]
        for entry in index.pieces:
            pieces[entry.kind, entry.name].append((rank, entry))
    for (kind, name), found in pieces.items():
        if problem := _problem_of([entry for _, entry in found]):
            raise CheckpointError(
                f"{folder.name} was not saved: {kind} {name}: {problem}; the engine's pieces have to be each tensor once, "
                "which is a defect of the engine"
            )
    complete = manifest.model_copy(update={"files": (*files, write_table(folder, pieces))})
    check_claim()
    write_manifest(folder, complete)
    sync_path(folder.parent)
    return complete


def _problem_of(entries: list[PieceEntry]) -> str | None:
    """Why pieces of all ranks are not one tensor."""
    shapes, dtypes = {entry.shape for entry in entries}, {entry.dtype for entry in entries}
    if len(shapes) > 1:
        return f"ranks disagree about its shape, {' and '.join(str(list(shape)) for shape in sorted(shapes))}"
    if len(dtypes) > 1:
        return f"ranks disagree about its dtype, {' and '.join(sorted(dtypes))}"
    return cover_problem(entries[0].shape, [entry.box for entry in entries])


def await_commit(folder: Path, *, timeout_s: float) -> Manifest:
    """The manifest, when rank 0 has written it: run by the other ranks. Raises CheckpointError as `commit` does."""
    path = folder / MANIFEST_NAME
    _wait_until(path.exists, folder=folder, timeout_s=timeout_s, what_is_missing=lambda: "no manifest of rank 0")
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def report_failure(folder: Path, *, rank: int, error: BaseException) -> None:
    """Tell the other ranks, as far as the disk allows; otherwise they find out by their deadline."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / FAILED_NAME).open("x", encoding="utf-8") as file:
            file.write(f"rank {rank} failed: {error}")


def _wait_until(
    is_done: Callable[[], bool], *, folder: Path, timeout_s: float, what_is_missing: Callable[[], str]
) -> None:
    """Look at the folder until it is. Raises CheckpointError when a rank gave up, and at the deadline."""
    deadline, pause_s = time.monotonic() + timeout_s, 0.01
    while not is_done():
        if (failed := folder / FAILED_NAME).exists():
            raise CheckpointError(f"{folder.name} was not saved: {failed.read_text(encoding='utf-8')}")
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"{folder} was not saved: after commit_timeout_s = {timeout_s:g} s there are {what_is_missing()}; see "
                "the logs of that rank, check that all ranks see the same folder, or allow more time"
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
