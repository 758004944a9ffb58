"""CheckpointManager: one rank's saves, in the background, and its loads.

In: the pieces of the training state that an engine gives, whatever its plan, and JSON beside them. Out: checkpoints that
any other plan can load, committed by a manifest (checkpoint_files.py says what is in them).

A save copies the tensors to host memory (staging), then writes. The loop goes on meanwhile, and waits for the copy alone,
before the optimizer changes weights. On every rank the calls are the same, in the same order; there are no collectives.
Old checkpoints are deleted behind the commit, when no rank waits for it any more.
"""

import contextlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field

from train.pretrain.checkpoint_commit import await_commit, commit, report_failure, write_index
from train.pretrain.checkpoint_files import (
    FAILED_NAME,
    MANIFEST_NAME,
    VERSION,
    CheckpointError,
    CheckpointInfo,
    Manifest,
    RankIndex,
    index_name,
    tensors_name,
)
from train.pretrain.checkpoint_load import Agree, LoadedState, load_pieces
from train.pretrain.checkpoint_store import CheckpointStore
from train.pretrain.checkpoint_write import Bytes, HostBuffer, WritePlan, explain, plan_write, stage, write_tensors
from train.pretrain.pieces import TensorPiece

logger = logging.getLogger(__name__)
T = TypeVar("T")

VISIBLE_AFTER_S = 60.0
"""How long a shared file system may take to show one machine what another has written."""


class CheckpointConfig(BaseModel):
    """Which checkpoints stay, and how long ranks wait for each other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_last: int = Field(3, gt=0)
    """Checkpoints that stay, the last committed ones."""
    keep_every: int | None = Field(None, gt=0)
    """Those at multiples of this many steps stay too; None: no others."""
    commit_timeout_s: float = Field(1800.0, gt=0)
    """How long a rank that has written its files waits for the others', seconds."""


@dataclass(frozen=True, slots=True)
class SaveTimings:
    """What a save cost on this rank. Seconds."""

    stall_s: float
    """The loop stood still: in save, waiting for the save before it included, and in finish_staging."""
    staging_s: float
    """The copy to host memory."""
    write_s: float
    """This rank's files: written, hashed, on disk."""
    commit_s: float
    """From then on until the commit: the other ranks' files."""
    size_bytes: int
    """Of this rank's tensors file."""


@dataclass(slots=True)
class _Save:
    """One that is in flight, or done and not asked for yet."""

    step: int
    folder: Path
    plan: WritePlan
    shared: dict[str, Any]
    own: dict[str, Any]
    ready: torch.cuda.Event | None
    staged: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    seconds: dict[str, float] = field(
        default_factory=lambda: {"stall": 0.0, "staging": 0.0, "write": 0.0, "commit": 0.0}
    )
    info: CheckpointInfo | None = None
    error: CheckpointError | None = None


