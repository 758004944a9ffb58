"""The stop latch, with real second processes."""

import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autonomous.safety.latch import Latch, LearningStopped, Permit
from autonomous.safety.latch_state import MODES, SCOPES, Scope

ROOT = Path(__file__).parents[3]
WATCHER = """
import sys
from pathlib import Path
from autonomous.safety.latch import Latch, LearningStopped
latch = Latch.open(Path(sys.argv[1]))
permit = latch.permit("step")
print("ready", flush=True)
for _ in sys.stdin:
    try:
        permit.check()
        print("permitted", flush=True)
    except LearningStopped as error:
        print(error, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Latch.create(tmp_path / "safety" / "latch", clock=lambda: 1_700_000_000.0)
    return tmp_path / "safety" / "latch"


def _run(code: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def watcher(path: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", WATCHER, str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def _ask(watcher: "subprocess.Popen[str]") -> str:
    assert watcher.stdin is not None
    assert watcher.stdout is not None
    watcher.stdin.write("?\n")
    watcher.stdin.flush()
    return watcher.stdout.readline()


def test_a_new_latch_is_armed_and_permits(path: Path) -> None:
    latch = Latch.open(path)
    assert (latch.state().mode, latch.state().epoch) == ("armed", 1)
    latch.permit("optimizer step").check()


def test_a_missing_latch_is_a_stop(tmp_path: Path) -> None:
    latch = Latch.open(tmp_path / "latch")
    assert latch.state().mode == "stopped"
    with pytest.raises(LearningStopped, match="autonomous reset"):
        latch.permit("memory write")


def test_the_refusal_names_who_why_when_and_the_way_back(path: Path) -> None:
    latch = Latch.open(path, clock=lambda: 1_700_000_000.0)
    latch.stop(by="ada", reason="odd answers")
    with pytest.raises(LearningStopped) as refusal:
        latch.permit("promotion")
    for part in ("promotion", "ada", "odd answers", "2023-11-14", "22:13:20", "autonomous reset"):
        assert part in str(refusal.value)


def test_a_refusal_can_cross_process_borders(path: Path) -> None:
    Latch.open(path).stop(by="ada", reason="odd")
    with pytest.raises(LearningStopped) as refusal:
        Latch.open(path).permit("x")
    assert str(pickle.loads(pickle.dumps(refusal.value))) == str(refusal.value)


def test_a_permit_from_before_a_stop_is_refused_after_the_reset_too(path: Path) -> None:
    latch = Latch.open(path)
    permit = latch.permit("optimizer step")
    latch.stop(by="ada", reason="drill")
    with pytest.raises(LearningStopped):
        permit.check()
    latch.reset(by="ada", reason="drill over")
    with pytest.raises(LearningStopped):
        permit.check()
    latch.permit("optimizer step").check()


@pytest.mark.parametrize("change", ["stop", "pause"])
def test_the_epoch_rises_with_each_change(path: Path, change: str) -> None:
    latch = Latch.open(path)
    epochs = [latch.state().epoch]
    getattr(latch, change)(by="a", reason="b")
    epochs.append(latch.state().epoch)
    epochs.append(latch.reset(by="a", reason="b").epoch)
    assert epochs == [1, 2, 3]


def test_a_pause_refuses_permits_and_does_not_weaken_a_stop(path: Path) -> None:
    latch = Latch.open(path)
    latch.pause(by="ada", reason="lunch")
    with pytest.raises(LearningStopped, match="paused"):
        latch.permit("step")
    latch.stop(by="bob", reason="fire")
    latch.pause(by="ada", reason="lunch")
    assert (latch.state().mode, latch.state().by) == ("stopped", "bob")


changes = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["pause", "stop", "kill"]), st.sampled_from(SCOPES)),
        st.just(("reset", "all")),
        st.tuples(st.just("permit"), st.sampled_from(SCOPES)),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(changes)
def test_a_permit_is_good_until_a_stop_or_reset_that_concerns_its_scope(steps: list[tuple[str, Scope]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        latch = Latch.create(Path(folder) / "latch")
        hardness, width = 0, -1  # of the stop that holds
        permits: list[tuple[Permit, list[bool]]] = []
        for action, scope in steps:
            place = SCOPES.index(scope)
            if action == "permit":
                if place <= width:
                    with pytest.raises(LearningStopped):
                        latch.permit("x", within=scope)
                else:
                    permits.append((latch.permit("x", within=scope), [True]))
                continue
            if action == "reset":
                latch.reset(by="a", reason="b")
                hardness, width = 0, -1
            else:
                getattr(latch, action)(by="a", reason="b", scope=scope)
                hardness, width = max(hardness, ["pause", "stop", "kill"].index(action) + 1), max(width, place)
            for permit, is_good in permits:
                is_good[0] &= SCOPES.index(permit.within) > width
            state = Latch.open(latch.path).state()
            assert MODES.index(state.mode) == hardness
            assert width == (-1 if state.mode == "armed" else SCOPES.index(state.scope))
        for permit, is_good in permits:
            if is_good[0]:
                permit.check()
            else:
                with pytest.raises(LearningStopped):
                    permit.check()


@pytest.mark.parametrize(("by", "reason", "field"), [("", "x", "by"), ("x", "  ", "reason")])
def test_a_reset_needs_a_name_and_a_reason(path: Path, by: str, reason: str, field: str) -> None:
    latch = Latch.open(path)
    latch.stop(by="ada", reason="drill")
    with pytest.raises(ValueError, match=f"{field} is empty"):
        latch.reset(by=by, reason=reason)
    assert latch.state().mode == "stopped"


def test_a_stop_in_one_process_is_seen_by_another_at_once(path: Path, watcher: "subprocess.Popen[str]") -> None:
    assert _ask(watcher) == "permitted\n"
    Latch.open(path).stop(by="ada", reason="drill")
    assert "stopped by ada" in _ask(watcher)
    Latch.open(path).reset(by="ada", reason="over")
    assert "permitted" not in _ask(watcher)


def test_deleting_the_file_stops_a_process_that_has_it_open(path: Path, watcher: "subprocess.Popen[str]") -> None:
    path.unlink()
    assert "counts as a stop" in _ask(watcher)


def test_a_stop_survives_the_death_of_the_process_that_pulled_it(path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from autonomous.safety.latch import Latch\n"
        "Latch.open(Path(sys.argv[1])).stop(by='dying', reason='last act')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert _run(code, path).returncode == -9
    assert (Latch.open(path).state().mode, Latch.open(path).state().by) == ("stopped", "dying")


def test_a_lock_holder_that_is_killed_blocks_nobody(path: Path) -> None:
    code = "import fcntl, os, sys, signal\nfd = os.open(sys.argv[1], os.O_RDWR)\nfcntl.flock(fd, fcntl.LOCK_EX)\n"
    assert _run(code + "os.kill(os.getpid(), signal.SIGKILL)", path).returncode == -9
    assert Latch.open(path).stop(by="ada", reason="drill").mode == "stopped"


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00" * 4096, b'{"format": 99}'.ljust(4096), b"[1]".ljust(4096)])
def test_a_damaged_file_is_a_stop_that_a_reset_repairs(path: Path, damage: bytes) -> None:
    latch = Latch.open(path)
    permit = latch.permit("step")
    path.write_bytes(damage)
    assert latch.state().mode == "stopped"
    assert Latch.open(path).reset(by="ada", reason="repaired").mode == "armed"
    assert Latch.open(path).state().mode == "armed"
    with pytest.raises(LearningStopped):
        permit.check()


def test_the_file_has_one_size_whatever_the_reason(path: Path) -> None:
    for reason in ("x", '\x00"\\' * 3000, "\U0001f600" * 3000, "\ud800"):
        Latch.open(path).stop(by=reason, reason=reason)
        assert path.stat().st_size == 4096
        assert Latch.open(path).state().mode == "stopped"
        Latch.open(path).reset(by="a", reason="b")


def test_a_stop_succeeds_when_no_file_may_grow(path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from autonomous.safety.latch import Latch\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: Path(sys.argv[1] + '.log').write_bytes(b'x' * 5000)\n"
        "except OSError: print('full')\n"
        "print(Latch.open(Path(sys.argv[1])).stop(by='ada', reason='disk').mode)"
    )
    assert _run(code, path).stdout.split() == ["full", "stopped"]
    assert Latch.open(path).state().reason == "disk"


def test_eight_processes_that_stop_and_reset_lose_no_epoch(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from autonomous.safety.latch import Latch, LatchChanged\n"
        "latch = Latch.open(Path(sys.argv[1]))\n"
        "for _ in range(5):\n"
        "    latch.stop(by='a', reason='b')\n"
        "    while latch.state().mode != 'armed':\n"
        "        try: latch.reset(by='a', reason='b')\n"
        "        except LatchChanged: pass\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(8)]
    assert [process.wait(30) for process in processes] == [0] * 8
    state = Latch.open(path).state()
    assert state.mode == "armed"
    assert state.epoch % 2 == 1  # every change was one step: armed epochs stay odd
    assert state.epoch > 1


def test_asking_the_latch_costs_microseconds(path: Path) -> None:
    latch = Latch.open(path)
    latch.state()
    start = time.process_time()
    for _ in range(1000):
        latch.state()
    assert (time.process_time() - start) / 1000 < 500e-6
