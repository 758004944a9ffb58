"""A folder or a git repository as a stream of raw documents.

In: a path. Out, file by file in the order of the relative paths: RawDocument for what is text by content, Rejected with
reason and fix for everything else. One file is held at a time. Nothing outside of the folder is read: symbolic links
are not followed.
"""

import errno
import hashlib
import os
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

MEDIA_TYPES = {
    ".txt": "text/plain",
    ".text": "text/plain",
    ".log": "text/plain",
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".rst": "text/x-rst",
    ".html": "text/html",
    ".htm": "text/html",
    ".xhtml": "text/html",
    ".py": "text/x-python",
    ".json": "application/json",
    ".toml": "application/toml",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".csv": "text/csv",
    ".xml": "application/xml",
}
"""By suffix, not by the machine's own table, so that every machine reads a file alike."""

SKIPPED_FOLDERS = frozenset(
    {".git", ".hg", ".svn", ".bzr", "_darcs", "CVS", "__pycache__", "node_modules", ".venv", ".tox", ".mypy_cache"}
    | {".pytest_cache", ".ruff_cache"}
)
"""Version control's own files and caches that tools write beside the sources."""

MANIFEST_NAME = "MANIFEST.json"
"""At the root of a source it describes the documents and is not one of them."""

MAX_CONTROL_SHARE = 0.02
"""Text has next to no control bytes; random bytes have a share of .11."""

_CONTROL_BYTES = bytes(sorted({*range(0x20), 0x7F} - set(b"\t\n\v\f\r\b\x1b")))
_UNICODE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_GIT_TIMEOUT_S = 60
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG})
"""A file that is no longer there or no longer a file: a loss. Other errors are of the disk or of permissions."""


class EmptySource(ValueError):
    """A source without one readable document."""


@dataclass(frozen=True, slots=True)
class RawDocument:
    """One document as it came: `happened_at` in seconds since the epoch, `media_type` None if unknown."""

    id: str
    source_id: str
    title: str
    content: bytes | str
    media_type: str | None
    happened_at: float
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejected:
    """What is no document: the file's path relative to the source, why, and what a person can do.

    `offset` where in the file, bytes or rows as its reader counts; `lost_bytes` how much of the file was passed over.
    """

    path: str
    reason: str
    fix: str
    offset: int | None = None
    lost_bytes: int = 0


def document_id(source_id: str, *, relative_path: str) -> str:
    """Stable across runs and contents: hex, 32 characters. A changed file keeps its id."""
    return hashlib.sha256(f"{source_id}\x00{relative_path}".encode("utf-8", "surrogateescape")).hexdigest()[:32]


def describe_binary(content: bytes) -> str | None:
    """Why these bytes are not text, or None if they are. UTF-16 and UTF-32 need their byte order mark."""
    if content.startswith(b"%PDF-"):
        return "is a PDF"
    if content.startswith(_UNICODE_MARKS):
        return None
    if b"\x00" in content:
        return "is binary (it has NUL bytes)"
    num_control = len(content) - len(content.translate(None, _CONTROL_BYTES))
    if num_control > MAX_CONTROL_SHARE * len(content):
        return f"is binary ({num_control / len(content):.0%} of its bytes are control bytes)"
    return None


def describe_content(content: bytes) -> tuple[str, str] | None:
    """Why these bytes make no document, and the fix; None if they do."""
    if not content.strip():
        return "is empty", "nothing to do, or write its text"
    binary = describe_binary(content)
    return None if binary is None else (binary, BINARY_FIX)


def describe_oversize(
    size_bytes: int, *, max_bytes: int, field_name: str = "ingest.max_document_bytes"
) -> tuple[str, str]:
    """Reason and fix for a document above the limit, the same words wherever it is noticed."""
    reason = f"has {size_bytes:,} bytes, above the limit {field_name} = {max_bytes:,}"
    fix = f"split it, or set {field_name} to at least {size_bytes} in the configuration"
    return reason, fix


BINARY_FIX = "convert it to text (UTF-8), or leave it out of the source"


def read_source(path: Path, *, max_file_bytes: int = 16 << 20) -> Iterator[RawDocument | Rejected]:
    """Stream the files of a folder, or the tracked files of a git repository, sorted by relative path.

    Raises: ValueError at once if the path is missing or no folder; EmptySource at the end of the stream, after every
    Rejected, if there was not one readable document.
    """
    root = Path(path)
    if not root.exists():
        raise ValueError(f"source {root} does not exist: give the path of a folder or of a git repository")
    if not root.is_dir():
        raise ValueError(f"source {root} is a single file: give the folder that holds it")
    if max_file_bytes < 1:
        raise ValueError(f"max_file_bytes is {max_file_bytes}: give at least 1")
    return _stream(root.resolve(), max_file_bytes=max_file_bytes)


