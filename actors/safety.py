"""The safety actor: the front door of the stop latch. It is not needed for a stop: the latch is a file."""

from pathlib import Path
from typing import Any

import ray

from actors.base import Shell
from autonomous.config import AutonomousConfig
from autonomous.safety.latch import Latch
from autonomous.safety.latch_state import Scope
from autonomous.safety.monitor import SafetyMonitor
from autonomous.versions.ledger import VersionLedger


class SafetyShell(Shell):
    """Holds the SafetyMonitor; every stop and reset is audited in the version ledger."""

    def __init__(self, settings_sha256: str, *, latch: Path, ledger: Path, config: AutonomousConfig) -> None:
        super().__init__("safety", settings_sha256)
        versions = VersionLedger(ledger, checkpoint_folder=config.audit_checkpoint)
        self._monitor = SafetyMonitor(
            Latch.open(latch),
            audit=versions.append_audit,
            two_people=config.needs_two_people,
            second_person_within_s=config.safety.second_person_within_s,
        )

    @ray.method(concurrency_group="control")
    def status(self) -> dict[str, Any]:
        """The latch: mode, epoch, who, when, why."""
        return self._monitor.status()

    @ray.method(concurrency_group="control")
    def stop(self, reason: str, by: str, category: str, scope: Scope) -> dict[str, Any]:
        """Pause, stop or kill what the scope names. Idempotent; answers after the latch is on disk, and after a kill when the
        processes are gone.
        """
        pull = {"pause": self._monitor.pause, "stop": self._monitor.stop, "kill": self._monitor.kill}[category]
        return pull(reason=reason, by=by, scope=scope)

    @ray.method
    def reset(self, reason: str, by: str) -> dict[str, Any]:
        """Permit learning again; starts nothing. Where two people decide, the first call waits for the second."""
        return self._monitor.reset(reason=reason, by=by)

    @ray.method
    def withdraw_reset(self, reason: str, by: str) -> dict[str, Any]:
        """Take back a reset that waits for a second person."""
        return self._monitor.withdraw_reset(reason=reason, by=by)
