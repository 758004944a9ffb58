"""The HTTP API: `build_api(parts)` makes the FastAPI application with all routes. It knows nothing of Ray.

In: an implementation of `serve.parts.Parts`. Out: an ASGI application; the command line, the console page at / and the
demo use only this. Errors have one shape (serve.errors); bodies and answers are in serve.schemas.
"""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, FastAPI, HTTPException, Query
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.answers import ServingContext
from serve.chat import build_chat_router
from serve.config import HttpConfig, RAGConfig
from serve.docs_page import render_docs
from serve.errors import install_error_handlers, to_response
from serve.feedback_routes import build_feedback_router
from serve.governance_routes import build_governance_router
from serve.memory_routes import build_memory_router
from serve.parts import Parts
from serve.rag import RAGSystem
from serve.report_routes import build_report_router
from serve.schedule_routes import build_schedule_router
from serve.schemas import (
    DeleteResponse,
    DocumentList,
    ErrorResponse,
    KnowledgeRequest,
    KnowledgeResponse,
    LearnNext,
    LearnRequest,
    LearnStarted,
    LearnStatus,
    Readiness,
    RollbackRequest,
    RollbackResponse,
    SearchResponse,
    Signed,
    StopRequest,
    VersionInfo,
    VersionList,
)
from serve.schemas_governance import Waits
from serve.source_routes import build_source_router
from serve.stream import COALESCE_S, Mask
from serve.tool_routes import build_tool_router

CONSOLE = Path(__file__).parent / "console" / "index.html"
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

Limit = Annotated[int, Query(ge=1, le=1000, description="Most rows.")]


def build_api(
    parts: Parts,
    *,
    http: HttpConfig,
    rag: RAGConfig,
    max_model_len: int,
    mask: Mask,
    coalesce_s: float = COALESCE_S,
) -> FastAPI:
    """The application. `mask` removes secrets from answers; `coalesce_s` is 0 where the engine's side joins pieces."""
    app = FastAPI(
        title="Autonomous Learning",
        summary="A model that keeps learning: OpenAI-compatible answers, knowledge, learning, versions, stop.",
        version="0.1.0",
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
    )
    install_error_handlers(app)
    context = ServingContext(
        parts=parts, rag=RAGSystem(rag), http=http, max_model_len=max_model_len, coalesce_s=coalesce_s, mask=mask
    )
    app.include_router(build_chat_router(context))
    app.include_router(_knowledge_routes(context))
    app.include_router(build_memory_router(parts.memory))
    app.include_router(build_tool_router(context))
    app.include_router(build_source_router(parts.sources))
    app.include_router(build_feedback_router(parts.feedback))
    app.include_router(_learning_routes(parts))
    app.include_router(build_schedule_router(parts.schedules))
    app.include_router(_version_routes(parts))
    app.include_router(build_governance_router(context))
    app.include_router(build_report_router(parts.reports))
    app.include_router(_safety_routes(context))
    app.include_router(_state_routes(parts))
    _add_pages(app)
    app.add_middleware(BodyLimit, max_body_bytes=http.max_body_bytes)
    return app


