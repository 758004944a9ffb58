"""Sources that can be listed: a folder, or a commit of a git repository. What changed is read, what is gone is told.

A pass lists everything once and compares it with the marks of what was read before: path and stamp (size, time and inode
of a file; the hash of a blob). Changed paths follow in order, so that the cursor is the last path; what is gone comes last,
so that a file that was moved is there again before it is gone. Ids come from source and path: a changed file keeps its
document's id, and its new passages take the place of the old.
"""

import hashlib
import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from autonomous.sources.batch import Cursor, Known, Mark, ReadLimit, SourceBatch, SourceProblem
from autonomous.sources.config import FolderSource, GitSource
from autonomous.sources.git import GitFile, GitRepository
from memory.store import no_guard
from memory.types import Guard
from train.data.document import (
    MANIFEST_NAME,
    MEDIA_TYPES,
    RawDocument,
    Rejected,
    describe_content,
    describe_oversize,
    document_id,
    list_files,
    read_file,
)
from train.data.listing import matches, printable

RACY_S = 2.0
"""A file that was changed so shortly before it is read is looked at again: a second change may have the same time."""


class Loaded(NamedTuple):
    """A path's content, or why there is none; `stamp` as it counts for the mark."""

    item: RawDocument | Rejected | None
    stamp: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Pass:
    stamps: Mapping[str, str]
    changed: Sequence[str]
    gone: Sequence[str]


class ListedReader(ABC):
    """See the module. Subclasses say what there is and read it."""

    def __init__(self, config: FolderSource | GitSource, *, known: Known, max_document_bytes: int) -> None:
        self._config = config
        self._known = known
        self._max_bytes = max_document_bytes
        self._pass: _Pass | None = None
        self._asked = ""
        self._before: dict[str, Mark] = {}

    def read(self, cursor: Cursor, limit: ReadLimit, *, guard: Guard = no_guard) -> SourceBatch:
        """See Reader."""
        guard()
        after = str(cursor.get("after", ""))
        if self._pass is None or not after or after == self._asked:  # the same again: its batch was not acknowledged
            self._pass = self._compare(self._list())
        self._asked = after
        changed = self._pass.changed
        position = bisect_right(changed, after)
        paths = changed[position : position + limit.num_documents]
        documents: list[RawDocument] = []
        refused: list[Rejected] = []
        marks: dict[str, Mark | None] = {}
        num_bytes = num_read = 0
        for path, loaded in zip(paths, self._load(paths, self._pass.stamps, limit), strict=False):
            num_read += 1
            before = self._before.get(path, Mark("", "", ""))
            mark = Mark(before.document_id, loaded.stamp, "")
            if isinstance(loaded.item, RawDocument):
                mark = Mark(loaded.item.id, loaded.stamp, _sha256(loaded.item))
                if (mark.document_id, mark.sha256) != (before.document_id, before.sha256):
                    documents.append(loaded.item)
            elif loaded.item is not None:
                refused.append(loaded.item)
            marks[path] = mark
            num_bytes += loaded.size_bytes
            guard()
            if num_bytes >= limit.num_bytes:
                break
        if position + num_read < len(changed) or (documents and self._pass.gone):  # what is gone has a batch of its own
            last = changed[position + num_read - 1]
            return SourceBatch({**cursor, "after": last}, documents, refused, marks=marks, is_exhausted=False)
        return self._ended(limit, documents, refused, marks)

    def _ended(
        self,
        limit: ReadLimit,
        documents: list[RawDocument],
        refused: list[Rejected],
        marks: dict[str, Mark | None],
    ) -> SourceBatch:
        """The last batch of a pass; if more is gone than it may hold, the next pass tells the rest."""
        assert self._pass is not None, "a pass ends behind its beginning"
        gone = self._pass.gone[: limit.num_documents]
        is_exhausted = len(gone) == len(self._pass.gone)
        marks |= dict.fromkeys(gone)
        ids = [self._before[path].document_id for path in gone if self._config.when_removed == "retire"]
        self._pass = None
        return SourceBatch({}, documents, refused, [one for one in ids if one], marks, is_exhausted=is_exhausted)

    def _compare(self, stamps: Mapping[str, str]) -> _Pass:
        self._before = self._known.marks(self._config.id)
        if not stamps and self._before:
            raise SourceProblem(
                f"source {self._config.id!r} is empty, but {len(self._before)} files of it were read before: if it is not "
                "mounted, mount it; if all of it was really removed, remove the source and forget what it said"
            )
        changed = sorted(path for path, stamp in stamps.items() if not stamp or self._stamp_of(path) != stamp)
        return _Pass(stamps, changed, sorted(self._before.keys() - stamps.keys()))

    def _stamp_of(self, path: str) -> str | None:
        mark = self._before.get(path)
        return None if mark is None else mark.stamp

    def _is_wanted(self, path: str) -> bool:
        """By the patterns, and by the name: only Unicode can be kept."""
        if printable(path) != path or any(matches(pattern, path) for pattern in self._config.exclude):
            return False
        return not self._config.include or any(matches(pattern, path) for pattern in self._config.include)

    @abstractmethod
    def _list(self) -> dict[str, str]:
        """Stamps of all wanted paths. Raises SourceProblem if not all of it can be seen: what is not seen seems gone."""

    @abstractmethod
    def _load(self, paths: Sequence[str], stamps: Mapping[str, str], limit: ReadLimit) -> Iterable[Loaded]:
        """Contents in the order of the paths; may end early, but not before the first. Nothing need be read before it is asked
        for.
        """


