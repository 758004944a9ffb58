"""`serve.report_routes.ReportParts` in one process."""

from typing import Any

from autonomous.benchmark_report import BenchmarkReport, MetricScores, compare
from serve.errors import ConflictError, NotFoundError


class LocalReports:
    """`serve.report_routes.ReportParts` in one process: two versions; a benchmark is done when it was looked at twice.

    `is_killed`: its evaluator dies instead, which leaves neither a report nor an error.
    """

    def __init__(self) -> None:
        self.running: str | None = None
        self.num_looks = 0
        self.benchmarks: dict[str, BenchmarkReport] = {}
        self.error: str | None = None
        self.is_killed = False

    async def report(self, version_id: str) -> dict[str, Any]:
        self._check(version_id)
        self.num_looks += self.running == version_id
        if self.running == version_id and self.num_looks > 2:
            self.num_looks = 0
            self.running = None
            if self.error is None and not self.is_killed:
                before = self.benchmarks.get(version_id)
                created_at = 1.0 if before is None else before.created_at + 1
                self.benchmarks[version_id] = self._measured(version_id, created_at=created_at)
        found = self.benchmarks.get(version_id)
        return {
            "version": version_id,
            "benchmark": found and found.to_dict(),
            "triggers": [],
            "is_running": self.running == version_id,
            "error": self.error if self.running is None else None,
        }

    @staticmethod
    def _measured(version_id: str, *, created_at: float) -> BenchmarkReport:
        items = tuple(map(str, range(20)))
        metric = MetricScores("recall", "share", items, (1.0,) * 20, (), (0.0,) * 20)
        found = tuple(compare([metric], against="original", confidence=0.95, samples=200))
        return BenchmarkReport(version_id, None, created_at, 2.0, 0.95, (metric,), found, None, "", "", "")

    async def page(self, version_id: str) -> str:
        self._check(version_id)
        return f"<!doctype html><title>Version {version_id}</title>"

    async def benchmark(self, version_id: str) -> str:
        self._check(version_id)
        if self.running is not None:
            raise ConflictError(f"version {self.running} is being benchmarked; try again when it is done")
        self.running = version_id
        return version_id

    def _check(self, version_id: str) -> None:
        if version_id not in ("ver-base", "ver-new"):
            raise NotFoundError(f"version {version_id!r} does not exist; GET /v1/versions lists them")
