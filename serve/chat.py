"""The OpenAI routes: chat and plain completions (whole or streamed), embeddings, models.

A request's walk: name -> version -> adapter; question -> passages -> prompt; then serve.answers asks the engine.
"""

import array
import asyncio
import base64
import sys
import uuid
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Header, Response

from memory.types import RecallHit
from serve.answers import (
    CHAT_STREAM,
    TEXT_STREAM,
    Prepared,
    ServingContext,
    complete_answer,
    envelope_of,
    facts_of,
    open_stream,
    record,
)
from serve.engine import AdapterRef, GenerateRequest, PromptTooLongError
from serve.errors import ConflictError, NotFoundError, UnsupportedError
from serve.parts import Json, Parts
from serve.rag import STOPS_AFTER_PASSAGES, Augmented, Message, build_query, is_follow_up, question_of
from serve.recording import note_request
from serve.router import (
    ALIASES,
    BASE,
    PUT_AWAY_STATES,
    QuarantinedModelError,
    UnknownModelError,
    is_alias,
    is_for_canary,
    requested_name,
    resolve_version,
)
from serve.schemas_openai import (
    ChatRequest,
    ChatResponse,
    CompletionRequest,
    CompletionResponse,
    EmbeddingRequest,
    EmbeddingResponse,
    ModelInfo,
    ModelList,
    Sampling,
)
from serve.stream import WholeAnswer

EMBEDDING_MODEL = "all-MiniLM-L6-v2"
VERSION_HEADER = "X-Model-Version"
QUESTION_KEY = "question"
_INSTRUCTION_TOKENS = 64
"""Room for the retrieval instruction and the frames of the chat template."""
MAX_CHARS_PER_TOKEN = 64
"""Far above what any tokenizer packs into a token."""

VersionHeader = Annotated[str | None, Header(alias=VERSION_HEADER, description="Wins over the body's model.")]
TenantHeader = Annotated[
    str | None, Header(alias="OpenAI-Organization", max_length=200, description="For whom; see agent.feedback.")
]


def build_chat_router(context: ServingContext) -> APIRouter:
    """The routes that OpenAI's clients call."""
    router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])
    parts = context.parts

    @router.post("/chat/completions", response_model=ChatResponse)
    async def chat(
        body: ChatRequest,
        response: Response,
        behind: BackgroundTasks,
        version: VersionHeader = None,
        tenant: TenantHeader = None,
    ) -> Any:
        """Answer a conversation, from memory and weights; streamed as server-sent events if `stream` is true."""
        prepared = await _prepare_chat(context, body, version, tenant)
        headers = {VERSION_HEADER: prepared.version}
        if body.stream:
            return await open_stream(context, prepared, options=body.stream_options, kind=CHAT_STREAM, headers=headers)
        response.headers.update(headers)
        answer = await complete_answer(context, prepared)
        message = {"role": "assistant", "content": answer.text}
        envelope = envelope_of(context, prepared, "chatcmpl")
        behind.add_task(_record_behind, context, prepared, envelope["id"], message["content"], answer)
        return {
            **envelope,
            "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason}],
            **facts_of(context, prepared, [answer]),
        }

    @router.post("/completions", response_model=CompletionResponse)
    async def complete(body: CompletionRequest, response: Response, version: VersionHeader = None) -> Any:
        """Continue a text as it is: no chat template, no retrieval."""
        start = context.clock()
        refuse_huge(max(map(len, body.prompts())), max_model_len=context.max_model_len)
        model, version_id, adapter, is_judged = await _find_version(parts, body.model, version, key=body.user)
        requests = [
            Prepared(
                _build_request(context, body, prompt, adapter),
                model,
                version_id,
                [],
                started_at=start,
                is_judged=is_judged,
            )
            for prompt in body.prompts()
        ]
        headers = {VERSION_HEADER: version_id}
        if body.stream:
            if len(requests) > 1:
                raise UnsupportedError("prompt is a list, but a stream has one answer; send one prompt", param="prompt")
            return await open_stream(
                context, requests[0], options=body.stream_options, kind=TEXT_STREAM, headers=headers
            )
        response.headers.update(headers)
        answers = await asyncio.gather(*(complete_answer(context, prepared) for prepared in requests))
        choices = [
            {"index": index, "text": answer.text, "finish_reason": answer.finish_reason}
            for index, answer in enumerate(answers)
        ]
        facts = facts_of(context, requests[0], answers)
        return {**envelope_of(context, requests[0], "cmpl"), "choices": choices, **facts}

    @router.post("/embeddings", response_model=EmbeddingResponse)
    async def embed(body: EmbeddingRequest) -> Any:
        """Unit vectors of the retrieval index's embedder."""
        if body.model != EMBEDDING_MODEL:
            raise UnknownModelError(f"model {body.model!r} does not embed. Use {EMBEDDING_MODEL!r}.")
        vectors = await parts.embed(body.texts())
        if body.dimensions not in (None, len(vectors[0])):
            raise UnsupportedError(
                f"dimensions = {body.dimensions}: the embedder gives {len(vectors[0])}; leave the field out",
                param="dimensions",
            )
        num_tokens = sum(await parts.count_tokens(body.texts()))
        encode = _base64 if body.encoding_format == "base64" else list
        return {
            "model": EMBEDDING_MODEL,
            "data": [{"index": index, "embedding": encode(vector)} for index, vector in enumerate(vectors)],
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }

    @router.get("/models", response_model=ModelList)
    async def models() -> Any:
        """The names that `model` takes."""
        return {"data": await _model_infos(parts)}

    @router.get("/models/{model:path}", response_model=ModelInfo)
    async def model_info(model: str) -> Any:
        """One of them."""
        infos = await _model_infos(parts)
        found = next((info for info in infos if info["id"] == model), None)
        if found is None:
            raise UnknownModelError(f"model {model!r} does not exist. Use one of {', '.join(i['id'] for i in infos)}.")
        return found

    return router


