"""Code search: what it finds, and that nothing leads it out of its roots or keeps it busy."""

import os
import time
from pathlib import Path

import pytest

from autonomous.tools.code_search import CodeSearch
from autonomous.tools.config import CodeConfig
from autonomous.tools.tool import ToolError, ToolResult
from memory.store import no_guard
from memory.types import Episode, EpisodeFilter, RecallHit

MODULE = '''"""A module."""
import os

LIMIT = 3

class Pump:
    def start(self, speed):
        return speed

    async def stop(self):
        pass

if LIMIT:
    def start():
        """def Pump is not here"""
'''


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "pump.py").write_text(MODULE)
    (folder / "notes.txt").write_text("the pump starts at speed 3\nclass Pump in a text\n")
    (tmp_path / "secret.txt").write_text("speed of the secret pump\n")
    return folder


def _search(root: Path, **arguments: object) -> ToolResult:
    search = CodeSearch(CodeConfig(roots=(root,)), retrieve=None)
    return search.call(arguments, timeout_s=10, guard=no_guard)


def test_lines_are_found_by_text_and_pattern_with_path_and_number(root: Path) -> None:
    found = _search(root, query="speed")
    assert found.text.splitlines() == [
        "project/notes.txt:1: the pump starts at speed 3",
        "project/src/pump.py:7: def start(self, speed):",
        "project/src/pump.py:8: return speed",
    ]
    assert found.citations[1].location == "project/src/pump.py:7"
    assert _search(root, query=r"^\s*async\s+def", kind="regex").text == "project/src/pump.py:10: async def stop(self):"
    assert "notes" not in _search(root, query="speed", path="*.py").text
    nothing = _search(root, query="turbine")
    assert (nothing.is_empty, nothing.text) == (True, "Nothing was found.")


def test_symbols_are_found_where_they_are_bound_and_not_where_they_are_mentioned(root: Path) -> None:
    assert _search(root, query="Pump", kind="symbol").text == "project/src/pump.py:6: class Pump:"
    both = _search(root, query="start()", kind="symbol").text.splitlines()
    assert [line.split(":")[1] for line in both] == ["7", "14"]
    assert _search(root, query="Pump.start", kind="symbol").text == "project/src/pump.py:7: def start(self, speed):"
    assert _search(root, query="LIMIT", kind="symbol").text == "project/src/pump.py:4: LIMIT = 3"


@pytest.mark.parametrize("path", ["../secret.txt", "project/../secret.txt", "/etc/*", "*/../*", "../*"])
def test_a_path_that_leads_outside_matches_nothing(root: Path, path: str) -> None:
    assert _search(root, query="secret", path=path).is_empty
    assert _search(root, query="root", path=path).is_empty


def test_links_pipes_devices_binary_large_and_hidden_files_are_passed_over(root: Path) -> None:
    (root / "link.txt").symlink_to(root.parent / "secret.txt")
    (root / "linked").symlink_to(root.parent, target_is_directory=True)
    os.mkfifo(root / "pipe.txt")  # to open it would wait for ever
    (root / "binary.txt").write_bytes(b"secret\x00")
    (root / "large.txt").write_text("secret" * 300_000)
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("secret\n")
    (root / ".env").write_text("secret\n")
    assert _search(root, query="secret").is_empty
    (root / "found.txt").write_text("secret\n")
    assert _search(root, query="secret").text == "project/found.txt:1: secret"


