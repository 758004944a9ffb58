"""The stop latch when files are put back, processes freeze, or writing is refused."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from autonomous.safety.latch import Latch, LatchChanged, LearningStopped
from autonomous.safety.latch_file import LOCK_TIMEOUT_S, write_block

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Latch.create(tmp_path / "latch")
    return tmp_path / "latch"


@pytest.fixture
def frozen_holder(path: Path) -> Iterator[None]:
    code = (
        "import fcntl, os, sys\nfcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX)\nprint(flush=True)\ninput()"
    )
    command = [sys.executable, "-c", code, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGSTOP)
    yield
    process.kill()
    process.communicate()


@pytest.mark.usefixtures("frozen_holder")
def test_a_stop_does_not_wait_for_a_frozen_process_that_holds_the_lock(path: Path) -> None:
    assert Latch.open(path).stop(by="ada", reason="drill").mode == "stopped"
    with path.open("rb") as file, pytest.raises(BlockingIOError):  # it is held still
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert Latch.open(path).state().mode == "stopped"


@pytest.mark.usefixtures("frozen_holder")
def test_a_reset_does_wait_and_then_says_so(path: Path) -> None:
    Latch.open(path).stop(by="ada", reason="drill")
    with pytest.raises(TimeoutError, match="holds the lock"):
        Latch.open(path).reset(by="ada", reason="over")
    assert Latch.open(path).state().mode == "stopped"


def test_an_old_armed_file_put_back_does_not_undo_a_stop(path: Path) -> None:
    latch = Latch.open(path)
    shutil.copy(path, path.with_suffix(".old"))
    latch.stop(by="ada", reason="drill")
    os.replace(path.with_suffix(".old"), path)
    assert latch.state().mode == "stopped"
    assert latch.reset(by="ada", reason="looked into").mode == "armed"
    assert latch.state().mode == "armed"


def test_a_deleted_file_is_a_stop_even_if_a_hard_link_keeps_it_alive(path: Path) -> None:
    latch = Latch.open(path)
    assert latch.state().mode == "armed"
    os.link(path, path.with_suffix(".link"))
    path.unlink()
    assert latch.state().mode == "stopped"


def test_permits_of_a_lost_file_are_void_after_it_is_made_anew(path: Path) -> None:
    permit = Latch.open(path).permit("step")
    path.unlink()
    Latch.open(path).reset(by="ada", reason="restored")
    with pytest.raises(LearningStopped):
        permit.check()


def test_a_stop_that_cannot_be_written_still_stops_this_process_and_the_others(path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from autonomous.safety.latch import Latch\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "latch = Latch.open(Path(sys.argv[1]))\n"
        "try: latch.stop(by='ada', reason='disk')\n"
        "except OSError: print('raised', latch.state().mode)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.split() == ["raised", "stopped"]
    assert Latch.open(path).state().mode == "stopped"


def test_a_stop_of_everything_stays_one_when_the_file_is_lost_or_damaged(path: Path) -> None:
    Latch.open(path).kill(by="ada", reason="fire", scope="all")
    for damage in (path.unlink, lambda: path.write_bytes(b"x")):
        damage()
        state = Latch.open(path).state()
        assert (state.mode, state.scope) == ("killed", "all")
        assert "counts as a stop" in state.reason
    assert Latch.open(path).reset(by="ada", reason="restored").mode == "armed"
    path.unlink()
    assert Latch.open(path).state().scope == "learning"  # what was armed before is a stop of learning


def test_a_stop_that_cannot_be_written_leaves_a_harder_one_alone_and_ends_with_a_reset(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Latch.open(path).kill(by="ada", reason="fire", scope="all")
    before = path.read_bytes()
    latch = Latch.open(path)
    with monkeypatch.context() as broken:
        broken.setattr("autonomous.safety.latch_file.sync_path", _no_disk)
        broken.setattr("autonomous.safety.latch_file.write_block", _no_disk)
        with pytest.raises(OSError, match="no disk"):
            latch.pause(by="bob", reason="lunch", scope="learner")
    assert path.read_bytes() == before
    assert (latch.state().mode, latch.state().scope) == ("killed", "all")
    Latch.open(path).reset(by="ada", reason="over")
    assert latch.state().mode == "armed"


def _no_disk(*_: object) -> None:
    raise OSError("no disk")


def test_a_reset_undoes_only_the_stop_that_it_saw(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latch = Latch.open(path)
    latch.stop(by="ada", reason="odd")
    locked = latch._file.exclusive

    @contextmanager
    def slowly(*, must_lock: bool) -> Iterator[tuple[int, bool]]:
        with locked(must_lock=must_lock) as held:
            Latch.open(path).kill(
                by="bob", reason="fire", scope="all"
            )  # does not get the lock, and does not wait for it
            yield held

    monkeypatch.setattr(latch._file, "exclusive", slowly)
    with pytest.raises(LatchChanged, match="killed by bob meanwhile: fire"):
        latch.reset(by="ada", reason="over")
    assert (Latch.open(path).state().mode, Latch.open(path).state().scope) == ("killed", "all")


def test_a_stop_that_did_not_get_the_lock_holds_though_its_holder_writes_behind_it(path: Path) -> None:
    holder = Latch.open(path)
    holder.stop(by="ada", reason="odd")
    armed = replace(holder.state(), mode="armed", epoch=holder.state().epoch + 1)
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        stopper = threading.Thread(target=lambda: Latch.open(path).kill(by="bob", reason="fire", scope="all"))
        stopper.start()
        time.sleep(LOCK_TIMEOUT_S + 0.1)  # the stop is written, and looked after
        write_block(file.fileno(), armed)  # a reset whose write was slow
        stopper.join()
    state = Latch.open(path).state()
    assert (state.mode, state.scope, state.by) == ("killed", "all", "bob")