async def _model_infos(parts: Parts) -> list[Json]:
    listing = await parts.versions()
    pointers = await parts.pointers()
    infos: list[Json] = [
        {"id": alias, "version": version} for alias, slot in ALIASES.items() if (version := pointers.get(slot))
    ]
    infos.append({"id": BASE, "version": BASE})
    infos.extend(
        {"id": row["id"], "version": row["id"], "created": int(row.get("created_at") or 0)}
        for row in listing["versions"]
        if _is_servable(row)
    )
    infos.append({"id": EMBEDDING_MODEL})
    return [{"object": "model", "created": 0, "owned_by": "autonomous-learning", **info} for info in infos]


def _is_servable(row: Json) -> bool:
    """Whether a ledger row is a version that may answer: a run has no adapter yet, and what was put away answers nobody. The
    genesis, which has no parent, never gets an adapter.
    """
    is_version = row.get("adapter_number") is not None or row.get("parent") is None
    return is_version and row["state"] not in PUT_AWAY_STATES


async def _find_version(
    parts: Parts, model: str | None, header: str | None, *, key: str | None
) -> tuple[str, str, AdapterRef | None, bool]:
    """(name asked for, version id, adapter, whether V2 was asked for). `key` is who asks.

    Raises UnknownModelError, QuarantinedModelError.
    """
    name = requested_name(model, header)
    known: list[str] = []
    if not is_alias(name):
        try:
            row = await parts.version(name)
            if row["state"] in PUT_AWAY_STATES:
                raise QuarantinedModelError(name)
            known = [str(row["id"])] if _is_servable(row) else []
        except NotFoundError:
            known = []
    pointers = await parts.pointers()
    version = resolve_version(model, header=header, pointers=pointers, versions=known)
    is_judged = ALIASES.get(name.lower()) == "v2"
    canary, percent = pointers.get("v1"), await parts.canary_percent() if is_judged else 0.0
    if canary and percent and is_for_canary(key or uuid.uuid4().hex, version=canary, percent=percent):
        version = canary
    return name, version, None if version == BASE else await parts.version_adapter(version), is_judged


