"""One agent in a home: a second is refused, a successor waits for its predecessor, a killed process leaves the home free."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from autonomous.home_lock import HomeInUse, own_home

HOLD = """
import subprocess, sys, time
from pathlib import Path
from autonomous.home_lock import own_home
lock = own_home(Path(sys.argv[1]))
print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
time.sleep(600)
"""


def test_a_home_that_is_owned_is_refused_until_it_is_let_go(tmp_path: Path) -> None:
    with own_home(tmp_path / "home"), pytest.raises(HomeInUse, match=r"autonomous up.*give another home"):
        own_home(tmp_path / "home")
    own_home(tmp_path / "home").close()


def test_a_successor_waits_for_its_predecessor_but_not_for_ever(tmp_path: Path) -> None:
    lock = own_home(tmp_path)
    start = time.monotonic()
    with pytest.raises(HomeInUse):
        own_home(tmp_path, wait_s=0.2)
    assert time.monotonic() - start >= 0.2
    ending = threading.Timer(0.2, lock.close)
    ending.start()
    own_home(tmp_path, wait_s=30.0).close()
    ending.join()


def test_a_killed_process_leaves_the_home_free_at_once_also_if_a_program_that_it_started_lives_on(
    tmp_path: Path,
) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        with pytest.raises(HomeInUse):
            own_home(tmp_path)
        process.kill()
        process.wait()
        own_home(tmp_path).close()
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
