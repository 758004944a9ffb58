"""The watch over learning cycles, as the agent makes it, for tests of the loop."""

import time
from collections.abc import Callable
from pathlib import Path

from autonomous.config import AutonomousConfig
from autonomous.cycle_watch import CycleWatch, open_budget
from autonomous.safety.latch import Latch
from autonomous.safety.monitor import SafetyMonitor
from autonomous.versions.ledger import VersionLedger


def make_watch(
    config: AutonomousConfig,
    home: Path,
    *,
    ledger: VersionLedger,
    latch: Latch,
    clock: Callable[[], float] = time.time,
) -> CycleWatch:
    """Real monitor, real budget."""
    monitor = SafetyMonitor(latch, audit=ledger.append_audit, rules=config.safety.rules, level=config.safety_level)
    budget = open_budget(home, config.budget, clock=clock)
    return CycleWatch(config, monitor=monitor, ledger=ledger, budget=budget, clock=clock)
