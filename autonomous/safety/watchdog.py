"""The watchdog: a process of its own, outside Ray, that carries out kills and shows that it lives.

    python -m autonomous.safety.watchdog HOME/safety

It polls the latch. When the latch says "killed" it kills the registered processes of that scope, looks whether they are
gone, and writes down what it found. No model can reach it: it takes no input but the latch. While it is silent nothing
is permitted.
"""

import json
import logging
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autonomous.safety.heartbeat import BEAT_S, Heartbeat
from autonomous.safety.latch import Latch
from autonomous.safety.latch_state import LatchState
from autonomous.safety.processes import Killed, kill_registered

logger = logging.getLogger(__name__)

LOOK_S = 0.05
ROUND_S, MAX_TRIES = 1.0, 5
"""Of one try to kill, in between which it has to show that it lives, and how often it tries."""
REPORT = "last-kill.json"


@dataclass(frozen=True, slots=True)
class KillReport:
    """What a kill came to. `seconds`: until all were gone, or until it was given up."""

    epoch: int
    scope: str
    reason: str
    by: str
    processes: tuple[Killed, ...]
    seconds: float

    @property
    def is_complete(self) -> bool:
        """Whether nothing of it lives."""
        return all(one.is_gone for one in self.processes)


class Watchdog:
    """See the module. One per machine and home."""

    def __init__(self, safety_folder: Path) -> None:
        self._folder = safety_folder
        self._latch = Latch.open(safety_folder / "latch")
        self._heartbeat = Heartbeat(safety_folder)
        self._beaten_at = -BEAT_S
        self._handled = last_kill(safety_folder).get("epoch", 0)
        self._num_tries = 0

    def look(self) -> KillReport | None:
        """One round: a kill if there is one that is not done, then a sign of life when it is due.

        A kill that left something alive is tried again in the next rounds. Raises OSError if it cannot show that it lives.
        """
        state = self._latch.state()
        report = self._kill(state) if state.mode == "killed" and state.epoch != self._handled else None
        if time.monotonic() - self._beaten_at >= BEAT_S:
            self._heartbeat.beat()
            self._beaten_at = time.monotonic()
        return report

    def run(self) -> None:
        """For ever."""
        while True:
            try:
                self.look()
            except Exception:  # it must live: whatever it is, the next round tries again
                logger.exception("a round of the watchdog failed")
            time.sleep(LOOK_S)

    def _kill(self, state: LatchState) -> KillReport:
        start = time.monotonic()
        killed = kill_registered(self._folder, state.scope, timeout_s=ROUND_S)
        report = KillReport(
            state.epoch, state.scope, state.reason, state.by, tuple(killed), round(time.monotonic() - start, 4)
        )
        level = logging.WARNING if report.is_complete else logging.ERROR
        logger.log(level, "killed scope=%s processes=%d seconds=%.3f", state.scope, len(killed), report.seconds)
        self._write(report)
        self._num_tries += 1
        if report.is_complete or self._num_tries == MAX_TRIES:
            self._handled, self._num_tries = state.epoch, 0
        return report

    def _write(self, report: KillReport) -> None:
        path = self._folder / REPORT
        draft = path.with_suffix(".tmp")
        try:
            draft.write_text(json.dumps(asdict(report)), encoding="utf-8")
            draft.replace(path)
        except OSError as error:  # a full disk: the processes are gone all the same
            logger.error("the report of the kill could not be written: %s", error)


def last_kill(safety_folder: Path) -> dict[str, Any]:
    """What was left to kill for the watchdog in the last kill, which others carry out too; empty if there was none."""
    try:
        report = json.loads((safety_folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def main() -> None:
    """Watch the safety folder that the command line names."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    if len(sys.argv) != 2:
        sys.exit("usage: python -m autonomous.safety.watchdog HOME/safety")
    logger.info("watching %s as pid=%d", sys.argv[1], os.getpid())
    Watchdog(Path(sys.argv[1])).run()


if __name__ == "__main__":
    main()
