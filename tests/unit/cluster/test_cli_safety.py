"""The command line's hold on the system: stop, kill, reset, watchdog, audit. None of it needs the system."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from autonomous.safety.latch import Latch, LearningStopped
from autonomous.versions.ledger import VersionLedger
from cluster.cli import run
from cluster.config import load_config
from cluster.processes import end_processes, is_alive
from memory.store import StoreFull
from tests.safety_processes import starting
from tests.unit.autonomous.ledger_life import make_genesis, make_production

Captured = pytest.CaptureFixture[str]


def _json(capsys: Captured) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def test_an_emergency_stop_latches_and_a_reset_undoes_it(system: Any, capsys: Captured) -> None:
    config = ["--config", str(system.config_path)]
    assert run(["emergency-stop", "--reason", "it lied", "--by", "alice", *config]) == 0
    assert "Answering goes on" in capsys.readouterr().out
    state = Latch.open(system.home / "safety" / "latch").state()
    assert (state.mode, state.reason, state.by) == ("stopped", "it lied", "alice")
    assert run(["learn", *config]) == 1
    assert run(["status", *config]) == 0
    assert "stopped by alice: it lied" in capsys.readouterr().out
    assert run(["reset", "--reason", "found the cause", "--by", "bob", *config]) == 0
    Latch.open(system.home / "safety" / "latch").permit("learning").check()


def test_an_emergency_stop_works_when_everything_else_is_down(config_path: Path, capsys: Captured) -> None:
    home = load_config(config_path).home
    (home / "safety").mkdir(parents=True)
    Latch.create(home / "safety" / "latch")
    ledger = VersionLedger(home / "ledger.sqlite")
    assert run(["emergency-stop", "--json", "--by", "ada", "--config", str(config_path)]) == 0
    told = _json(capsys)
    assert told["mode"] == "stopped"
    (row,) = ledger.audit(9)
    assert (row.actor, row.action) == ("ada", "safety.stop")
    with pytest.raises(LearningStopped):
        Latch.open(home / "safety" / "latch").permit("learning")


def test_an_emergency_stop_needs_no_readable_configuration(tmp_path: Path, capsys: Captured) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("home = [", encoding="utf-8")
    home = tmp_path / "home"
    (home / "safety").mkdir(parents=True)
    Latch.create(home / "safety" / "latch")
    assert run(["emergency-stop", "--config", str(broken)]) == 1
    assert "--home" in capsys.readouterr().err
    assert run(["emergency-stop", "--category", "pause", "--home", str(home)]) == 0
    assert Latch.open(home / "safety" / "latch").state().mode == "paused"


def test_a_kill_ends_registered_processes_and_tells_that_they_are_gone(tmp_path: Path, capsys: Captured) -> None:
    home = tmp_path / "home"
    Latch.create(home / "safety" / "latch")
    kill = ["emergency-stop", "--category", "kill", "--scope", "learner", "--home", str(home)]
    with starting(home / "safety") as start:
        pids = start("learner", "learner")
        assert run([*kill, "--json"]) == 0
        told = _json(capsys)
        assert (told["mode"], told["scope"], told["is_complete"]) == ("killed", "learner", True)
        assert {one["pid"]: one["is_gone"] for one in told["processes"]} == dict.fromkeys(pids, True)
        assert not any(is_alive(pid) for pid in pids)
    latch = Latch.open(home / "safety" / "latch")
    latch.permit("memory write").check()
    with pytest.raises(LearningStopped, match="the learner was killed"):
        latch.permit("optimizer step", within="learner")

    (home / "safety" / "processes" / "odd.json").write_text("{")
    assert run(kill) == 1
    shown = capsys.readouterr()
    assert "NOT known to be gone: odd" in shown.out
    assert "see to what is left" in shown.err


def test_a_kill_is_carried_out_though_the_latch_cannot_be_written(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    Latch.create(home / "safety" / "latch")

    def read_only(*_: object) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr("autonomous.safety.latch_file.write_block", read_only)
    with starting(home / "safety") as start:
        pids = start("learner", "learner")
        assert run(["emergency-stop", "--category", "kill", "--home", str(home), "--json"]) == 1
        told = _json(capsys)
        assert "read-only file system" in told["latch_error"]
        assert {one["pid"] for one in told["processes"] if one["is_gone"]} == set(pids)
        assert not any(is_alive(pid) for pid in pids)


def test_a_reset_works_when_the_system_is_down_and_needs_a_person(config_path: Path, capsys: Captured) -> None:
    home = load_config(config_path).home
    latch = Latch.create(home / "safety" / "latch")
    ledger = VersionLedger(home / "ledger.sqlite")
    latch.kill(by="ada", reason="fire", scope="all")
    config = ["--config", str(config_path)]
    assert run(["reset", "--reason", "over", "--by", "agent", *config]) == 1
    assert "only by a person" in capsys.readouterr().err
    assert run(["reset", "--reason", "over", "--by", "bob", "--json", *config]) == 0
    assert _json(capsys)["mode"] == "armed"
    assert [(row.actor, row.action) for row in ledger.audit(9)] == [
        ("bob", "safety.reset"), ("bob", "safety.reset-requested"),
    ]  # fmt: skip


def test_the_watchdog_is_started_once(config_path: Path, capsys: Captured) -> None:
    home = load_config(config_path).home
    Latch.create(home / "safety" / "latch")
    try:
        for is_new in (True, False):
            assert run(["watchdog", "--json", "--config", str(config_path)]) == 0
            assert _json(capsys)["started"] is is_new
        Latch.open(home / "safety" / "latch").permit("learning").check()
    finally:
        assert end_processes(home, head_pid=None, grace_s=0) == 1


def test_an_emergency_stop_and_a_reset_of_a_system_that_never_was_are_refused(
    tmp_path: Path, config_path: Path, capsys: Captured
) -> None:
    assert run(["emergency-stop", "--home", str(tmp_path / "typo")]) == 1
    assert "there is no system in" in capsys.readouterr().err
    assert run(["reset", "--reason", "x", "--by", "alice", "--config", str(config_path)]) == 1
    assert "there is no system in" in capsys.readouterr().err


def test_audit_verify_names_the_first_altered_row(config_path: Path, capsys: Captured) -> None:
    home = load_config(config_path).home
    home.mkdir()
    ledger = VersionLedger(home / "ledger.sqlite")
    for number in range(3):
        ledger.append_audit(actor="human", action="test", subject=str(number))
    assert run(["audit", "verify", "--config", str(config_path)]) == 0
    assert "is whole" in capsys.readouterr().out
    _alter_second_audit_row(home / "ledger.sqlite")
    assert run(["audit", "verify", "--config", str(config_path)]) == 1
    assert "broken at row 2" in capsys.readouterr().err


def test_a_ledger_with_damaged_pages_is_one_line_with_the_fix_for_every_command_that_reads_it(
    config_path: Path, capsys: Captured
) -> None:
    home = load_config(config_path).home
    Latch.create(home / "safety" / "latch").stop(by="ada", reason="fire")
    path = home / "ledger.sqlite"
    ledger = VersionLedger(path)
    name = make_production(ledger, make_genesis(ledger, home), mark="one", episodes=("a",))
    for number in range(60):
        ledger.append_audit(actor="human", action="test", subject=str(number), after={"text": "x" * 1000})
    ledger.close()
    whole = path.read_bytes()
    damaged = len(whole) // 8, len(whole) * 7 // 8
    path.write_bytes(whole[: damaged[0]] + b"\xff" * (damaged[1] - damaged[0]) + whole[damaged[1] :])
    for command in (
        ["audit", "verify"], ["audit", "show", "--limit", "1000"], ["audit", "show", "--about", name],
        ["explain", name], ["reset", "--reason", "over", "--by", "bob"],
    ):  # fmt: skip
        assert run([*command, "--config", str(config_path)]) == 1, command
        told = capsys.readouterr().err
        assert told.startswith("error: "), told
        assert told.count("\n") == 1, told
        assert f"{path} " in told, told
        assert "from a backup" in told, told
    assert Latch.open(home / "safety" / "latch").state().mode == "stopped"


@pytest.mark.parametrize(
    ("problem", "words"),
    [(StoreFull("no room: free disk space"), "free disk space"), (sqlite3.OperationalError("disk I/O error"), "I/O")],
)
def test_a_full_disk_is_one_line_and_never_a_trace(
    problem: Exception, words: str, config_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def full(_: Path) -> None:
        raise problem

    monkeypatch.setattr("cluster.config.load_config", full)
    assert run(["watchdog", "--config", str(config_path)]) == 1
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def _alter_second_audit_row(path: Path) -> None:
    with sqlite3.connect(path) as database:
        for (trigger,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {trigger}")
        assert database.execute("UPDATE audit SET subject = 'other' WHERE seq = 2").rowcount == 1
