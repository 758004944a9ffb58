"""The command line as a person uses it: what it prints, and how it ends."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cluster import logs
from cluster.bench import FOLDER
from cluster.cli import app, run
from cluster.config import ConfigError, load_config

NEED_A_SYSTEM = (
    ["down"], ["status"], ["ask", "hello?"], ["learn"], ["versions"], ["approve", "ver-1"],
    ["rollback", "--reason", "x"], ["unlock", "--reason", "x"], ["audit", "verify"], ["reject", "ver-1", "--reason", "x"],
    ["release", "ver-1", "--reason", "x"], ["explain", "ver-1"], ["forensics", "ver-1"],
)  # fmt: skip

Captured = pytest.CaptureFixture[str]


def _json(capsys: Captured) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def _commands(group: Any, *path: str) -> Iterator[tuple[str, Any]]:
    """Every command of the app by its words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, *path, name)
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Examples:" in shown
    assert f"autonomous {command}" in shown
    assert "--json" in shown
    has_config = any("--config" in parameter.opts for parameter in COMMANDS[command].params)
    assert ("--config" in shown) is has_config
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("arguments", NEED_A_SYSTEM, ids=lambda arguments: arguments[0])
def test_without_a_running_system_a_command_says_how_to_start_it(
    arguments: list[str], config_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config_path.parent)
    assert run([*arguments, "--config", "config.toml"]) == 1
    shown = capsys.readouterr()
    assert shown.err == "error: The system is not running. Start it with: autonomous up --config config.toml\n"
    assert shown.out == ""


def test_with_json_an_error_is_one_object_on_stdout(config_path: Path, capsys: Captured) -> None:
    assert run(["status", "--json", "--config", str(config_path)]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"]["message"].startswith("The system is not running.")
    assert shown.err == ""


def test_wrong_usage_is_one_line_that_names_the_help_and_exits_with_2(capsys: Captured) -> None:
    assert run(["ask"]) == 2
    assert run(["learn", "--fast"]) == 2
    assert run(["nonsense"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") and "--help" in line for line in lines)


def test_a_configuration_that_is_not_there_is_one_line(tmp_path: Path, capsys: Captured) -> None:
    assert run(["status", "--config", str(tmp_path / "gone.toml")]) == 1
    assert "no configuration at" in capsys.readouterr().err


def test_a_second_up_is_refused_with_the_address_of_the_first(system: Any, capsys: Captured) -> None:
    assert run(["up", "--config", str(system.config_path)]) == 1
    assert system.url in capsys.readouterr().err


def test_ask_prints_the_answer_its_sources_and_its_times(system: Any, documents: Path, capsys: Captured) -> None:
    config = ["--config", str(system.config_path)]
    assert run(["add", str(documents), *config]) == 0
    capsys.readouterr()
    assert run(["ask", "What does Brindle require?", *config]) == 0
    shown = capsys.readouterr().out
    assert "brindle.txt" in shown
    assert "version ver-base" in shown
    assert "retrieval" in shown
    assert "\x1b" not in shown


def test_ask_streams_the_same_text_that_json_holds(system: Any, capsys: Captured) -> None:
    config = ["--config", str(system.config_path)]
    assert run(["ask", "hello there", "--stream", "--no-retrieval", *config]) == 0
    streamed = capsys.readouterr().out
    assert run(["ask", "hello there", "--json", "--no-retrieval", *config]) == 0
    reply = _json(capsys)
    assert streamed.startswith(reply["answer"])
    assert reply["sources"] == []
    assert set(reply) == {"id", "question", "answer", "version", "sources", "timings", "usage", "seconds"}


def test_an_unknown_model_shows_the_servers_sentence(system: Any, capsys: Captured) -> None:
    assert run(["ask", "hello", "--model", "v9", "--config", str(system.config_path)]) == 1
    assert "v9" in capsys.readouterr().err


def test_add_stores_a_folder_and_shows_each_refused_file_with_reason_and_fix(
    system: Any, documents: Path, capsys: Captured
) -> None:
    config = ["--config", str(system.config_path)]
    assert run(["add", str(documents), *config]) == 0
    shown = capsys.readouterr().out
    assert "3 documents stored" in shown
    assert "picture.bin" in shown
    assert "binary" in shown
    assert run(["add", str(documents), "--json", *config]) == 0
    again = _json(capsys)
    assert (again["num_stored"], again["num_repeated"]) == (0, 3)


def test_a_file_alone_is_the_same_document_as_in_its_folder(system: Any, documents: Path, capsys: Captured) -> None:
    config = ["--json", "--config", str(system.config_path)]
    assert run(["add", str(documents / "brindle.txt"), *config]) == 0
    assert _json(capsys)["num_stored"] == 1
    assert run(["add", str(documents), *config]) == 0
    assert _json(capsys)["num_repeated"] == 1


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "is empty"), (b"\x00\x01\x02", "binary"), (b"x" * (17 << 20), "above the limit")]
)
def test_a_file_that_cannot_be_read_is_one_line_with_reason_and_fix(
    content: bytes, reason: str, system: Any, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "file.txt").write_bytes(content)
    assert run(["add", str(tmp_path / "file.txt"), "--config", str(system.config_path)]) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert len(error.splitlines()) == 1


