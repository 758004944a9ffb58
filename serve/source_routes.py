"""The routes of the sources that are read by themselves."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from serve.schemas import Name, Why
from serve.schemas_sources import RefusedList, SourceRequest, SourceStatus
from serve.source_parts import SourceParts

SourceId = Annotated[str, Path(min_length=1, max_length=64)]
By = Annotated[Name, Query(description="Who decides, for the audit log.")]
Reason = Annotated[Why, Query(description="Why, for the audit log.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Most rows.")]


def build_source_router(sources: SourceParts) -> APIRouter:
    """All routes below /v1/sources."""
    router = APIRouter(prefix="/v1/sources", tags=["Sources"])

    @router.get("", response_model=SourceStatus)
    async def list_sources() -> Any:
        """Every source, how far it was read, and its last error."""
        return await sources.sources()

    @router.post("", status_code=201)
    async def add(body: SourceRequest) -> dict[str, str]:
        """Read a folder, a git repository, an address or a growing file from now on, in place of a source of the same id."""
        await sources.add(body.source, by=body.by, reason=body.reason)
        return {"id": body.source.id}

    @router.delete("/{source_id}", status_code=204)
    async def remove(source_id: SourceId, by: By, reason: Reason) -> None:
        """Read a source no longer. What it said stays stored; POST /v1/memory/forget erases that."""
        await sources.remove(source_id, by=by, reason=reason)

    @router.post("/{source_id}/read", status_code=202)
    async def read_now(source_id: SourceId) -> dict[str, str]:
        """Look at a source without waiting for its interval."""
        await sources.read_now(source_id)
        return {"id": source_id}

    @router.get("/{source_id}/refused", response_model=RefusedList)
    async def refused(source_id: SourceId, limit: Limit = 100) -> Any:
        """What of a source is neither recalled nor learned, newest first, with the reason and what to do."""
        return {"refused": await sources.refused(source_id, limit=limit)}

    return router
