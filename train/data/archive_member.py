"""One member of an archive, of whichever format, and what stops its reader."""

from collections.abc import Callable
from typing import NamedTuple


class Damaged(ValueError):
    """The archive cannot be read on: a sentence without its subject, and the byte of the archive file that was reached."""

    def __init__(self, message: str, *, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class BadMember(ValueError):
    """One member cannot be read, the next ones can: a sentence without its subject."""


class Member(NamedTuple):
    """`problem` says why it is no readable file, empty if it is one; `offset` in the archive file where it begins (of a packed
    tar: how far the file was read). `read` gives the content and may be called once, before the next member is asked for; it
    raises BadMember or Damaged."""

    name: str
    size_bytes: int
    modified_at: float
    is_folder: bool
    problem: str
    offset: int
    read: Callable[[], bytes]
