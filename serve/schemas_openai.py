"""Requests and responses in OpenAI's shapes, with our extensions: retrieval, session, version, sources, timings.

Fields that do not change an answer are accepted and ignored; those that would change it are refused with the reason.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from serve.schemas import Request, Response

MAX_BATCH = 256


def _flatten(content: object) -> object:
    """OpenAI's list of content parts -> one text. Raises ValueError for parts that are not text."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return content
    for index, part in enumerate(content):
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise ValueError(f'part {index} is not text; send {{"type": "text", "text": ...}} or a plain string')
    return "".join(part["text"] for part in content)


class ChatMessage(Request):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    """Who speaks. "developer" is read as "system"."""
    content: Annotated[str, BeforeValidator(_flatten)]
    """Text, or a list of text parts."""
    name: str | None = None
    """Accepted and ignored."""
    refusal: str | None = None
    """Accepted and ignored: clients send back the messages that they received."""


class StreamOptions(Request):
    """Options of a stream."""

    include_usage: bool = False
    """Send the usage in a chunk of its own, without choices, as OpenAI does; otherwise the last choice carries it."""
    include_obfuscation: bool | None = None
    """Accepted and ignored."""


class Sampling(Request):
    """What chat and plain completions have in common."""

    model: str | None = Field(None, examples=["v2"])
    """"v2" (production, the default; also "autonomous"), "v1" (experimental), "base" (the frozen original) or a version id.
    The header X-Model-Version wins. What is in quarantine ("v3") is refused with 403."""
    max_tokens: int | None = Field(None, ge=1)
    """Most tokens of the answer."""
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    """0, the default, always takes the likeliest token."""
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    """Nucleus sampling: share of the probability mass."""
    stop: list[str] | str | None = Field(None, max_length=256)
    """The answer ends before any of these (at most 8)."""
    seed: int | None = Field(None, ge=0, lt=2**63)
    """Makes sampling repeatable."""
    stream: bool | None = False
    """Server-sent events instead of one object."""
    stream_options: StreamOptions | None = None
    """Only with stream."""
    n: int | None = Field(None, ge=1, le=1)
    """Only 1."""
    presence_penalty: float | None = Field(None, ge=0, le=0)
    """Only 0."""
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    """Only 0."""
    user: str | None = None
    """Who asks: a canary answers the same users always. Kept with the request as a pseudonym, so that it can be erased by the
    name.
    """
    metadata: dict[str, str] | None = None
    """Accepted and ignored."""
    store: bool | None = None
    """false: nothing is kept of the request, so there can be no feedback on it."""
    service_tier: str | None = None
    """Accepted and ignored."""
    safety_identifier: str | None = None
    """Accepted and ignored."""
    prompt_cache_key: str | None = None
    """Accepted and ignored."""

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: list[str] | str | None) -> list[str] | str | None:
        if isinstance(stop, list) and len(stop) > 8:
            raise ValueError("at most 8 stop strings; send fewer")
        if stop is not None and "" in ([stop] if isinstance(stop, str) else stop):
            raise ValueError("a stop string is empty; leave it out")
        return stop

    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_BATCH)
    """The conversation, oldest first; the last user message is the question."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """OpenAI's newer name of max_tokens; wins over it."""
    logprobs: Literal[False] | None = None
    """Not offered."""
    response_format: dict[str, Any] | None = None
    """Only {"type": "text"}."""
    retrieval: bool = True
    """Put recalled passages before the question, when any is near enough."""
    session: str | None = Field(None, min_length=1, max_length=128)
    """Names a conversation: a short follow-up is searched for together with the question before it."""

    @field_validator("response_format")
    @classmethod
    def _text_only(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and value.get("type") != "text":
            raise ValueError('only {"type": "text"} is offered; leave the field out')
        return value

    def plain_messages(self) -> list[dict[str, str]]:
        """Messages as the chat template takes them."""
        return [{"role": m.role.replace("developer", "system"), "content": m.content} for m in self.messages]


class CompletionRequest(Sampling):
    """POST /v1/completions: the prompt goes to the model as it is, without template and without retrieval."""

    prompt: str | list[str] = Field(max_length=1 << 22)
    """One prompt, or up to 16 (not with stream)."""
    echo: Literal[False] | None = None
    """Not offered."""
    logprobs: None = None
    """Not offered."""
    best_of: int | None = Field(None, ge=1, le=1)
    """Only 1."""
    suffix: None = None
    """Not offered."""

    @field_validator("prompt")
    @classmethod
    def _few_prompts(cls, prompt: str | list[str]) -> str | list[str]:
        if isinstance(prompt, list) and not 1 <= len(prompt) <= 16:
            raise ValueError(f"{len(prompt)} prompts; send between 1 and 16")
        return prompt

    def prompts(self) -> list[str]:
        """The prompts as a list."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class EmbeddingRequest(Request):
    """POST /v1/embeddings."""

    input: str | list[str]
    """One text, or up to 256."""
    model: str = "all-MiniLM-L6-v2"
    """The embedder of the retrieval index."""
    encoding_format: Literal["float", "base64"] = "float"
    """base64: little-endian float32."""
    dimensions: int | None = None
    """Only the embedder's own dimension."""
    user: str | None = None
    """Accepted and ignored."""

    @field_validator("input")
    @classmethod
    def _few_texts(cls, value: str | list[str]) -> str | list[str]:
        texts = [value] if isinstance(value, str) else value
        if not 1 <= len(texts) <= MAX_BATCH:
            raise ValueError(f"{len(texts)} texts; send between 1 and {MAX_BATCH}")
        if not all(texts):
            raise ValueError("a text is empty; leave it out")
        return value

    def texts(self) -> list[str]:
        """The texts as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


class Usage(Response):
    """Tokens, in the serving model's count."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int


class SourceInfo(Response):
    """A passage that was in the prompt."""

    episode_id: str
    document_id: str
    title: str
    source: str
    cosine: float
    text: str


class Timings(Response):
    """Seconds since the request arrived; `retrieval_s` is the search alone."""

    retrieval_s: float
    first_token_s: float
    total_s: float


class AnswerMessage(Response):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(Response):
    """One answer; there is always exactly one."""

    index: int = 0
    message: AnswerMessage
    finish_reason: str


class ChatResponse(Response):
    """A whole answer. A stream sends `chat.completion.chunk`s; the last one carries usage, version, sources, times."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    """The name that was asked for."""
    version: str
    """The version id that answered, or "base"."""
    choices: list[ChatChoice]
    usage: Usage
    sources: list[SourceInfo]
    """Passages in the prompt; empty when retrieval was off or nothing was near enough."""
    timings: Timings


class CompletionChoice(Response):
    """One continuation."""

    index: int
    text: str
    finish_reason: str


class CompletionResponse(Response):
    """Continuations, one per prompt."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    version: str
    choices: list[CompletionChoice]
    usage: Usage
    timings: Timings


class EmbeddingData(Response):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingResponse(Response):
    """Unit vectors in the order of the input."""

    object: Literal["list"] = "list"
    model: str
    data: list[EmbeddingData]
    usage: Usage


class ModelInfo(Response):
    """A name that `model` takes."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "autonomous-learning"
    version: str | None = None
    """The version id behind the name."""


class ModelList(Response):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]