class FolderReader(ListedReader):
    """The files of a folder as they lie there."""

    def __init__(
        self,
        config: FolderSource,
        *,
        known: Known,
        max_document_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(config, known=known, max_document_bytes=max_document_bytes)
        self._folder = config.path
        self._clock = clock

    def _list(self) -> dict[str, str]:
        if not self._folder.is_dir():
            raise SourceProblem(f"path = '{self._folder}' of source {self._config.id!r} is no folder: correct it")

        def refuse(error: OSError) -> None:
            raise SourceProblem(
                f"a folder of source {self._config.id!r} cannot be listed ({error}): give read permission, or exclude it"
            ) from error

        root = self._folder.resolve()
        stamps = {}
        for path in list_files(root, on_error=refuse):
            if self._is_wanted(path) and (stamp := _stamp(root / path)) is not None:
                stamps[path] = stamp
        return stamps

    def _load(self, paths: Sequence[str], stamps: Mapping[str, str], limit: ReadLimit) -> Iterable[Loaded]:
        del stamps, limit
        root = self._folder.resolve()
        return (self._load_one(root, path) for path in paths)

    def _load_one(self, root: Path, path: str) -> Loaded:
        before = _stamp(root / path)
        if before is None:
            return Loaded(None, "", 0)  # it was removed meanwhile: the next pass tells so
        try:
            item = read_file(root, path, source_id=self._config.id, max_file_bytes=self._max_bytes)
        except OSError as error:
            problem = (f"cannot be read ({error.strerror})", "restore the file or its read permission")
            return Loaded(Rejected(path, *problem), "", 0)
        changed_at = int(before.split(":")[1]) / 1e9
        is_settled = _stamp(root / path) == before and self._clock() - changed_at > RACY_S
        size_bytes = len(item.content) if isinstance(item, RawDocument) else 0
        return Loaded(item, before if is_settled else "", size_bytes)


class GitReader(ListedReader):
    """The files of a branch as they are committed. `happened_at` is the time of the commit that was read."""

    def __init__(self, config: GitSource, *, known: Known, max_document_bytes: int, clones: Path) -> None:
        super().__init__(config, known=known, max_document_bytes=max_document_bytes)
        self._repository = GitRepository(config, clones=clones)
        self._files: dict[str, GitFile] = {}
        self._committed_at = 0.0

    def _list(self) -> dict[str, str]:
        commit = self._repository.update()
        self._committed_at = commit.at
        files = self._repository.files(commit)
        self._files = {path: file for path, file in files.items() if path != MANIFEST_NAME and self._is_wanted(path)}
        return {path: file.blob for path, file in self._files.items()}

    def _load(self, paths: Sequence[str], stamps: Mapping[str, str], limit: ReadLimit) -> Sequence[Loaded]:
        wanted: list[str] = []
        num_bytes, num_paths = 0, 0
        for path in paths:
            num_paths += 1
            if self._files[path].size_bytes <= self._max_bytes:
                wanted.append(self._files[path].blob)
                num_bytes += self._files[path].size_bytes
            if num_bytes >= limit.num_bytes:
                break
        contents = self._repository.contents(wanted)
        return [self._loaded(path, contents, stamps[path]) for path in paths[:num_paths]]

    def _loaded(self, path: str, contents: Mapping[str, bytes], stamp: str) -> Loaded:
        file = self._files[path]
        if file.size_bytes > self._max_bytes:
            return Loaded(Rejected(path, *describe_oversize(file.size_bytes, max_bytes=self._max_bytes)), stamp, 0)
        content = contents[file.blob]
        if problem := describe_content(content):
            return Loaded(Rejected(path, *problem), stamp, len(content))
        document = RawDocument(
            id=document_id(self._config.id, relative_path=path),
            source_id=self._config.id,
            title=path,
            content=content,
            media_type=MEDIA_TYPES.get(PurePosixPath(path).suffix.lower()),
            happened_at=self._committed_at,
            metadata={"path": path},
        )
        return Loaded(document, stamp, len(content))


def _stamp(path: Path) -> str | None:
    """Size, time of change in nanoseconds, inode; None for what is not there."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def _sha256(document: RawDocument) -> str:
    content = document.content
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
