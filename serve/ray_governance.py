"""`serve.governance.GovernanceParts` over the agent and the safety actor."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from autonomous.versions.explain import Explanation
from autonomous.versions.forensics import Case
from serve.governance import Json

Call = Callable[..., Awaitable[Any]]


class RayGovernance:
    """`read` repeats a call while its actor restarts, `act` never does."""

    def __init__(self, read: Call, act: Call) -> None:
        self._read = read
        self._act = act

    async def approve(self, version_id: str, *, by: str, reason: str, report_sha256: str | None) -> None:
        """See GovernanceParts."""
        await self._act("agent", "approve", version_id, by, reason, report_sha256)

    async def reject(self, version_id: str, *, by: str, reason: str, report_sha256: str | None) -> None:
        """See GovernanceParts."""
        await self._act("agent", "reject", version_id, by, reason, report_sha256)

    async def release(self, version_id: str, *, by: str, reason: str, evidence: Json | None) -> Json | None:
        """See GovernanceParts."""
        waiting: Json | None = await self._act("agent", "release", version_id, by, reason, evidence)
        return waiting

    async def withdraw_release(self, version_id: str, *, by: str, reason: str) -> None:
        """See GovernanceParts."""
        await self._act("agent", "withdraw_release", version_id, by, reason)

    async def withdraw_reset(self, *, by: str, reason: str) -> Json:
        """See GovernanceParts."""
        return dict(await self._act("safety", "withdraw_reset", reason, by))

    async def explain(self, version_id: str) -> Explanation:
        """See GovernanceParts."""
        explanation: Explanation = await self._read("agent", "explain", version_id)
        return explanation

    async def forensic_case(self, version_id: str, *, asked: Sequence[str], max_prompts: int) -> Case:
        """See GovernanceParts."""
        case: Case = await self._read("agent", "forensic_case", version_id, list(asked), max_prompts)
        return case
