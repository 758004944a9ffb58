"""Versions' reports over the evaluator actor."""

from typing import Any

from serve.ray_memory import CallActor


class RayReportParts:
    """Implements `serve.report_routes.ReportParts`. `call` repeats a call while the actor restarts, `act` never does."""

    def __init__(self, call: CallActor, act: CallActor) -> None:
        self._call = call
        self._act = act

    async def report(self, version_id: str) -> dict[str, Any]:
        """See ReportParts."""
        return dict(await self._call("evaluator", "version_report", version_id))

    async def page(self, version_id: str) -> str:
        """See ReportParts."""
        return str(await self._call("evaluator", "version_page", version_id))

    async def benchmark(self, version_id: str) -> str:
        """See ReportParts."""
        return str(await self._act("evaluator", "benchmark", version_id))
