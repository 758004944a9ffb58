"""What lies under a source's location, and what is refused there.

In: a SourceConfig. Out: its files with size and stamp, sorted by path, and a Rejected for each entry that is no input.
Paths are relative to the location's folder, so ids and units do not depend on where a file system is mounted. Nothing
outside of that folder is listed: a local symbolic link is followed only to a file inside that is not listed by itself.
"""

import contextlib
import itertools
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs

from train.data.document import SKIPPED_FOLDERS, EmptySource, Rejected
from train.data.filesystem import PARTIAL, resolve
from train.data.source_config import SUFFIXES, SourceConfig

LEADS_OUT = ("is or lies behind a symbolic link that leads out of the source", "copy the file into the source")
_GLOB = re.compile(r"[*?\[]")
_LINK_FIX = "restore what it points to, or remove the link"


class NoAccess(PermissionError):
    """A source, or a file or folder of it, that may not be read. It is not damaged, so it is no loss: the run ends."""


@contextlib.contextmanager
def explain_access(source: SourceConfig, path: str = "") -> Iterator[None]:
    """A lack of permission in this block is a NoAccess that names the file and the fix."""
    try:
        yield
    except NoAccess:
        raise
    except PermissionError as error:
        what, why = error.filename or path or "its location", error.strerror or str(error) or "no permission"
        raise NoAccess(
            f"source {source.name!r}: {what} may not be read (location = {source.location}; {why}): give read permission, or "
            "exclude it, and run again; what is finished stays"
        ) from error


def raise_if_denied(error: OSError) -> None:
    """For os.walk, which passes over a folder that cannot be listed."""
    if isinstance(error, PermissionError):
        raise error


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of a source. `stamp` changes when its content does: time of change, or the store's ETag."""

    path: str
    size_bytes: int
    stamp: str


@dataclass(frozen=True, slots=True)
class Listing:
    """Files sorted by path, and what was refused."""

    files: list[InputFile]
    rejected: list[Rejected]


@dataclass(frozen=True, slots=True)
class Location:
    """Where a source lies: paths below are relative to `root` of `base`; `name` is the one file, `glob` the pattern."""

    base: pafs.FileSystem
    root: str
    name: str | None = None
    glob: str | None = None

    @property
    def is_local(self) -> bool:
        return isinstance(self.base, pafs.LocalFileSystem)

    @property
    def filesystem(self) -> pafs.FileSystem:
        """Rooted at `root`: readers open relative paths."""
        return pafs.SubTreeFileSystem(self.root, self.base)


def open_location(source: SourceConfig) -> Location:
    """Raises ValueError if there is nothing at the source's location, NoAccess if that may not be known."""
    text, glob = _split_glob(source.location)
    base, root = _local_as_such(*resolve(text))
    with explain_access(source):
        info = base.get_file_info(root)
    if info.type == pafs.FileType.NotFound:
        raise ValueError(
            f"source {source.name!r}: location {source.location} does not exist; correct the path, or remove the source"
        )
    if info.is_file and glob is None:
        folder, _, name = root.rpartition("/")
        return Location(base, folder or "/", name=name)
    return Location(base, root, glob=glob)


def refuse_overlap(source: SourceConfig, *, output: str) -> None:
    """Raises ValueError if the folder that a run writes to lies in a source or holds it: its own files would be inputs when it
    goes on, and `--restart` would delete the source."""
    location = open_location(source)
    written, folder = _follow_links(*_local_as_such(*resolve(output)))
    base, root = _follow_links(location.base, location.root)
    if written != base:
        return
    place = f"{root.rstrip('/')}/{location.name}" if location.name else root
    inner = _relative(folder, root=root)
    if _relative(place, root=folder) is not None:
        problem = f"holds source {source.name!r} (location = {source.location})"
    elif location.name is None and inner is not None and _reaches(location.glob, inner):
        problem = f"lies in source {source.name!r} (location = {source.location})"
    else:
        return
    raise ValueError(
        f"output = {output} {problem}, so the run could not tell its own files from its inputs: give an output outside of "
        "every source"
    )


