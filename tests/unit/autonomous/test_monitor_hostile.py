"""The safety monitor when the latch or the ledger cannot be written."""

from pathlib import Path
from typing import Any

import pytest

from autonomous.safety.latch import Latch
from autonomous.safety.monitor import SafetyMonitor


def test_a_stop_whose_file_cannot_be_written_is_audited_and_reported(tmp_path: Path) -> None:
    latch = Latch.create(tmp_path / "latch")
    latch.path.unlink()
    latch.path.mkdir()
    rows: list[dict[str, Any]] = []
    answer = SafetyMonitor(latch, audit=lambda **row: rows.append(row)).stop(by="ada", reason="drill")
    assert answer["mode"] == "stopped"
    assert "could not be written" in answer["latch_error"]
    assert rows[-1]["actor"] == "ada"


def test_a_reset_that_cannot_be_audited_does_not_take_place(tmp_path: Path) -> None:
    latch = Latch.create(tmp_path / "latch")
    latch.stop(by="ada", reason="drill")

    def refuse(**row: Any) -> None:
        raise OSError("the ledger's disk is full")

    with pytest.raises(OSError, match="disk is full"):
        SafetyMonitor(latch, audit=refuse).reset(by="ada", reason="over")
    assert latch.state().mode == "stopped"
