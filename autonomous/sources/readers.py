"""A source's configuration in, its reader out; and what is refused before anything is read."""

from pathlib import Path
from typing import assert_never

from autonomous.sources.batch import Known, Reader, SourceProblem
from autonomous.sources.config import FolderSource, GitSource, HttpSource, JsonlSource, SourceConfig
from autonomous.sources.http import HttpReader
from autonomous.sources.jsonl import JsonlReader
from autonomous.sources.listed import FolderReader, GitReader


def build_reader(config: SourceConfig, *, known: Known, max_document_bytes: int, home: Path) -> Reader:
    """The reader of a source. `home` is the system's own folder: nothing in it is read. Raises SourceProblem."""
    check_place(config, home=home)
    match config:
        case FolderSource():
            return FolderReader(config, known=known, max_document_bytes=max_document_bytes)
        case GitSource():
            clones = home / "sources" / "clones"
            return GitReader(config, known=known, max_document_bytes=max_document_bytes, clones=clones)
        case HttpSource():
            return HttpReader(config, known=known, max_document_bytes=max_document_bytes)
        case JsonlSource():
            return JsonlReader(config, max_document_bytes=max_document_bytes)
    assert_never(config)


def check_place(config: SourceConfig, *, home: Path) -> None:
    """Raises SourceProblem if a path is not there, or would lead into the system's own state."""
    if isinstance(config, HttpSource) or (isinstance(config, GitSource) and config.is_remote):
        return
    path = config.local_path if isinstance(config, GitSource) else config.path
    folder = path.parent if isinstance(config, JsonlSource) else path
    if not folder.is_dir():
        raise SourceProblem(
            f"source {config.id!r}: there is no folder '{folder}' where the system runs; correct the path"
        )
    own, place = home.resolve(), path.resolve()
    if place.is_relative_to(own) or (isinstance(config, FolderSource) and own.is_relative_to(place)):
        raise SourceProblem(
            f"source {config.id!r}: '{path}' holds the system's own state ({own}), which must not be learned: give a folder "
            "beside it"
        )
