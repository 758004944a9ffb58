"""What people decide and ask about versions, beside the learning loop: rejection, the way out of quarantine, why and
what went wrong.

In: names, reasons, evidence. Out: what was decided, or the request that waits for a second person. Approval is the loop's (it
promotes); a rejection and a look need neither the loop nor a permit.
"""

from collections.abc import Sequence
from typing import Any

from autonomous.config import AutonomousConfig
from autonomous.curriculum import Curriculum
from autonomous.ports import MemoryPort
from autonomous.safety.latch import Latch
from autonomous.versions.explain import Explanation, explain
from autonomous.versions.forensics import Case, Prompt, build_case
from autonomous.versions.governance import ConsentRule
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.readonly import ReadOnlyLedger


class Oversight:
    """See the module. Thread-safe."""

    def __init__(
        self,
        config: AutonomousConfig,
        *,
        ledger: VersionLedger,
        latch: Latch,
        memory: MemoryPort,
        curriculum: Curriculum,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._latch = latch
        self._memory = memory
        self._curriculum = curriculum

    def reject(self, name: str, *, by: str, reason: str, report_sha256: str | None = None) -> None:
        """A person says no to a version that waits. Raises what `Governance.reject` raises."""
        self._ledger.reject(name, by=by, reason=reason, report_sha256=report_sha256)

    def release(self, name: str, *, by: str, reason: str, evidence: dict[str, Any] | None) -> dict[str, Any] | None:
        """A person lets a quarantined version be evaluated anew, in the next cycle, by what has been found out since.

        Where two people decide, the first call returns the request that waits for the second. Raises what
        `Governance.release` raises, LearningStopped.
        """
        permit = self._latch.permit("leaving quarantine")
        consent = None
        if self._config.needs_two_people:
            consent = ConsentRule(self._config.safety.second_person_within_s, permit.epoch)
        request = self._ledger.release(
            name, by=by, reason=reason, evidence=evidence, consent=consent, guard=permit.check
        )
        return None if request is None else request.to_dict()

    def withdraw_release(self, name: str, *, by: str, reason: str) -> None:
        """Take the request for a release back. Raises NothingRequested."""
        self._ledger.withdraw_release(name, by=by, reason=reason)

    def waiting_release(self, name: str) -> dict[str, Any] | None:
        """The request for a version's release that waits for a second person."""
        request = self._ledger.release_request(name, epoch=self._latch.state().epoch_of("learning"))
        return None if request is None else request.to_dict()

    def explain(self, name: str) -> Explanation:
        """All about one version. Raises UnknownVersion."""
        return explain(self._ledger, name, recall=self._memory.get)

    def forensic_case(self, name: str, *, asked: Sequence[str], max_prompts: int) -> Case:
        """What is known of a version that was put away, and what both versions are to be asked. Changes nothing.

        Raises UnknownVersion, ValueError for a version that was not put away.
        """
        lessons = [
            Prompt(question.paraphrase, "lesson", question.answer) for question in self._curriculum.questions_of(name)
        ]
        ledger = ReadOnlyLedger(self._ledger.path)
        return build_case(ledger, name, recall=self._memory.get, lessons=lessons, asked=asked, max_prompts=max_prompts)
