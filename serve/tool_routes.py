"""The routes of the tools: what there is, one call, and an answer that uses them.

An answer's steps are decided by autonomous.tools.plan.Plan and done by autonomous.knowledge.answer_with_tools: calls in the
tools actor, replies by the production model (V2).
"""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Path

from autonomous.knowledge import answer_with_tools
from autonomous.tools.plan import STOPS, Call, KnowledgeAnswer, Message, Plan
from autonomous.tools.tool import ToolResult, ToolUnavailable
from serve.answers import ServingContext
from serve.engine import AdapterRef, GenerateRequest
from serve.errors import NotReadyError
from serve.schemas_tools import AnswerRequest, AnswerResponse, ToolList, ToolRequest, ToolResponse

BY_USER = "api"
"""Who asked, in the audit log."""


@dataclass(frozen=True, slots=True)
class DescribedTool:
    """A tool of the actor, as a plan needs it: it is never called here."""

    name: str
    description: str
    parameters: dict[str, Any]


def build_tool_router(context: ServingContext) -> APIRouter:
    """/v1/tools and /v1/knowledge/answer."""
    router = APIRouter(prefix="/v1", tags=["Tools"])
    tools = context.parts.tools

    @router.get("/tools", response_model=ToolList)
    async def list_tools() -> Any:
        """The tools, with the JSON schemas of their arguments."""
        return {"tools": await tools.describe()}

    @router.post("/tools/{name}", response_model=ToolResponse)
    async def call_tool(name: Annotated[str, Path(min_length=1, max_length=100)], body: ToolRequest) -> Any:
        """Call a tool. 423: stopped; 503: programs cannot be shut in well enough on this machine."""
        return await tools.call(name, body.arguments, timeout_s=body.timeout_s, by=BY_USER)

    @router.post("/knowledge/answer", response_model=AnswerResponse)
    async def answer(body: AnswerRequest) -> Any:
        """Answer a question with tools: arithmetic is worked out, code is searched for, anything else is looked up."""
        start = context.clock()
        deadline = start + context.http.request_timeout_s
        version = str((await context.parts.pointers())["v2"])
        found = await _answer(context, body, await context.parts.version_adapter(version), deadline=deadline)
        return {
            "answer": context.mask(found.text) if found.answered_by == "model" else found.text,
            "answered_by": found.answered_by,
            "version": version,
            "steps": found.steps,
            "sources": found.citations,
            "seconds": round(context.clock() - start, 4),
        }

    return router


async def _answer(
    context: ServingContext, body: AnswerRequest, adapter: AdapterRef | None, *, deadline: float
) -> KnowledgeAnswer:
    """With the tools of the actor. Raises LearningStopped, TimeoutError, and what the engine raises."""
    tools = context.parts.tools

    async def call(step: Call) -> ToolResult:
        try:
            return await tools.call(step.call.tool, step.call.arguments, timeout_s=step.timeout_s, by=step.by)
        except NotReadyError as problem:
            raise ToolUnavailable(str(problem)) from problem

    async def generate(messages: Sequence[Message]) -> str:
        return await _generate(context, messages, body, adapter, deadline)

    described = [DescribedTool(**one["function"]) for one in await tools.describe()]
    plan = Plan(body.question, config=await tools.config(), tools=described, clock=context.clock)
    return await answer_with_tools(plan, call=call, generate=generate)


async def _generate(
    context: ServingContext,
    messages: Sequence[Message],
    body: AnswerRequest,
    adapter: AdapterRef | None,
    deadline: float,
) -> str:
    request = GenerateRequest(
        request_id=uuid.uuid4().hex,
        prompt=await context.parts.render_chat(messages),
        max_tokens=body.max_tokens or context.http.default_max_tokens,
        stop=STOPS,
        adapter=adapter,
    )
    try:
        answer = await asyncio.wait_for(context.parts.complete(request), timeout=max(0.001, deadline - context.clock()))
    except TimeoutError as problem:
        raise TimeoutError(
            f"no answer within {context.http.request_timeout_s:g} s (http.request_timeout_s); ask for fewer max_tokens"
        ) from problem
    return answer.text
