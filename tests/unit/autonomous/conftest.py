"""A version ledger with the frozen original in production, in a folder of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from autonomous.versions.ledger import VersionLedger
from tests.unit.autonomous.ledger_life import make_genesis, quick_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.fixture
def ledger(folder: Path) -> VersionLedger:
    ledger = VersionLedger(folder / "ledger.sqlite")
    make_genesis(ledger, folder)
    return ledger


@pytest.fixture
def base(ledger: VersionLedger) -> str:
    return ledger.pointers().v2
