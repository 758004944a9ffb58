"""GovernanceParts over the agent and the safety actor."""

from collections.abc import Sequence

from autonomous.versions.explain import Explanation
from autonomous.versions.forensics import Case
from serve.governance import Json
from serve.ray_calls import ActorCalls


class RayGovernance:
    """Implements `serve.governance.GovernanceParts`. Nobody decides twice by a repeated call."""

    def __init__(self, calls: ActorCalls) -> None:
        self._calls = calls

    async def approve(self, version_id: str, *, by: str, reason: str, report_sha256: str | None) -> None:
        """See GovernanceParts."""
        await self._calls.act("agent", "approve", version_id, by, reason, report_sha256)

    async def reject(self, version_id: str, *, by: str, reason: str, report_sha256: str | None) -> None:
        """See GovernanceParts."""
        await self._calls.act("agent", "reject", version_id, by, reason, report_sha256)

    async def release(self, version_id: str, *, by: str, reason: str, evidence: Json | None) -> Json | None:
        """See GovernanceParts."""
        waiting: Json | None = await self._calls.act("agent", "release", version_id, by, reason, evidence)
        return waiting

    async def withdraw_release(self, version_id: str, *, by: str, reason: str) -> None:
        """See GovernanceParts."""
        await self._calls.act("agent", "withdraw_release", version_id, by, reason)

    async def withdraw_reset(self, *, by: str, reason: str) -> Json:
        """See GovernanceParts."""
        return dict(await self._calls.act("safety", "withdraw_reset", reason, by))

    async def explain(self, version_id: str) -> Explanation:
        """See GovernanceParts."""
        explanation: Explanation = await self._calls.call("agent", "explain", version_id)
        return explanation

    async def forensic_case(self, version_id: str, *, asked: Sequence[str], max_prompts: int) -> Case:
        """See GovernanceParts."""
        case: Case = await self._calls.call("agent", "forensic_case", version_id, list(asked), max_prompts)
        return case