def list_files(source: SourceConfig, *, location: Location) -> Listing:
    """Raises EmptySource if no file is left to read."""
    if location.name is not None:
        info = location.base.get_file_info(f"{location.root.rstrip('/')}/{location.name}")
        listing = Listing([_describe(info, location.name, base=location.base)], [])
    elif location.is_local:
        listing = _list_local(source, location=location)
    else:
        listing = _list_remote(source, location=location)
    if not listing.files:
        wanted = source.include or ((location.glob,) if location.glob else SUFFIXES[source.kind])
        refused = (
            f"; {len(listing.rejected)} were refused, first {_first(listing.rejected)}" if listing.rejected else ""
        )
        raise EmptySource(
            f"source {source.name!r}: no file of {source.location} matches {', '.join(map(str, wanted))}{refused}: correct "
            "the location or kind, or set include"
        )
    return listing


def is_wanted(path: str, *, source: SourceConfig, glob: str | None = None) -> bool:
    """Whether the patterns of a source and of its location take this relative path."""
    if PARTIAL in path or (glob is not None and not _pattern(glob).fullmatch(path)):
        return False
    if any(matches(pattern, path) for pattern in source.exclude):
        return False
    if source.include:
        return any(matches(pattern, path) for pattern in source.include)
    name = path.rpartition("/")[2].lower()
    return glob is not None or name.endswith(SUFFIXES[source.kind]) or (source.kind == "text" and "." not in name)


def matches(pattern: str, path: str) -> bool:
    """A pattern without "/" is matched to the last name, any other to the whole relative path."""
    return _pattern(pattern).fullmatch(path if "/" in pattern else path.rpartition("/")[2]) is not None


def leads_out(location_root: str, path: str) -> bool:
    """Whether a local path, links followed, lies outside of the root."""
    root = Path(location_root).resolve()
    return not (root / path).resolve().is_relative_to(root)


def describe_os_error(error: OSError) -> str:
    """A reason for a Rejected; without the machine's own path, which a report must not depend on."""
    return f"cannot be read ({os.strerror(error.errno) if error.errno else type(error).__name__})"


def printable(name: str) -> str:
    """A file name need not be valid Unicode, but reports and ids must be."""
    return os.fsencode(name).decode("utf-8", "replace")


def _local_as_such(base: pafs.FileSystem, root: str) -> tuple[pafs.FileSystem, str]:
    """Links need the local rules, whichever library opens the files."""
    is_local = isinstance(base, pafs.PyFileSystem) and "file" in base.handler.fs.protocol
    return (pafs.LocalFileSystem() if is_local else base), root


def _follow_links(base: pafs.FileSystem, root: str) -> tuple[pafs.FileSystem, str]:
    return base, str(Path(root).resolve()) if isinstance(base, pafs.LocalFileSystem) else root.rstrip("/")


def _relative(path: str, *, root: str) -> str | None:
    """The path below a root, "" for the root itself, None for what is elsewhere."""
    if path == root:
        return ""
    prefix = root.rstrip("/") + "/"
    return path.removeprefix(prefix) if path.startswith(prefix) else None


def _reaches(glob: str | None, folder: str) -> bool:
    """Whether the pattern of a location may match a file below this relative folder."""
    *names, last = (glob or "**").split("/")
    names += ["**"] if "**" in last else []
    for name, part in itertools.zip_longest(names, folder.split("/") if folder else []):
        if name is None or (part is not None and "**" not in name and not matches(name, part)):
            return False
        if part is None or "**" in name:
            break
    return True


def _split_glob(location: str) -> tuple[str, str | None]:
    """(folder, pattern below it). An existing local path is itself, whatever characters it has."""
    if not _GLOB.search(location) or ("://" not in location and Path(location).expanduser().exists()):
        return location, None
    scheme, mark, rest = location.rpartition("://")
    parts = rest.split("/")
    first = next(index for index, part in enumerate(parts) if _GLOB.search(part))
    folder = "/".join(parts[:first]) or ("/" if first and not scheme else ".")
    return f"{scheme}{mark}{folder}", "/".join(parts[first:])


