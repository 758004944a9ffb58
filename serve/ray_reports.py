"""Versions' reports over the evaluator actor."""

from typing import Any

from serve.ray_calls import ActorCalls


class RayReportParts:
    """Implements `serve.report_routes.ReportParts`."""

    def __init__(self, calls: ActorCalls) -> None:
        self._calls = calls

    async def report(self, version_id: str) -> dict[str, Any]:
        """See ReportParts."""
        return dict(await self._calls.call("evaluator", "version_report", version_id))

    async def page(self, version_id: str) -> str:
        """See ReportParts."""
        return str(await self._calls.call("evaluator", "version_page", version_id))

    async def benchmark(self, version_id: str) -> str:
        """See ReportParts."""
        return str(await self._calls.act("evaluator", "benchmark", version_id))
