"""The checkpoints of a run's folder: which there are, which may go.

In: a folder of step folders. Out: committed checkpoints in the order of their commits; deletions. A checkpoint is deleted
manifest first, so that a deletion that is cut off leaves no checkpoint with missing files.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from train.files import sync_path
from train.pretrain.checkpoint_files import (
    FOLDER_PATTERN,
    MANIFEST_NAME,
    CheckpointError,
    CheckpointInfo,
    DamagedFile,
    read_manifest,
)

logger = logging.getLogger(__name__)


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
        for info in reversed(self.committed()):
            if info.folder != other_than and info.is_complete:
                return f"resume from {info.name} (step {info.step}), the newest other one that looks intact"
        return f"{self.folder} holds no other checkpoint that looks intact; restore the file or start again"

    def retain(self, *, keep_last: int, keep_every: int | None) -> None:
        """Delete all but the last committed ones and those at multiples of `keep_every` steps."""
        for info in self.committed()[:-keep_last]:
            if keep_every is None or info.step % keep_every:
                (info.folder / MANIFEST_NAME).unlink()
                self._delete(info.folder)

    def clean(self, is_meant: Callable[[str], bool]) -> list[str]:
        """Delete folders without a manifest, of the attempts that are meant. Returns their names."""
        names = []
        for folder, attempt in self._step_folders():
            if is_meant(attempt) and not (folder / MANIFEST_NAME).exists():
                self._delete(folder)
                names.append(folder.name)
        return names

    def _step_folders(self) -> Iterator[tuple[Path, str]]:
        """Folders by that name, each with its attempt."""
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.iterdir()):
            match = FOLDER_PATTERN.fullmatch(path.name)
            if match and path.is_dir():
                yield path, match[2]

    def _delete(self, folder: Path) -> None:
        sync_path(folder)
        shutil.rmtree(folder)
        logger.info("deleted %s", folder)
