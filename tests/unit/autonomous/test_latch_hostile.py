"""The stop latch when files are put back, processes freeze, or writing is refused."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autonomous.safety.latch import Latch, LearningStopped

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
    start = time.monotonic()
    assert Latch.open(path).stop(by="ada", reason="drill").mode == "stopped"
    assert time.monotonic() - start < 1.0
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
