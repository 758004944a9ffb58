"""What the governance routes need from the rest of the system. `serve.ray_governance` implements it over Ray actors."""

from collections.abc import Sequence
from typing import Any, Protocol

from autonomous.versions.explain import Explanation
from autonomous.versions.forensics import Case

Json = dict[str, Any]


class GovernanceParts(Protocol):
    """Decisions of people about versions. All raise NotFoundError for an unknown version, ConflictError for one in another
    state, ValueError for a machine's name.
    """

    async def approve(self, version_id: str, *, by: str, reason: str, report_sha256: str | None) -> None:
        """Agree to a version that waits for it."""

    async def reject(self, version_id: str, *, by: str, reason: str, report_sha256: str | None) -> None:
        """Say no to a version that waits."""

    async def release(self, version_id: str, *, by: str, reason: str, evidence: Json | None) -> Json | None:
        """Let a quarantined version be evaluated anew; the request, where it waits for a second person."""

    async def withdraw_release(self, version_id: str, *, by: str, reason: str) -> None:
        """Take that request back."""

    async def withdraw_reset(self, *, by: str, reason: str) -> Json:
        """Take the request for a reset of the emergency stop back; the latch."""

    async def explain(self, version_id: str) -> Explanation:
        """All about a version."""

    async def forensic_case(self, version_id: str, *, asked: Sequence[str], max_prompts: int) -> Case:
        """What is known of a version that was put away, and what is to be asked."""