class CheckpointManager:
    """Saves and loads for one rank of one attempt of a run."""

    def __init__(
        self,
        folder: Path,
        *,
        config: CheckpointConfig,
        rank: int,
        world_size: int,
        attempt: str,
        clock: Callable[[], float] = time.time,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
    ) -> None:
        """`attempt`: a token of letters and digits that is the same on all ranks and that no attempt before had.

        `clock`: Unix seconds. `free_bytes`: free ones of the disk that holds a folder.
        """
        if not (attempt.isascii() and attempt.isalnum()):
            raise ValueError(f"attempt = {attempt!r} is part of a folder's name; use letters and digits alone")
        self.config, self.rank, self.world_size, self.attempt = config, rank, world_size, attempt
        self.store = CheckpointStore(folder)
        self._clock, self._free_bytes = clock, free_bytes
        self._buffer = HostBuffer()
        self._num_saves: dict[int, int] = {}
        self._failed_folders: list[Path] = []
        self._is_tidying = threading.Lock()
        self._thread: threading.Thread | None = None
        self._last: _Save | None = None
        self._is_asked_for = True

    # Saving.

    def save(
        self, step: int, pieces: Iterable[TensorPiece], *, shared: Mapping[str, Any], own: Mapping[str, Any]
    ) -> CheckpointInfo | None:
        """Begin a save of the state after `step` optimizer steps; waits for the one before it.

        `shared`: JSON that is the same on all ranks; `own`: this rank's JSON. Both are copied here, tensors are not: call
        finish_staging before they change. Returns what `wait` would, of the save before it.
        Raises what `wait` raises, and then begins nothing; ValueError for pieces or JSON that cannot be written.
        """
        start = time.perf_counter()
        before = self.wait()
        pieces = list(pieces)
        device = next((piece.tensor.device for piece in pieces if piece.tensor.is_cuda), None)
        plan, shared, own = plan_write(pieces), _json(shared, "shared"), _json(own, "own")
        ready = None if device is None else torch.cuda.current_stream(device).record_event()
        one = _Save(step, self._new_folder(step), plan, shared, own, ready)
        self._last, self._is_asked_for = one, False
        self._thread = threading.Thread(target=self._run, args=(one,), name=f"save-{one.folder.name}", daemon=True)
        self._thread.start()
        one.seconds["stall"] += time.perf_counter() - start
        return before

    def finish_staging(self) -> None:
        """Return when the tensors may change. A failed copy is raised by the next save, wait or poll."""
        if self._last is not None:
            start = time.perf_counter()
            self._last.staged.wait()
            self._last.seconds["stall"] += time.perf_counter() - start

    @property
    def is_saving(self) -> bool:
        """Whether a save is in flight on this rank."""
        return self._last is not None and not self._last.done.is_set()

    def poll(self) -> CheckpointInfo | None:
        """The checkpoint that was committed since the last call of save, wait or poll. Raises what `wait` raises."""
        return None if self.is_saving else self.wait()

    def wait(self) -> CheckpointInfo | None:
        """Return when nothing is in flight: the checkpoint that was, None if it was known already. A failure is raised once.

        Raises CheckpointError naming the file and the fix: no room, a rank that failed or is late, pieces with gaps.
        """
        one = self._last
        if one is None or self._is_asked_for:
            return None
        one.done.wait()
        self._is_asked_for = True
        if one.error is not None:
            raise one.error
        return one.info

    def save_blocking(
        self, step: int, pieces: Iterable[TensorPiece], *, shared: Mapping[str, Any], own: Mapping[str, Any]
    ) -> CheckpointInfo:
        """Save and wait, also for the deletion of old ones: for the end of a run, and before it is stopped."""
        self.save(step, pieces, shared=shared, own=own)
        info = self.wait()
        assert info is not None
        self.leave()
        return info

    def leave(self) -> None:
        """Let what is in flight be committed, or fail: for an end that all ranks come to. The loop's thread asks no more."""
        if self._thread is not None:
            self._thread.join()

    @property
    def timings(self) -> SaveTimings | None:
        """Of the last save, so far as it is done."""
        if self._last is None:
            return None
        seconds = {f"{name}_s": value for name, value in self._last.seconds.items()}
        return SaveTimings(**seconds, size_bytes=self._last.plan.size_bytes)

    def _new_folder(self, step: int) -> Path:
        """Never one that this attempt has used: after going back to an earlier step, steps are saved again."""
        number = self._num_saves[step] = self._num_saves.get(step, 0) + 1
        return self.store.folder / f"step-{step:08d}-{self.attempt}{f'.{number}' if number > 1 else ''}"

    def _run(self, one: _Save) -> None:
        """In the background."""
        try:
            data = _timed(one, "staging", lambda: stage(one.plan, self._buffer, ready=one.ready))
            one.staged.set()
            _timed(one, "write", lambda: self._write(one, data))
            _timed(one, "commit", lambda: self._commit(one))
        except BaseException as error:  # wait() raises it on the loop's thread
            one.error = explain(error, path=one.folder / tensors_name(self.rank), free_bytes=self._free_bytes)
            one.error.__cause__ = error
            self._give_up(one, one.error)
        finally:
            one.plan.tensors.clear()
            one.staged.set()
            one.done.set()
        if one.info is not None:
            self.tidy()

    def _write(self, one: _Save, data: Bytes) -> None:
        one.folder.mkdir(parents=True, exist_ok=True)
        path = one.folder / tensors_name(self.rank)
        entry = write_tensors(path, one.plan, data, free_bytes=self._free_bytes)
        write_index(one.folder, RankIndex(rank=self.rank, tensors=entry, pieces=one.plan.entries, own=one.own))

    def _commit(self, one: _Save) -> None:
        timeout_s = self.config.commit_timeout_s
        if self.rank:
            one.info = CheckpointInfo(one.folder, await_commit(one.folder, timeout_s=timeout_s))
            return
        self.store.check_claim(self.attempt)
        last = self.store.latest()
        manifest = Manifest(
            version=VERSION, sequence=0 if last is None else last.manifest.sequence + 1, step=one.step,
            attempt=self.attempt, world_size=self.world_size, created_at=self._clock(), files=(), shared=one.shared,
        )  # fmt: skip
        complete = commit(
            one.folder, manifest, timeout_s=timeout_s, check_claim=lambda: self.store.check_claim(self.attempt)
        )
        one.info = CheckpointInfo(one.folder, complete)
        logger.info("saved %s: %d bytes by %d ranks", one.info.name, one.info.size_bytes, self.world_size)

    def tidy(self) -> None:
        """Rank 0's, behind a commit or the load of one: deletes checkpoints beyond `keep_last`, and what saves left that
        failed. All ranks have come to that commit, so none still writes to one that failed before it."""
        if self.rank:
            return
        with self._is_tidying:
            failed, self._failed_folders = self._failed_folders, []
            try:
                self.store.check_claim(self.attempt)
                self.store.retain(keep_last=self.config.keep_last, keep_every=self.config.keep_every)
                for folder in failed:
                    self.store.delete(folder)
            except (OSError, CheckpointError) as error:
                logger.warning("old checkpoints stay: %s", error)

    def _give_up(self, one: _Save, error: CheckpointError) -> None:
        """Remove this rank's files, if it is certain that nobody commits them: one whose index is there does not know."""
        with contextlib.suppress(OSError):
            if (one.folder / MANIFEST_NAME).exists():
                return
            if self.rank == 0:
                self._failed_folders.append(one.folder)
            if self.rank == 0 or not (one.folder / index_name(self.rank)).exists():
                report_failure(one.folder, rank=self.rank, error=error)
            elif not (one.folder / FAILED_NAME).exists():
                return
            for name in (index_name(self.rank), tensors_name(self.rank)):
                (one.folder / name).unlink(missing_ok=True)

    # What there is, and loading.

    def latest(self) -> CheckpointInfo | None:
        """The checkpoint committed last. Raises UnknownVersion for one of another version of this package."""
        return self.store.latest()

    def await_name(self, name: str) -> CheckpointInfo:
        """One that rank 0 sees. Raises CheckpointError if it does not appear here within VISIBLE_AFTER_S."""
        return self.store.await_name(name, timeout_s=VISIBLE_AFTER_S)

    def begin_attempt(self) -> None:
        """Rank 0's, before any save: takes the folder over from the attempt before, which can commit nothing from then on, and
        deletes what others left without a manifest."""
        if self.rank == 0:
            self.store.claim(self.attempt)
            self.store.clean(except_of=self.attempt)

    def load(self, info: CheckpointInfo, pieces: Iterable[TensorPiece], *, agree: Agree | None = None) -> LoadedState:
        """Fill the tensors of `pieces` from whatever ranks saved them: see checkpoint_load.load_pieces."""
        return load_pieces(info, pieces, rank=self.rank, world_size=self.world_size, agree=agree)


def _timed(one: _Save, phase: str, work: Callable[[], T]) -> T:
    start = time.perf_counter()
    try:
        return work()
    finally:
        one.seconds[phase] = time.perf_counter() - start


def _json(value: Mapping[str, Any], argument: str) -> dict[str, Any]:
    """A copy, as it will be read back."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(value)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{argument} is not JSON ({error}); give numbers, texts, lists and objects alone") from error
    return copy
