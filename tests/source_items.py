"""Sources of one kind, and what a reader makes of a file of theirs, for the tests of the readers."""

import itertools
import json
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from train.data.document import RawDocument, Rejected
from train.data.source_config import SourceConfig

Item = RawDocument | Rejected


def source_of(kind: str, **fields: Any) -> SourceConfig:
    """A source named "books"."""
    return SourceConfig.model_validate({"name": "books", "kind": kind, "location": "here", **fields})


def read_items(read: Any, folder: Path, path: str, *, source: SourceConfig, **options: Any) -> list[Item]:
    """All that a reader gives of a file."""
    filesystem = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())
    return list(read(filesystem, path, source=source, **options))


def read_ranges(read: Any, folder: Path, path: str, *, source: SourceConfig, cuts: list[int]) -> list[Item]:
    """The items of all ranges between the cuts."""
    edges = [0, *sorted(cuts), None]
    return [
        item
        for start, stop in itertools.pairwise(edges)
        for item in read_items(read, folder, path, source=source, start=start, stop=stop)
    ]


def documents_of(items: list[Item]) -> list[RawDocument]:
    """The documents among them."""
    return [item for item in items if isinstance(item, RawDocument)]


def rejected_of(items: list[Item]) -> list[Rejected]:
    """The refusals among them."""
    return [item for item in items if isinstance(item, Rejected)]


def write_jsonl(path: Path, rows: list[Any]) -> None:
    """A line per row; a row of bytes is written as it is."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")


def readmes() -> dict[str, str]:
    """READMEs of the installed packages by name, as UTF-8 can write them.

    The package importlib-metadata, once it is imported, moves them from the payload to a header.
    """
    found = {
        one.metadata["Name"]: str(one.metadata.get_payload() or one.metadata.get("Description") or "")  # type: ignore[attr-defined]
        for one in distributions()
    }
    return {name: text.encode("utf-8", "replace").decode() for name, text in sorted(found.items()) if text.strip()}