def _stream(root: Path, *, max_file_bytes: int) -> Iterator[RawDocument | Rejected]:
    is_git = (root / ".git").exists()
    source_id = f"{'git' if is_git else 'folder'}:{_printable(root.name) or 'root'}"
    num_documents = num_rejected = 0
    for relative_path in list_files(root):
        try:
            item = read_file(root, relative_path, source_id=source_id, max_file_bytes=max_file_bytes)
        except OSError as error:
            problem = (f"cannot be read ({_explain(error)})", "restore the file or its read permission")
            item = Rejected(_printable(relative_path), *problem)
        if item is None:
            continue
        num_documents += isinstance(item, RawDocument)
        num_rejected += isinstance(item, Rejected)
        yield item
    if not num_documents:
        raise EmptySource(
            f"source {root} has no readable document ({num_rejected} files were rejected): "
            "give a folder with text files, or a git repository with committed ones"
        )


def list_files(root: Path, *, on_error: Callable[[OSError], None] = lambda _: None) -> list[str]:
    """Relative paths, sorted: the tracked files of a git repository, else every file below the folder but caches. `on_error`
    is told of each folder that cannot be listed."""
    paths = _git_files(root) if (root / ".git").exists() else None
    return sorted(_walk(root, on_error) if paths is None else paths)


def _walk(root: Path, on_error: Callable[[OSError], None]) -> list[str]:
    paths: list[str] = []
    for folder, folders, names in os.walk(root, onerror=on_error, followlinks=False):
        relative = Path(folder).relative_to(root)
        paths.extend((relative / name).as_posix() for name in names)
        paths.extend((relative / name).as_posix() for name in folders if (Path(folder) / name).is_symlink())
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
    return paths


def _git_files(root: Path) -> list[str] | None:
    """Tracked files, or None where git is missing or refuses the folder. No program named by the repository is run."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(root), "ls-files", "-z"]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=_GIT_TIMEOUT_S, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return [os.fsdecode(name) for name in done.stdout.split(b"\x00") if name]


def read_file(
    root: Path,
    relative_path: str,
    *,
    source_id: str,
    max_file_bytes: int,
    field_name: str = "ingest.max_document_bytes",
) -> RawDocument | Rejected | None:
    """One file below a resolved root, if it is text. `field_name` is the configuration's name of the limit.

    None: nothing to say about it (a link to a file that is read by itself, a submodule, the manifest). Raises OSError where
    the file is there and may not or cannot be read.
    """
    path = root / relative_path
    name = _printable(relative_path)
    try:
        real_path = path.resolve(strict=True)
        status = path.lstat()
        is_inside = real_path.is_relative_to(root)
        if is_inside and (real_path != path or stat.S_ISDIR(status.st_mode) or relative_path == MANIFEST_NAME):
            return None
        content, problem = b"", None
        if not is_inside:
            problem = ("is or lies behind a symbolic link that leads out of the source", "copy the file in")
        elif not stat.S_ISREG(status.st_mode):
            problem = ("is no regular file but a pipe, socket or device", "leave it out of the source")
        else:
            content, problem = _load(path, max_file_bytes=max_file_bytes, field_name=field_name)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        if isinstance(error, OSError) and error.errno not in _GONE:
            raise
        problem = (f"cannot be read ({_explain(error)})", "restore the file or its read permission")
    if problem is not None:
        return Rejected(name, *problem)
    return RawDocument(
        id=document_id(source_id, relative_path=relative_path),
        source_id=source_id,
        title=name,
        content=content,
        media_type=MEDIA_TYPES.get(PurePosixPath(relative_path).suffix.lower()),
        happened_at=status.st_mtime,
        metadata={"path": name},
    )


def _load(path: Path, *, max_file_bytes: int, field_name: str) -> tuple[bytes, tuple[str, str] | None]:
    """The content, or the problem and its fix. A file above the limit is not read."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        content = b"" if size_bytes > max_file_bytes else file.read(max_file_bytes + 1)
    size_bytes = max(size_bytes, len(content))
    if size_bytes > max_file_bytes:
        return b"", describe_oversize(size_bytes, max_bytes=max_file_bytes, field_name=field_name)
    return content, describe_content(content)


def _explain(error: OSError | RuntimeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "a loop of symbolic links"


def _printable(name: str) -> str:
    """A file name need not be valid Unicode, but titles and ids must be."""
    return os.fsencode(name).decode("utf-8", "replace")
