"""The safety actor: the front door of the stop latch. It is not needed for a stop: the latch is a file."""

from pathlib import Path
from typing import Any

import ray

from actors.base import Shell
from autonomous.safety.latch import Latch
from autonomous.safety.monitor import SafetyMonitor
from autonomous.versions.ledger import VersionLedger


class SafetyShell(Shell):
    """Holds the SafetyMonitor; every stop and reset is audited in the version ledger."""

    def __init__(self, settings_sha256: str, *, latch: Path, ledger: Path) -> None:
        super().__init__("safety", settings_sha256)
        versions = VersionLedger(ledger)
        self._monitor = SafetyMonitor(Latch.open(latch), audit=versions.append_audit)

    @ray.method(concurrency_group="control")
    def status(self) -> dict[str, Any]:
        """The latch: mode, epoch, who, when, why."""
        return self._monitor.status()

    @ray.method(concurrency_group="control")
    def stop(self, reason: str, by: str, category: str) -> dict[str, Any]:
        """Stop or pause all learning, memory writes and promotions. Idempotent; answers after the latch is on disk."""
        return (
            self._monitor.pause(reason=reason, by=by)
            if category == "pause"
            else self._monitor.stop(reason=reason, by=by)
        )

    @ray.method
    def reset(self, reason: str, by: str) -> dict[str, Any]:
        """Permit learning again; starts nothing."""
        return self._monitor.reset(reason=reason, by=by)
