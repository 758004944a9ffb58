"""Members of an archive as a stream: zip, and tar plain or packed by gzip, bzip2 or xz. Nothing is written to disk.

In: an archive file, told by its content. Out, one member held at a time: ArchiveMember for files, and Rejected for what is
refused (links, devices, paths that lead out, encrypted members, archives within) and for what damage or a limit cuts off, with
the offset in the archive file. Order: zip by name, tar as stored, because a packed tar can only be read from its beginning.
Of several members with one name the first in that order counts, the others are refused.
"""

import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict, Field

from train.data.archive_member import BadMember, Damaged, Member
from train.data.document import Rejected, describe_oversize
from train.data.lines import WatchedFile
from train.data.tar_stream import MAGIC, Unpacked, is_tar_header, tar_members
from train.data.zip_stream import zip_members

ARCHIVE_SUFFIXES = tuple(
    ".zip .tar .tgz .tbz2 .txz .gz .bz2 .xz .zst .7z .rar .whl .egg .jar .war .nupkg .crate .gem .deb .rpm".split()
)
"""By these names an archive within an archive is known."""

_BUFFER_BYTES = 1 << 16
Problem = tuple[str, str]
"""(reason, fix) of a Rejected."""

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_DAMAGE_FIX = "fetch or pack the archive again; what came before was read"
_UNSAFE_FIX = "pack the archive again without it, or give its unpacked folder as the source"


class ArchiveConfig(BaseModel):
    """What stops a hostile archive. All are counted while bytes come out; what an archive says of itself is not believed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_members: int = Field(500_000, gt=0)
    """Members of one archive; the largest open repositories have some 400,000 files."""
    max_member_bytes: int = Field(16 << 20, gt=0)
    """Bytes of one member, unpacked: the most that is held."""
    max_total_bytes: int = Field(64 << 30, gt=0)
    """Bytes of all members of one archive, unpacked."""
    max_ratio: float = Field(200.0, gt=1)
    """Bytes unpacked per byte packed, above the first MiB; source code reaches 3 to 30."""


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """A regular file of an archive; `path` is relative and clean, `modified_at` in seconds since the epoch."""

    path: str
    content: bytes
    modified_at: float


def read_archive(
    filesystem: pafs.FileSystem,
    path: str,
    *,
    config: ArchiveConfig,
    refuse: Callable[[str], Problem | None] = lambda path: None,
    field_name: str = "code.archive",
) -> Iterator[ArchiveMember | Rejected]:
    """Stream the members, but for those whose path `refuse` has a problem with: they are not read.

    Paths of Rejected are "archive.zip!inner/path"; `field_name` is how the configuration calls `config`.
    Raises: OSError if the file itself cannot be read; the archive is then to be read again.
    """
    watched = WatchedFile(filesystem.open_input_file(path))
    name = path.rpartition("/")[2]
    file: io.BufferedReader = io.BufferedReader(watched, _BUFFER_BYTES)
    with file:
        size_bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        try:
            reader = _Reader(name, config=config, refuse=refuse, field_name=field_name)
            yield from reader.read(_members(file, config=config))
        except Damaged as damage:
            if watched.error is not None:
                raise watched.error from damage
            lost_bytes = max(0, size_bytes - damage.offset)
            fix = f"raise the limit in {field_name} if you trust it" if " max_" in str(damage) else _DAMAGE_FIX
            yield Rejected(name, f"{damage}, at byte {damage.offset:,}", fix, damage.offset, lost_bytes)
        if watched.error is not None:
            raise watched.error


def is_archive(head: bytes) -> bool:
    """Whether a file whose first 512 bytes these are is an archive that can be read here, or a packed file."""
    return head.startswith((*_ZIP_MAGIC, *MAGIC.values())) or is_tar_header(head)


def _members(file: io.BufferedReader, *, config: ArchiveConfig) -> Iterator[Member]:
    """Told by content. A plain tar has a header with a valid checksum at its beginning."""
    head = file.read(512)
    file.seek(0)
    if not is_archive(head):
        raise Damaged("is no archive of a kind that is read here (zip, tar, tar.gz, tar.bz2, tar.xz)", offset=0)
    if head.startswith(_ZIP_MAGIC):
        return zip_members(
            file,
            max_members=config.max_members,
            max_member_bytes=config.max_member_bytes,
            max_ratio=config.max_ratio,
        )
    kind = next((kind for kind, magic in MAGIC.items() if head.startswith(magic)), "")
    stream = Unpacked(file, kind=kind, max_total_bytes=config.max_total_bytes, max_ratio=config.max_ratio)
    return tar_members(stream)


class _Reader:
    """Takes or refuses the members of one archive."""

    def __init__(
        self, name: str, *, config: ArchiveConfig, refuse: Callable[[str], Problem | None], field_name: str
    ) -> None:
        self._name = name
        self._config = config
        self._refuse = refuse
        self._field_name = field_name
        self._seen: set[str] = set()
        self._num_bytes = 0

    def read(self, members: Iterator[Member]) -> Iterator[ArchiveMember | Rejected]:
        """Raises Damaged where the archive cannot be read on, or a limit is passed."""
        for number, member in enumerate(members, start=1):
            if number > self._config.max_members:
                raise Damaged(f"has more than max_members = {self._config.max_members:,}", offset=member.offset)
            path, problem = clean_path(member.name)
            if member.is_folder and not problem and not member.problem:
                continue
            refused = self._describe(path, problem or member.problem, size_bytes=member.size_bytes)
            if refused is None:
                self._seen.add(path)
                refused = self._refuse(path)
            if refused is None:
                try:
                    yield ArchiveMember(path, self._load(member), member.modified_at)
                except BadMember as error:
                    refused = (str(error), _DAMAGE_FIX)
            if refused is not None:
                yield Rejected(f"{self._name}!{path}", *refused, member.offset, member.size_bytes)

    def _load(self, member: Member) -> bytes:
        content = member.read()
        self._num_bytes += len(content)
        if self._num_bytes > self._config.max_total_bytes:
            limit = f"max_total_bytes = {self._config.max_total_bytes:,}"
            raise Damaged(f"unpacks to more than {limit}", offset=member.offset)
        return content

    def _describe(self, path: str, problem: str, *, size_bytes: int) -> Problem | None:
        """What speaks against a member whatever it is wanted for."""
        if not problem and path in self._seen:
            problem = "has the path of a member that came before it"
        if not problem and path.lower().endswith(ARCHIVE_SUFFIXES):
            problem = "is an archive within an archive, and such are not opened"
        if problem:
            return problem, _UNSAFE_FIX
        limit = self._config.max_member_bytes
        name = f"{self._field_name}.max_member_bytes"
        return describe_oversize(size_bytes, max_bytes=limit, field_name=name) if size_bytes > limit else None


def clean_path(name: str) -> tuple[str, str]:
    """(relative path with "/", why it is refused or ""). Backslashes separate too: on Windows they would."""
    printable = os.fsencode(name).decode("utf-8", "replace") if not name.isascii() else name
    path = printable.replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if "\x00" in path or not parts:
        return path.replace("\x00", "\ufffd"), "has no usable path"
    if path.startswith("/") or re.match("[A-Za-z]:", path):
        return path, "has an absolute path"
    if ".." in parts:
        return path, "has a path that leads out of the archive"
    return "/".join(parts), ""