def test_a_file_that_is_exchanged_for_a_link_between_listing_and_opening_is_not_followed(root: Path) -> None:
    def exchange() -> None:
        (root / "src" / "pump.py").unlink(missing_ok=True)
        (root / "src" / "pump.py").symlink_to(root.parent / "secret.txt")

    search = CodeSearch(CodeConfig(roots=(root,)), retrieve=None)
    assert "project/src" not in search.call({"query": "speed"}, timeout_s=10, guard=exchange).text


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|a)*b", r"(.*)*x", r"(?:a?){50}a{50}$", r"^(\w+\s?)*$"])
def test_a_pattern_that_backtracks_without_end_is_ended_in_its_time(root: Path, pattern: str) -> None:
    (root / "trap.txt").write_text("a" * 5000 + "!\n")
    search = CodeSearch(CodeConfig(roots=(root,), seconds=0.3), retrieve=None)
    start = time.monotonic()
    result = search.call({"query": pattern, "kind": "regex", "path": "*trap*"}, timeout_s=10, guard=no_guard)
    assert time.monotonic() - start < 3
    assert result.details["is_complete"] or "time was up" in result.text


def test_one_of_these_patterns_does_run_into_its_limit(root: Path) -> None:
    (root / "trap.txt").write_text("a" * 5000 + "!\n")
    search = CodeSearch(CodeConfig(roots=(root,), seconds=0.3), retrieve=None)
    result = search.call({"query": r"(a+)+$", "kind": "regex"}, timeout_s=10, guard=no_guard)
    assert not result.details["is_complete"]


@pytest.mark.parametrize("pattern", ["(", "[a", "*a", "(?P<x", "(" * 200])
def test_a_pattern_that_is_none_is_refused_with_its_reason(root: Path, pattern: str) -> None:
    with pytest.raises(ToolError, match="is no regular expression") as refused:
        _search(root, query=pattern, kind="regex")
    assert refused.value.param == "query"


def test_python_files_that_cannot_be_parsed_are_passed_over(root: Path) -> None:
    for number, text in enumerate(("def Pump(:", "(" * 10_000 + "Pump", "-" * 50_000 + "Pump", "Pump = '\udc80'")):
        (root / f"bad{number}.py").write_text(text, errors="surrogateescape")
    assert _search(root, query="Pump", kind="symbol").text.splitlines()[-1] == "project/src/pump.py:6: class Pump:"


def test_results_files_and_depth_are_bounded(root: Path) -> None:
    (root / "many.txt").write_text("needle\n" * 100)
    few = CodeSearch(CodeConfig(roots=(root,), num_results=5), retrieve=None).call(
        {"query": "needle"}, timeout_s=9, guard=no_guard
    )
    assert (few.details["num_matches"], few.details["is_complete"]) == (5, False)
    one = CodeSearch(CodeConfig(roots=(root,), num_files=1), retrieve=None).call(
        {"query": "speed"}, timeout_s=9, guard=no_guard
    )
    assert "The first 1 files were searched" in one.text
    deep = root
    for _ in range(60):
        deep = deep / "d"
        deep.mkdir()
        (deep / "f.txt").write_text("bottom\n")
    assert _search(root, query="bottom").details["num_matches"] == 50


def test_a_stop_ends_a_search_between_files(root: Path) -> None:
    def stopped() -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        CodeSearch(CodeConfig(roots=(root,)), retrieve=None).call({"query": "x"}, timeout_s=9, guard=stopped)


def test_stored_passages_are_searched_too_and_cited_by_their_episode() -> None:
    text = "Some words.\n    def start_pump(speed):\n        return speed\n"
    hit = RecallHit(Episode("e1", "d1", "repo", "pump.py", text, 0, 0.0), 1.0, 0.5)

    def retrieve(query: str, *, k: int, min_cosine: float, where: EpisodeFilter) -> list[RecallHit]:
        del query, k, min_cosine, where
        return [hit]

    search = CodeSearch(CodeConfig(), retrieve=retrieve)
    found = search.call({"query": "start_pump", "kind": "symbol"}, timeout_s=9, guard=no_guard)
    assert found.text == "repo/pump.py:2: def start_pump(speed):"
    assert (found.citations[0].location, found.citations[0].source) == ("e1", "repo")
    assert search.call({"query": "speed", "path": "other/*"}, timeout_s=9, guard=no_guard).is_empty


def test_roots_have_to_be_absolute() -> None:
    with pytest.raises(ValueError, match="is relative"):
        CodeConfig(roots=(Path("code"),))