@cache
def _pattern(pattern: str) -> re.Pattern[str]:
    """Globs as a shell has them: * and ? stay within a name, **/ crosses folders, [a-z] and [!a] are one character."""
    out, position = [], 0
    while position < len(pattern):
        rest = pattern[position:]
        if rest.startswith("**/"):
            out.append("(?:[^/]+/)*")
            position += 3
        elif rest.startswith("**"):
            out.append(".*")
            position += 2
        elif group := re.match(r"\[(!?)([^]/]+)\]", rest):
            negation = "^/" if group[1] else ""
            out.append(f"[{negation}{group[2].replace(chr(92), chr(92) * 2).replace('^', chr(92) + '^')}]")
            position += group.end()
        else:
            out.append({"*": "[^/]*", "?": "[^/]"}.get(rest[0], re.escape(rest[0])))
            position += 1
    try:
        return re.compile("".join(out), re.DOTALL)
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r} is no glob ({error}): correct its brackets") from error


def _list_local(source: SourceConfig, *, location: Location) -> Listing:
    root = Path(location.root).resolve()
    files: list[InputFile] = []
    links: list[tuple[str, str]] = []
    rejected: list[Rejected] = []
    for path, is_folder in _walk(root, rejected=rejected):
        if not is_folder and not is_wanted(path, source=source, glob=location.glob):
            continue
        if printable(path) != path:
            rejected.append(Rejected(printable(path), "has a name that is not Unicode", "rename it"))
            continue
        status = (root / path).lstat()
        if stat.S_ISLNK(status.st_mode):
            try:
                real_path = (root / path).resolve(strict=True)
            except (OSError, RuntimeError):  # RuntimeError: a loop of links
                rejected.append(Rejected(path, "is a symbolic link that leads nowhere", _LINK_FIX))
                continue
            if not real_path.is_relative_to(root):
                rejected.append(Rejected(path, *LEADS_OUT))
            elif real_path.is_file():
                links.append((path, real_path.relative_to(root).as_posix()))
        elif stat.S_ISREG(status.st_mode):
            files.append(InputFile(path, status.st_size, str(status.st_mtime_ns)))
        else:
            rejected.append(
                Rejected(path, "is no regular file but a pipe, socket or device", "leave it out of the source")
            )
    taken = {file.path for file in files}
    for path, target in sorted(links):
        if target not in taken:
            taken.add(target)
            status = (root / target).stat()
            files.append(InputFile(path, status.st_size, str(status.st_mtime_ns)))
    return Listing(sorted(files, key=_path_of), sorted(rejected, key=lambda item: item.path))


def _walk(root: Path, *, rejected: list[Rejected]) -> Iterator[tuple[str, bool]]:
    """(relative path, whether it is a link to a folder) of everything but folders. Links are not entered."""

    def refuse(error: OSError) -> None:
        raise_if_denied(error)
        folder = Path(str(error.filename)).relative_to(root).as_posix()
        rejected.append(Rejected(printable(folder), describe_os_error(error), "restore it"))

    for folder, folders, names in os.walk(root, followlinks=False, onerror=refuse):
        relative = PurePosixPath(os.path.relpath(folder, root))
        yield from (((relative / name).as_posix(), False) for name in names)
        yield from (((relative / name).as_posix(), True) for name in folders if (Path(folder) / name).is_symlink())
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS)


def _list_remote(source: SourceConfig, *, location: Location) -> Listing:
    prefix = location.root.rstrip("/") + "/"
    files = []
    for info in location.base.get_file_info(pafs.FileSelector(location.root, recursive=True)):
        path = info.path.removeprefix(prefix)
        is_skipped = not SKIPPED_FOLDERS.isdisjoint(path.split("/")[:-1])
        if info.is_file and not is_skipped and is_wanted(path, source=source, glob=location.glob):
            files.append(_describe(info, path, base=location.base))
    return Listing(sorted(files, key=_path_of), [])


def _describe(info: pafs.FileInfo, path: str, *, base: pafs.FileSystem) -> InputFile:
    stamp = info.mtime_ns
    if stamp is None and isinstance(base, pafs.PyFileSystem):  # fsspec's stores tell more than pyarrow asks for
        details = base.handler.fs.info(info.path)
        stamp = next((details[key] for key in ("ETag", "etag", "md5Hash", "created") if details.get(key)), "")
    return InputFile(path, info.size, str(stamp or ""))


def _path_of(file: InputFile) -> str:
    return file.path


def _first(rejected: list[Rejected]) -> str:
    return f"{rejected[0].path}, which {rejected[0].reason}"