def test_a_folder_without_a_readable_document_names_what_was_wrong(
    system: Any, tmp_path: Path, capsys: Captured
) -> None:
    folder = tmp_path / "binaries"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"\x00\x01")
    assert run(["add", str(folder), "--config", str(system.config_path)]) == 1
    error = capsys.readouterr().err
    assert "no readable document" in error
    assert "a.bin is binary" in error


def test_a_document_that_is_not_utf8_keeps_its_words(system: Any, tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "cafe.txt").write_bytes("Brindle is a café in Málaga, öffnet früh.".encode("latin-1"))
    (folder / "wide.txt").write_bytes("Kestwick is a café in Málaga.".encode("utf-16"))
    config = ["--config", str(system.config_path)]
    assert run(["add", str(folder), "--json", *config]) == 0
    assert _json(capsys)["num_stored"] == 2
    texts = [hit.episode.text for hit in system.parts.episodic.recall("café", k=5)]
    assert sorted(text.split()[0] for text in texts if "café in Málaga" in text) == ["Brindle", "Kestwick"]


def test_add_comes_back_when_the_server_asks_to_try_later(
    system: Any, documents: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("cluster.feed.time.sleep", waits.append)
    system.parts.num_refusals = 2
    assert run(["add", str(documents), "--json", "--config", str(system.config_path)]) == 0
    assert _json(capsys)["num_stored"] == 3
    assert waits == [1.0, 1.0]


def test_learn_shows_the_gates_and_says_that_the_version_serves(system: Any, documents: Path, capsys: Captured) -> None:
    config = ["--config", str(system.config_path)]
    run(["add", str(documents), *config])
    assert run(["learn", *config]) == 0
    shown = capsys.readouterr().out
    assert "evaluating" in shown
    assert "G3 control" in shown
    assert "Version ver-new passed all gates and serves now (v2)." in shown


@pytest.mark.parametrize(("outcome", "status"), [("QUARANTINED", 3), ("failed", 1), ("AWAITING_APPROVAL", 0)])
def test_the_exit_status_of_learn_tells_how_it_ended(
    outcome: str, status: int, system: Any, documents: Path, capsys: Captured
) -> None:
    config = ["--config", str(system.config_path)]
    run(["add", str(documents), *config])
    system.parts.outcome = outcome
    capsys.readouterr()
    assert run(["learn", "--json", *config]) == status
    assert _json(capsys)["phase"] == ("failed" if outcome == "failed" else "done")


def test_learn_without_anything_new_shows_the_servers_sentence(system: Any, capsys: Captured) -> None:
    assert run(["learn", "--config", str(system.config_path)]) == 1
    assert "add documents first" in capsys.readouterr().err


def test_learn_without_waiting_gives_the_run_id(system: Any, documents: Path, capsys: Captured) -> None:
    config = ["--config", str(system.config_path)]
    run(["add", str(documents), *config])
    capsys.readouterr()
    assert run(["learn", "--no-wait", "--json", *config]) == 0
    assert _json(capsys)["run_id"].startswith("run-")


def test_a_waiting_version_is_approved_and_rolled_back(system: Any, documents: Path, capsys: Captured) -> None:
    config = ["--config", str(system.config_path)]
    run(["add", str(documents), *config])
    system.parts.outcome = "AWAITING_APPROVAL"
    run(["learn", *config])
    assert "autonomous approve ver-new" in capsys.readouterr().out
    assert run(["approve", "ver-new", *config]) == 0
    assert "ver-new serves now" in capsys.readouterr().out
    assert run(["rollback", "--reason", "test", *config]) == 0
    assert "ver-base serves again" in capsys.readouterr().out
    assert run(["rollback", "--reason", "test", *config]) == 1
    assert "nothing to roll back to" in capsys.readouterr().err


def test_a_version_is_evaluated_and_its_comparisons_are_shown(
    system: Any, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.cli_evaluate.POLL_S", 0.001)
    config = ["--config", str(system.config_path)]
    assert run(["evaluate", *config]) == 0
    told = capsys.readouterr().out
    assert "20 gained, 0 lost of 20 items" in told
    assert f"Page: {system.url}/v1/versions/ver-base/report?format=html" in told
    assert run(["evaluate", "ver-new", "--no-wait", "--json", *config]) == 0
    assert _json(capsys)["is_running"]
    system.parts.reports.error = "LearningStopped: a person stopped it"
    assert run(["evaluate", "ver-new", *config]) == 1
    assert "is being benchmarked" in capsys.readouterr().err
    system.parts.reports.running = None
    assert run(["evaluate", "ver-new", *config]) == 1
    assert "failed: LearningStopped: a person stopped it" in capsys.readouterr().err
    assert run(["evaluate", "v3", *config]) == 1
    assert "there is no v3 now" in capsys.readouterr().err


@pytest.mark.parametrize("has_older_report", [False, True])
def test_an_evaluation_whose_evaluator_was_killed_fails_and_says_what_to_do(
    has_older_report: bool, system: Any, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.cli_evaluate.POLL_S", 0.001)
    config = ["--config", str(system.config_path)]
    if has_older_report:
        assert run(["evaluate", *config]) == 0
    system.parts.reports.is_killed = True
    assert run(["evaluate", *config]) == 1
    told = capsys.readouterr().err
    assert "ended without a report" in told
    assert "autonomous evaluate ver-base" in told
    system.parts.reports.is_killed = False
    assert run(["evaluate", *config]) == 0


def test_versions_shows_which_is_v2_and_one_version_with_its_lineage(system: Any, capsys: Captured) -> None:
    config = ["--config", str(system.config_path)]
    assert run(["versions", *config]) == 0
    assert "v1, v2" in capsys.readouterr().out
    assert run(["versions", "--id", "ver-base", *config]) == 0
    assert "lineage" in capsys.readouterr().out
    assert run(["versions", "--id", "ver-nothing", *config]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_status_names_the_version_the_memory_and_the_latch(system: Any, documents: Path, capsys: Captured) -> None:
    config = ["--config", str(system.config_path)]
    run(["add", str(documents), *config])
    capsys.readouterr()
    assert run(["status", *config]) == 0
    shown = capsys.readouterr().out
    assert "ver-base" in shown
    assert "3 documents" in shown
    assert "not set" in shown
    assert run(["status", "--json", *config]) == 0
    assert _json(capsys)["url"] == system.url


def _write_logs(home: Path) -> None:
    folder = home / "logs"
    folder.mkdir(parents=True)
    (folder / "ray.log").write_text("".join(f"line {n}\n" for n in range(100)), encoding="utf-8")
    (folder / "worker-0a-01000000-77.err").write_text(
        ":job_id:01\n:actor_name:EpisodicShell\nhello\n", encoding="utf-8"
    )


def test_logs_are_listed_by_part_and_shown_from_their_end(config_path: Path, capsys: Captured) -> None:
    _write_logs(load_config(config_path).home)
    config = ["--config", str(config_path)]
    assert run(["logs", *config]) == 0
    assert "EpisodicShell" in capsys.readouterr().out
    assert run(["logs", "episodic", *config]) == 0
    assert "hello" in capsys.readouterr().out
    assert run(["logs", "ray", "-n", "2", *config]) == 0
    assert capsys.readouterr().out == "line 98\nline 99\n"
    assert run(["logs", "nothing", *config]) == 1
    assert "there are: EpisodicShell, ray" in capsys.readouterr().err


def test_following_a_log_gives_whole_new_lines_also_after_it_was_rotated(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("old\n", encoding="utf-8")
    writes = iter(
        [lambda: path.open("a").write("one\ntw"), lambda: path.open("a").write("o\n"), lambda: path.write_text("new\n")]
    )

    def go_on() -> bool:
        write = next(writes, None)
        return write is not None and write() > 0

    assert [line for _, line in logs.follow([path], is_wanted=go_on)] == ["one", "two", "new"]


def test_the_end_of_a_large_log_is_read_without_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "big.log"
    path.write_text("".join(f"{n} {'x' * 200}\n" for n in range(5000)), encoding="utf-8")
    assert [line.split()[0] for line in logs.last_lines(path, 3)] == ["4997", "4998", "4999"]
    assert logs.last_lines(path, 0) == []


def test_an_unknown_benchmark_lists_the_known_ones(capsys: Captured) -> None:
    assert run(["bench", "nothing-like-it"]) == 1
    names = capsys.readouterr().err.strip().partition("there are: ")[2].split(", ")
    assert names == sorted(path.stem for path in FOLDER.glob("*.py"))


def test_an_error_of_the_configuration_is_a_value_error_for_the_user() -> None:
    assert issubclass(ConfigError, ValueError)
