"""Which repositories and archives of source code a source holds.

In: a source of kind "code". Out: one InputFile each, whose path is a folder (a repository) or an archive, with the size of the
files that will be read, and a stamp that changes when one of them does. A folder inside of a repository belongs to it.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from train.data.document import SKIPPED_FOLDERS, EmptySource, Rejected
from train.data.document import list_files as list_tracked_files
from train.data.listing import (
    LEADS_OUT,
    InputFile,
    Listing,
    Location,
    is_wanted,
    list_files,
    printable,
    raise_if_denied,
)
from train.data.source_config import SourceConfig


def list_repositories(source: SourceConfig, *, location: Location) -> Listing:
    """Raises EmptySource if there is none."""
    if location.name is not None or not location.is_local:
        return list_files(source, location=location)  # folders of a remote store cannot be walked: archives only
    root = Path(location.root).resolve()
    rejected: list[Rejected] = []
    paths = sorted(_find(root, source=source, glob=location.glob, rejected=rejected))
    if not paths:
        raise EmptySource(
            f"source {source.name!r}: {source.location} has no archive and no repository (a folder with .git); with "
            'repositories = "children" each folder in it is one, with "location" it is one itself'
        )
    return Listing([_measure(root, path) for path in paths], sorted(rejected, key=lambda item: item.path))


def _find(root: Path, *, source: SourceConfig, glob: str | None, rejected: list[Rejected]) -> Iterator[str]:
    """Relative paths; "" for the root itself."""
    if source.repositories == "location":
        yield ""
        return
    for folder, folders, names in os.walk(root, onerror=raise_if_denied, followlinks=False):
        here = Path(folder)
        relative = here.relative_to(root)
        is_child = len(relative.parts) == 1
        is_root = here == root
        if is_child if source.repositories == "children" else (here / ".git").exists() and not (is_root and glob):
            folders.clear()
            path = "/".join(relative.parts)
            if is_root or _is_chosen(path, source=source, glob=glob):
                yield path
            continue
        for name in sorted({*folders, *names}):
            path = (relative / name).as_posix()
            is_link = (here / name).is_symlink()
            if is_link and not (here / name).resolve().is_relative_to(root):
                rejected.append(Rejected(printable(path), *LEADS_OUT))
            elif (
                not is_link and name in names and printable(path) == path and is_wanted(path, source=source, glob=glob)
            ):
                yield path
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS)


def _is_chosen(path: str, *, source: SourceConfig, glob: str | None) -> bool:
    """Patterns choose repositories by their folder's path; without any, each is taken."""
    takes_all = source if source.include or glob else source.model_copy(update={"include": ("*",)})
    return printable(path) == path and is_wanted(path, source=takes_all, glob=glob)


def _measure(root: Path, path: str) -> InputFile:
    if (root / path).is_file():
        status = (root / path).stat()
        return InputFile(path, status.st_size, str(status.st_mtime_ns))
    size_bytes = 0
    digest = hashlib.sha256()
    for name in list_tracked_files(root / path, on_error=raise_if_denied):
        try:
            status = (root / path / name).lstat()
        except FileNotFoundError:  # git still lists a file that was deleted
            continue
        size_bytes += status.st_size
        digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return InputFile(path, size_bytes, digest.hexdigest())
