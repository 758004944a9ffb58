"""The checkpoints of a run's folder: which there are, which may go, and which attempt of the run may say so.

In: a folder of step folders. Out: committed checkpoints in the order of their commits; deletions. A folder that goes is
renamed first, so that a deletion that is cut off leaves no checkpoint with missing files, and none can be committed in it.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from train.files import sync_path
from train.pretrain.checkpoint_files import (
    FOLDER_PATTERN,
    MANIFEST_NAME,
    CheckpointError,
    CheckpointInfo,
    DamagedFile,
    TakenOver,
    read_manifest,
    write_durably,
)

logger = logging.getLogger(__name__)

CHECKPOINTS_NAME = "checkpoints"
"""The folder of these in a run's."""
ATTEMPT_NAME = "attempt"
"""Holds the token of the attempt that writes here: the one that began last."""
DELETED_PREFIX = ".deleted-"
LONGEST_LOOK_S = 0.5
"""Between two looks for a checkpoint that another machine has committed."""


class CheckpointStore:
    """A run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def committed(self) -> list[CheckpointInfo]:
        """Committed checkpoints, the first committed first. One with an altered manifest is none, which is logged.

        Raises UnknownVersion.
        """
        found = []
        for folder, _ in self._step_folders():
            try:
                manifest = read_manifest(folder)
            except DamagedFile as error:
                logger.warning("not a checkpoint: %s", error)
                continue
            if manifest is not None:
                found.append(CheckpointInfo(folder, manifest))
        return sorted(found, key=lambda info: (info.manifest.sequence, info.manifest.created_at))

    def latest(self) -> CheckpointInfo | None:
        """The one committed last: after going back to an earlier step that is not the one of the highest step."""
        found = self.committed()
        return found[-1] if found else None

    def await_name(self, name: str, *, timeout_s: float) -> CheckpointInfo:
        """One that another rank sees already: a shared file system may show it here later. Raises as `find` after that."""
        deadline, pause_s = time.monotonic() + timeout_s, 0.01
        while True:
            try:
                return self.find(name)
            except DamagedFile:
                raise
            except CheckpointError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_LOOK_S)

    def find(self, which: int | str) -> CheckpointInfo:
        """By step (the one committed last) or by the folder's name. Raises CheckpointError naming those that there are."""
        if isinstance(which, str) and FOLDER_PATTERN.fullmatch(which):
            try:
                manifest = read_manifest(self.folder / which)
            except DamagedFile as error:
                raise DamagedFile(f"{error}; {self.advice(self.folder / which)}") from error
            if manifest is not None:
                return CheckpointInfo(self.folder / which, manifest)
        found = self.committed()
        for info in reversed(found):
            if info.step == which:
                return info
        names = ", ".join(info.name for info in found) or "none"
        raise CheckpointError(f"{self.folder} holds no checkpoint {which!r}; there are: {names}")

    def advice(self, other_than: Path) -> str:
        """What to do about a checkpoint that cannot be read."""
        with contextlib.suppress(CheckpointError, OSError):
            for info in reversed(self.committed()):
                if info.folder != other_than and info.is_complete:
                    return (
                        f"move {other_than} away: the run then goes on from {info.name} (step {info.step}), the newest other "
                        "one that looks intact"
                    )
        return f"{self.folder} holds no other checkpoint that looks intact; restore the file or start again"

    def retain(self, *, keep_last: int, keep_every: int | None) -> None:
        """Delete all but the last committed ones and those at multiples of `keep_every` steps."""
        for info in self.committed()[:-keep_last]:
            if keep_every is None or info.step % keep_every:
                self.delete(info.folder)

    def clean(self, *, except_of: str) -> None:
        """Delete folders without a manifest, but for those of the attempt `except_of`, and what deletions left."""
        for folder, attempt in self._step_folders():
            if attempt != except_of and not (folder / MANIFEST_NAME).exists():
                self.delete(folder)
        for folder in self.folder.glob(f"{DELETED_PREFIX}*"):
            _remove(folder)

    def claim(self, attempt: str) -> None:
        """From now on this attempt alone commits and deletes here."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_durably(self.folder / ATTEMPT_NAME, attempt.encode())

    def check_claim(self, attempt: str) -> None:
        """Raises TakenOver if another one has begun since; nothing where none ever claimed the folder."""
        path = self.folder / ATTEMPT_NAME
        last = path.read_text("ascii") if path.exists() else attempt
        if last != attempt:
            raise TakenOver(
                f"{self.folder}: attempt {last} of this run began after this one, {attempt}, which ends: two cannot write to "
                "one folder; give one of them another output"
            )

    def delete(self, folder: Path) -> None:
        """A folder of a save, if it is there."""
        going = folder.with_name(DELETED_PREFIX + folder.name)
        if going.exists():  # left by a deletion that was cut off, of a folder of the same name
            _remove(going)
        try:
            folder.rename(going)
        except FileNotFoundError:
            return
        except OSError as error:
            logger.warning("%s stays for now: %s", folder, error)
            return
        sync_path(self.folder)
        _remove(going)
        logger.info("deleted %s", folder)

    def _step_folders(self) -> Iterator[tuple[Path, str]]:
        """Folders by that name, each with its attempt."""
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.iterdir()):
            match = FOLDER_PATTERN.fullmatch(path.name)
            if match and path.is_dir():
                yield path, match[2]


def _remove(folder: Path) -> None:
    """What cannot be removed now (a file that a dying process has open, on NFS) is left to the next attempt."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        logger.warning("%s stays for now: %s", folder, error)
