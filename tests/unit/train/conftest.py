"""Fixtures that several files of tests share."""

import pytest

from tests.numbered_shards import LENGTH, write_numbered


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Numbered token shards of 7, 0, 30 and 13 sequences."""
    return write_numbered(str(tmp_path_factory.mktemp("data") / "web"), [7, 0, 30, 13])


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One of 11 sequences, whose numbers begin at 1,000."""
    return write_numbered(str(tmp_path_factory.mktemp("data") / "code"), [11], first=1000 * LENGTH)
