"""The routes of versions' reports: what was measured of a version, as JSON and as a page, and the benchmark."""

from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Header, Query
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class ReportParts(Protocol):
    """What is behind these routes."""

    async def report(self, version_id: str) -> dict[str, Any]:
        """GET /v1/versions/{id}/report. Raises NotFoundError."""

    async def page(self, version_id: str) -> str:
        """The same as a page. Raises NotFoundError."""

    async def benchmark(self, version_id: str) -> str:
        """Begin a benchmark; the version's id. Raises NotFoundError, ConflictError, LearningStopped, ValueError."""


class BenchmarkRequest(BaseModel):
    """Which version."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(min_length=1, max_length=128)
    """A version id."""


class BenchmarkStarted(BaseModel):
    """It runs; the report of the version tells when it is done."""

    version: str


def build_report_router(reports: ReportParts) -> APIRouter:
    """GET /v1/versions/{id}/report and POST /v1/benchmark."""
    router = APIRouter(prefix="/v1", tags=["Versions"])

    @router.get("/versions/{version_id}/report", response_model=None)
    async def report(
        version_id: str,
        kind: Annotated[
            Literal["json", "html"] | None, Query(alias="format", description="Default: as the client accepts.")
        ] = None,
        accept: Annotated[str, Header()] = "",
    ) -> dict[str, Any] | HTMLResponse:
        """Gates, evaluation, benchmark and triggers of a version; a browser is given the page with the plots."""
        if kind == "html" or (kind is None and "text/html" in accept):
            return HTMLResponse(await reports.page(version_id), headers=PAGE_HEADERS)
        return await reports.report(version_id)

    @router.post("/benchmark", status_code=202, response_model=BenchmarkStarted)
    async def benchmark(body: BenchmarkRequest) -> Any:
        """Ask a version everything, in the background. 409: one is under way; 423: stopped."""
        return {"version": await reports.benchmark(body.version)}

    return router
