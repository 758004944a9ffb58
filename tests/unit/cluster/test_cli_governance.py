"""The command line where two people decide: exit status 4 until the second agrees; explanations without a running system."""

import json
from pathlib import Path
from typing import Any

import pytest

from autonomous.config import AutonomousConfig
from autonomous.safety.latch import Latch
from autonomous.versions.ledger import VersionLedger
from cluster.cli import run
from cluster.cli_common import WAITS
from cluster.config import load_config
from tests.unit.autonomous.ledger_life import make_genesis, make_production

Captured = pytest.CaptureFixture[str]


def _json(capsys: Captured) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


@pytest.fixture
def strict(tmp_path: Path) -> list[str]:
    """The option that names a configuration with two people, whose stopped system is down."""
    path = tmp_path / "strict.toml"
    path.write_text(f'home = "{tmp_path / "home"}"\n[agent.safety]\ntwo_people = true\n', encoding="utf-8")
    home = load_config(path).home
    Latch.create(home / "safety" / "latch").stop(by="eve", reason="odd")
    return ["--config", str(path)]


def mode(strict: list[str]) -> str:
    return Latch.open(load_config(Path(strict[1])).home / "safety" / "latch").state().mode


def test_a_reset_waits_for_a_second_person_while_the_system_is_down(strict: list[str], capsys: Captured) -> None:
    assert run(["reset", "--reason", "over", "--by", "ada", *strict]) == WAITS
    assert "second person" in capsys.readouterr().out
    assert run(["reset", "--reason", "over", "--by", "ADA", *strict]) == 1
    assert "Another person" in capsys.readouterr().err
    assert run(["reset", "--reason", "over", "--by", "agent", *strict]) == 1
    assert mode(strict) == "stopped"
    assert run(["reset", "--reason", "I agree", "--by", "bob", "--json", *strict]) == 0
    assert mode(strict) == "armed"


def test_a_reset_that_waits_can_be_taken_back(strict: list[str], capsys: Captured) -> None:
    assert run(["reset", "--withdraw", "--reason", "x", "--by", "ada", *strict]) == 1
    assert "nothing to withdraw" in capsys.readouterr().err
    assert run(["reset", "--reason", "over", "--by", "ada", "--json", *strict]) == WAITS
    assert _json(capsys)["waiting"]["by"] == "ada"
    assert run(["reset", "--withdraw", "--reason", "x", "--by", "bob", *strict]) == 0
    assert run(["reset", "--reason", "over", "--by", "bob", *strict]) == WAITS


def test_a_stop_on_the_command_line_voids_what_waits(strict: list[str]) -> None:
    assert run(["reset", "--reason", "over", "--by", "ada", *strict]) == WAITS
    assert run(["emergency-stop", "--reason", "again", "--by", "eve", *strict]) == 0
    assert run(["reset", "--reason", "over", "--by", "bob", *strict]) == WAITS
    assert mode(strict) == "stopped"


def test_one_person_does_not_get_round_the_rule_with_another_configuration(
    strict: list[str], config_path: Path, capsys: Captured
) -> None:
    home = load_config(config_path).home
    resolved = {"model_folder": "m", "agent": AutonomousConfig().model_dump(mode="json")}
    (home / "resolved-config.json").write_text(json.dumps(resolved), encoding="utf-8")
    assert run(["reset", "--reason", "over", "--by", "ada", "--config", str(config_path)]) == WAITS
    (home / "resolved-config.json").write_text("{", encoding="utf-8")
    assert run(["reset", "--reason", "over", "--by", "ada", "--config", str(config_path)]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert mode(strict) == "stopped"


def test_explain_and_audit_show_work_when_the_system_is_down(config_path: Path, capsys: Captured) -> None:
    home = load_config(config_path).home
    home.mkdir()
    ledger = VersionLedger(home / "ledger.sqlite")
    name = make_production(ledger, make_genesis(ledger, home), mark="one", episodes=("a",))
    ledger.close()
    config = ["--config", str(config_path)]
    before = (home / "ledger.sqlite").read_bytes()
    assert run(["explain", name, *config]) == 0
    assert "It serves (V2)" in capsys.readouterr().out
    assert run(["explain", name, "--json", *config]) == 0
    assert _json(capsys)["lineage"][-1]["version"] == name
    assert run(["explain", "ver-typo", *config]) == 1
    assert "no version or run 'ver-typo'" in capsys.readouterr().err
    assert run(["audit", "show", "--about", name, "--json", *config]) == 0
    assert _json(capsys)["rows"][0]["action"] == "version.promote"
    assert run(["audit", "show", "--limit", "3", *config]) == 0
    assert "version.supersede" in capsys.readouterr().out
    assert run(["audit", "verify", *config]) == 0
    assert (home / "ledger.sqlite").read_bytes() == before


def test_an_approval_shows_and_sends_the_report(system: Any, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    decide, tell = system.parts.approve, system.parts.version

    async def approve(version_id: str, **signed: Any) -> None:
        sent.append(signed["report_sha256"])
        await decide(version_id, **signed)

    async def version(version_id: str) -> Any:
        return {**await tell(version_id), "report_sha256": "a" * 64, "proposed_by": "ada"}

    monkeypatch.setattr(system.parts, "approve", approve)
    monkeypatch.setattr(system.parts, "version", version)
    system.parts.state = "AWAITING_APPROVAL"
    system.parts.batch = system.parts._next()
    config = ["--config", str(system.config_path)]
    assert run(["approve", "ver-new", "--report", "b" * 64, "--by", "bob", *config]) == 0
    shown = capsys.readouterr().out
    assert ("a" * 64 in shown, "Asked for by ada" in shown) == (True, True)
    system.parts.state = "AWAITING_APPROVAL"
    assert run(["approve", "ver-new", "--by", "bob", "--json", *config]) == 0
    assert sent == ["b" * 64, "a" * 64]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * 200_001], ids=["no text", "too long"])
def test_evidence_that_cannot_be_kept_is_refused_with_the_reason(
    system: Any, tmp_path: Path, capsys: Captured, content: bytes
) -> None:
    path = tmp_path / "evidence.bin"
    path.write_bytes(content)
    release = ["release", "ver-new", "--evidence", str(path), "--reason", "x", "--by", "bob"]
    assert run([*release, "--config", str(system.config_path)]) == 1
    assert str(path.name) in capsys.readouterr().err


def test_a_release_sends_the_evidence_of_a_file_or_a_sentence_and_waits_with_status_4(
    system: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    sent: list[Any] = []

    async def release(version_id: str, *, by: str, reason: str, evidence: Any) -> Any:
        sent.append(evidence)
        return {"by": by, "reason": reason, "at": 1.0, "until": 3601.0, "waits_for": "a second person"}

    monkeypatch.setattr(system.parts, "release", release, raising=False)
    (tmp_path / "found.md").write_text("the probe was wrong", encoding="utf-8")
    for evidence in (str(tmp_path / "found.md"), "It was the probe. " * 100):
        command = ["release", "ver-new", "--evidence", evidence, "--reason", "x", "--by", "bob"]
        assert run([*command, "--config", str(system.config_path)]) == WAITS
    assert sent == [{"text": "the probe was wrong", "name": "found.md"}, {"text": "It was the probe. " * 100}]
    assert "second person" in capsys.readouterr().out
