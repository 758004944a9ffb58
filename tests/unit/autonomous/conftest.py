"""What many tests here start from: a folder, a version ledger, cursors of sources. Imports of sources are inside."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from autonomous.versions.ledger import VersionLedger
from tests.unit.autonomous.ledger_life import make_genesis, quick_folder

if TYPE_CHECKING:
    from autonomous.sources.cursors import CursorStore
    from tests.http_site import Site
    from tests.streams import Stream


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.fixture
def ledger(folder: Path) -> VersionLedger:
    """With the frozen original in production."""
    ledger = VersionLedger(folder / "ledger.sqlite")
    make_genesis(ledger, folder)
    return ledger


@pytest.fixture
def base(ledger: VersionLedger) -> str:
    return ledger.pointers().v2


@pytest.fixture
def cursors(tmp_path: Path) -> "Iterator[CursorStore]":
    from autonomous.sources.cursors import CursorStore

    store = CursorStore(tmp_path / "cursors.sqlite")
    yield store
    store.close()


@pytest.fixture
def site() -> "Iterator[Site]":
    from tests.http_site import serving_site

    with serving_site() as site:
        yield site


@pytest.fixture
def stream(folder: Path) -> "Iterator[Stream]":
    """Reads at most 4 documents or 2000 bytes at a time."""
    from autonomous.sources.batch import ReadLimit
    from tests.streams import Stream

    made = Stream(folder, limit=ReadLimit(num_documents=4, num_bytes=2000))
    yield made
    made.close()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folders of programs lie: a place of this test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder
