"""The routes of what people decide about versions: approval, rejection, release, explanation, forensics.

For those who run the system, not for its users: docs/security.md says what a proxy lets pass. A version that was put away
answers nowhere but in its forensics.
"""

import asyncio
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from autonomous.versions.forensics import MAX_PROMPTS, Case, examine
from serve.answers import ServingContext
from serve.engine import GenerateRequest
from serve.schemas import Signed, VersionInfo
from serve.schemas_governance import ExplanationInfo, ForensicsInfo, ReleaseRequest, SignedReport, Waits

DEFAULT_PROMPTS = 8
MAX_ANSWER_TOKENS = 64
ASKING_S = 120.0

AskedPrompts = Annotated[
    list[str] | None, Query(alias="prompt", max_length=MAX_PROMPTS, description="Asked before the chosen prompts.")
]


def build_governance_router(context: ServingContext) -> APIRouter:
    """The routes over the parts of a context."""
    router = APIRouter(prefix="/v1", tags=["Governance"])
    parts = context.parts

    @router.post("/versions/{version_id}/approve", response_model=VersionInfo)
    async def approve(version_id: str, body: SignedReport) -> Any:
        """Let a version that waits for approval serve. 409: it does not wait, its report is another one by now, or you
        asked for it yourself and two people decide here.
        """
        await parts.governance.approve(version_id, by=body.by, reason=body.reason, report_sha256=body.report_sha256)
        return await parts.version(version_id)

    @router.post("/versions/{version_id}/reject", response_model=VersionInfo)
    async def reject(version_id: str, body: SignedReport) -> Any:
        """Say no to a version that waits for approval: it goes to quarantine, and what it learned is held back."""
        await parts.governance.reject(version_id, by=body.by, reason=body.reason, report_sha256=body.report_sha256)
        return await parts.version(version_id)

    @router.post("/versions/{version_id}/release", response_model=VersionInfo, responses={202: {"model": Waits}})
    async def release(version_id: str, body: ReleaseRequest) -> Any:
        """Let a quarantined version be evaluated anew, with new evidence; never straight to traffic. 202: it waits for
        a second person, who sends the same under his own name.
        """
        waiting = await parts.governance.release(
            version_id, by=body.by, reason=body.reason, evidence=body.to_evidence()
        )
        if waiting is not None:
            return JSONResponse({"waiting": waiting}, status_code=202)
        return await parts.version(version_id)

    @router.post("/versions/{version_id}/release/withdraw", status_code=204)
    async def withdraw_release(version_id: str, body: Signed) -> None:
        """Take back what waits for a second person."""
        await parts.governance.withdraw_release(version_id, by=body.by, reason=body.reason)

    @router.get("/versions/{version_id}/explain", response_model=ExplanationInfo)
    async def explain(version_id: str) -> Any:
        """Why a version serves or does not: lineage, who decided what and when, gates, what it learned."""
        explanation = await parts.governance.explain(version_id)
        return {**explanation.to_dict(), "text": str(explanation)}

    @router.get("/versions/{version_id}/forensics", response_model=ForensicsInfo)
    async def forensics(
        version_id: str,
        prompt: AskedPrompts = None,
        max_prompts: Annotated[int, Query(ge=0, le=MAX_PROMPTS, description="0: nothing is asked.")] = DEFAULT_PROMPTS,
    ) -> Any:
        """A look at a version that was put away, beside the one that serves; changes nothing. Takes two answers per prompt;
        those that are not there after two minutes are left out.
        """
        case = await parts.governance.forensic_case(version_id, asked=prompt or [], max_prompts=max_prompts)
        found = examine(case, await _ask_both(context, case))
        return {**found.to_dict(), "text": str(found)}

    @router.post("/safety/reset/withdraw")
    async def withdraw_reset(body: Signed) -> dict[str, Any]:
        """Take back a reset that waits for a second person."""
        return await parts.governance.withdraw_reset(by=body.by, reason=body.reason)

    return router


async def _ask_both(context: ServingContext, case: Case) -> list[tuple[str, str]]:
    """The answers of both versions to each prompt, from their weights alone, without secrets."""
    adapters = [await context.parts.version_adapter(version) for version in (case.version, case.serving)]

    async def ask(text: str, number: int) -> str:
        prompt = await context.parts.render_chat([{"role": "user", "content": text}])
        request = GenerateRequest(
            request_id=uuid.uuid4().hex, prompt=prompt, max_tokens=MAX_ANSWER_TOKENS, adapter=adapters[number]
        )
        return context.mask((await context.parts.complete(request)).text)

    answers: list[tuple[str, str]] = []
    try:
        async with asyncio.timeout(ASKING_S) as limit:
            for prompt in case.prompts:  # one pair at a time: the engine goes on serving others
                its, serving = await asyncio.gather(ask(prompt.text, 0), ask(prompt.text, 1))
                answers.append((its, serving))
    except TimeoutError:
        if not limit.expired():
            raise
    return answers