async def _record_behind(
    context: ServingContext, prepared: Prepared, response_id: str, text: str, answer: WholeAnswer
) -> None:
    """In the event loop: a plain function would be given a thread."""
    record(context, prepared, response_id, text, answer)


async def _prepare_chat(context: ServingContext, body: ChatRequest, header: str | None, tenant: str | None) -> Prepared:
    start = context.clock()
    key = body.user or body.session
    model, version, adapter, is_judged = await _find_version(context.parts, body.model, header, key=key)
    messages = body.plain_messages()
    refuse_huge(sum(len(message["content"]) for message in messages), max_model_len=context.max_model_len)
    body = body.model_copy(update={"max_tokens": body.max_completion_tokens or body.max_tokens})
    question = question_of(messages)
    augmented, retrieval_s = Augmented(messages=messages, sources=[]), 0.0
    if body.retrieval and question and question.strip():
        asked_at = context.clock()
        hits = await _recall(context, question, session=body.session)
        retrieval_s = context.clock() - asked_at
        augmented = await _augment(context, messages, hits, max_tokens=body.max_tokens)
    prompt = await context.parts.render_chat(augmented.messages)
    note = note_request(
        context.parts.feedback,
        question,
        tenant=tenant,
        user=body.user,
        is_stored=body.store,
        is_retrieved=body.retrieval,
    )
    request = replace(_build_request(context, body, prompt, adapter), has_log_prob=note is not None)
    if augmented.sources:
        request = replace(request, stop=(*request.stop, *STOPS_AFTER_PASSAGES))
    return Prepared(
        request,
        model,
        version,
        augmented.sources,
        started_at=start,
        retrieval_s=retrieval_s,
        is_judged=is_judged,
        note=note,
    )


async def _recall(context: ServingContext, question: str, *, session: str | None) -> list[RecallHit]:
    previous = None
    if session is not None:
        if is_follow_up(question):
            previous = await context.parts.recall_session(session, QUESTION_KEY)
        with suppress(ConflictError):  # pinned notes have all places: the answer does not depend on it
            await context.parts.remember(session, QUESTION_KEY, question)
    config = context.rag.config
    query = build_query(question, previous=previous)
    return await context.parts.search(query, k=config.num_passages, min_cosine=config.min_cosine)


async def _augment(
    context: ServingContext, messages: list[Message], hits: list[RecallHit], *, max_tokens: int | None
) -> Augmented:
    """Passages within the room that question and answer leave in the context."""
    if not hits:
        return Augmented(messages=messages, sources=[])
    (num_tokens,) = await context.parts.count_tokens([await context.parts.render_chat(messages)])
    answer_tokens = min(max_tokens or context.http.default_max_tokens, context.max_model_len // 2)
    room = context.max_model_len - num_tokens - answer_tokens - _INSTRUCTION_TOKENS
    return await context.rag.augment(
        messages, hits=hits, count_tokens=context.parts.count_tokens, budget_tokens=max(0, room)
    )


def refuse_huge(num_chars: int, *, max_model_len: int) -> None:
    """Refuse what no tokenizer could fit before it is tokenized: 60 MB would hold the HTTP process for a minute."""
    if num_chars > MAX_CHARS_PER_TOKEN * max_model_len:
        raise PromptTooLongError(
            f"the prompt has {num_chars:,} characters, but the context holds {max_model_len} tokens; shorten it"
        )


def _build_request(context: ServingContext, body: Sampling, prompt: str, adapter: AdapterRef | None) -> GenerateRequest:
    """The engine's request; the engine itself cuts `max_tokens` to what the context leaves."""
    return GenerateRequest(
        request_id=uuid.uuid4().hex,
        prompt=prompt,
        max_tokens=body.max_tokens or context.http.default_max_tokens,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        stop=body.stops(),
        seed=body.seed,
        adapter=adapter,
    )


def _base64(vector: list[float]) -> str:
    """Little-endian float32, as OpenAI's client decodes it."""
    values = array.array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode("ascii")