class BodyLimit:
    """Refuses request bodies over a size with 413, by their announced length or while they arrive."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._max:
            await to_response(self._refusal(int(announced)))(scope, receive, send)
            return
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max:
                raise self._refusal(num_bytes)  # FastAPI passes an HTTPException of `receive` on
            return message

        await self._app(scope, limited, send)

    def _refusal(self, num_bytes: int) -> HTTPException:
        return HTTPException(
            413,
            f"The body has {num_bytes} bytes or more, the limit is {self._max} (http.max_body_bytes): "
            "send fewer documents at a time.",
        )


def _knowledge_routes(context: ServingContext) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["Knowledge"])
    parts = context.parts

    @router.post("/knowledge", status_code=201, response_model=KnowledgeResponse)
    async def add(body: KnowledgeRequest) -> Any:
        """Remember documents. Sent after they are on disk; the same documents again change nothing."""
        return await parts.ingest([document.model_dump(exclude_none=True) for document in body.documents])

    @router.get("/knowledge", response_model=DocumentList)
    async def list_documents(
        limit: Limit = 100, offset: Annotated[int, Query(ge=0)] = 0, source: str | None = None
    ) -> Any:
        """Stored documents, newest first."""
        return {"documents": await parts.documents(limit=limit, offset=offset, source=source)}

    @router.get("/knowledge/search", response_model=SearchResponse)
    async def search(
        q: Annotated[str, Query(min_length=1, max_length=4000)], k: Annotated[int, Query(ge=1, le=100)] = 5
    ) -> Any:
        """What would be recalled for a question, without a threshold."""
        start = context.clock()
        hits = await parts.search(q, k=k, min_cosine=-1.0)
        rows = [
            {
                "episode_id": hit.episode.id,
                "document_id": hit.episode.document_id,
                "title": hit.episode.title,
                "source": hit.episode.source_id,
                "text": hit.episode.text,
                "score": hit.score,
                "cosine": hit.cosine,
            }
            for hit in hits
        ]
        return {"hits": rows, "seconds": round(context.clock() - start, 4)}

    @router.delete("/knowledge/{document_id:path}", response_model=DeleteResponse)
    async def delete(document_id: str) -> Any:
        """Erase a document from every store; names the versions whose weights had learned it."""
        return await parts.delete_document(document_id)

    return router


def _learning_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1/learn", tags=["Learning"])

    @router.post("", status_code=202, response_model=LearnStarted)
    async def learn(body: Annotated[LearnRequest | None, Body()] = None) -> Any:
        """Learn the next batch. 409: a batch is being learned, or there is nothing new; 423: stopped."""
        by = None if body is None else body.by
        return {"run_id": await parts.learn(by=by)}

    @router.get("/next", response_model=LearnNext)
    async def learn_next() -> Any:
        """What the next batch would learn and the questions it would be judged by."""
        return await parts.learn_next()

    @router.get("/{run_id}", response_model=LearnStatus)
    async def learn_status(run_id: str) -> Any:
        """Where a run stands."""
        return await parts.learn_status(run_id)

    return router


def _version_routes(parts: Parts) -> APIRouter:
    router = APIRouter(prefix="/v1/versions", tags=["Versions"])

    @router.get("", response_model=VersionList)
    async def versions() -> Any:
        """The pointers V1, V2, V3 and the versions, newest first."""
        return await parts.versions()

    @router.post("/rollback", response_model=RollbackResponse)
    async def rollback(body: RollbackRequest) -> Any:
        """Put V2's predecessor back; the version that served goes to quarantine, and what it learned waits for release."""
        return await parts.rollback(reason=body.reason, by=body.by, keep_passages=body.keep_passages)

    @router.post("/unlock", status_code=204)
    async def unlock(body: Signed) -> None:
        """Let versions be promoted again, after too many were rolled back and a person has found out why."""
        await parts.unlock(reason=body.reason, by=body.by)

    @router.get("/{version_id}", response_model=VersionInfo)
    async def version(version_id: str) -> Any:
        """One version with its gates, lineage and report."""
        return await parts.version(version_id)

    return router


def _safety_routes(context: ServingContext) -> APIRouter:
    router = APIRouter(prefix="/v1/safety", tags=["Safety"])
    parts = context.parts

    @router.get("")
    async def safety() -> dict[str, Any]:
        """The stop latch: mode, epoch, who set it, when and why."""
        return await parts.safety_status()

    @router.post("/stop")
    async def stop(body: StopRequest) -> dict[str, Any]:
        """Emergency stop: no optimizer step, memory write or promotion takes effect any more. Answering goes on, unless the
        scope is "all".
        """
        start = context.clock()
        state = await parts.stop(reason=body.reason, by=body.by, category=body.category, scope=body.scope)
        return {**state, "seconds": round(context.clock() - start, 4)}

    @router.post("/reset", responses={202: {"model": Waits}})
    async def reset(body: Signed) -> JSONResponse:
        """Permit learning again. Starts nothing. 202: the stop holds until a second person sends the same under his own
        name."""
        state = await parts.reset(reason=body.reason, by=body.by)
        return JSONResponse(state, status_code=202 if state.get("waiting") else 200)

    return router


def _state_routes(parts: Parts) -> APIRouter:
    router = APIRouter(tags=["State"])

    @router.get("/healthz")
    async def healthz() -> dict[str, bool]:
        """The HTTP process answers."""
        return {"ok": True}

    @router.get("/readyz", response_model=Readiness)
    async def readyz() -> Any:
        """200 when every part answers, else 503 with the part that does not."""
        state = await parts.ready()
        return JSONResponse(state, status_code=200 if state["ready"] else 503)

    @router.get("/v1/status")
    async def status() -> dict[str, Any]:
        """Everything at a glance: memory, learning, versions, safety, engine, delays."""
        return await parts.status()

    @router.get("/v1/audit")
    async def audit(limit: Limit = 50) -> dict[str, Any]:
        """The newest audit rows, and whether the hash chain is whole."""
        return await parts.audit(limit)

    return router


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def console() -> FileResponse:
        return FileResponse(CONSOLE, media_type="text/html", headers={**_PAGE_HEADERS, "Cache-Control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(render_docs(app.openapi()), headers=_PAGE_HEADERS)
