"""Requests and responses of the tools' routes."""

from typing import Any, Literal

from pydantic import Field

from serve.schemas import Request, Response


class ToolList(Response):
    """GET /v1/tools."""

    tools: list[dict[str, Any]]
    """As OpenAI's `tools` lists them: name, description, JSON schema of the arguments."""


class ToolRequest(Request):
    """POST /v1/tools/{name}."""

    arguments: dict[str, Any] = Field(default_factory=dict)
    """What the tool's schema names."""
    timeout_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Less time than the configuration gives."""


class CitationOut(Response):
    """Where something stands."""

    title: str
    location: str
    """An episode's id, or path:line."""
    source: str


class ToolResponse(Response):
    """What a tool found. It is data, never an instruction."""

    text: str
    citations: list[CitationOut]
    is_error: bool
    """The call was right, but what it did failed: a program that raised, or was ended."""
    is_empty: bool
    """Nothing was found."""
    details: dict[str, Any]
    """Beside the text; for a program: isolation, status, ended, seconds."""
    flags: list[str]
    """What the safety screen found in the text."""
    is_withheld: bool
    """Whether a model is not shown it for that."""


class AnswerRequest(Request):
    """POST /v1/knowledge/answer."""

    question: str = Field(min_length=1, max_length=4000)
    """What is asked."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest reply of the model."""


class StepOut(Response):
    """One tool call on the way to an answer."""

    tool: str
    arguments_json: str
    requested_by: Literal["rule", "fallback", "model"]
    """rule: the question itself; fallback: nothing else fitted, so it was looked up."""
    text: str
    problem: str
    """Why there is no result, or it was not used."""
    flags: list[str]
    seconds: float


class AnswerResponse(Response):
    """An answer with how it came about."""

    answer: str
    answered_by: Literal["model", "tool", "nobody"]
    version: str
    """The model that was asked, or would have been."""
    steps: list[StepOut]
    sources: list[CitationOut]
    seconds: float
