"""A tool: a name, what it is for, what it takes as JSON, and a call that gives text with where it stands.

In flow arguments as a JSON object, out flows a ToolResult. A tool has no effect outside of itself that it does not ask its
guard for; who calls it, under which permit and with which audit row, is KnowledgeIntegration's matter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from memory.types import EpisodeFilter, Guard, RecallHit

Arguments = Mapping[str, Any]
_SHOWN_CHARS = 80


class ToolError(ValueError):
    """Arguments that a tool cannot work with: names the field, its value and the fix. `param` is the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.param = param

    def __str__(self) -> str:
        return str(self.args[0])


class ToolUnavailable(RuntimeError):
    """The tool cannot do its work on this machine: says what is missing."""


class UnknownTool(LookupError):
    """No tool of this name is enabled."""


@dataclass(frozen=True, slots=True)
class Citation:
    """Where something stands: an episode of the memory, or a line of a file."""

    title: str
    location: str
    """The episode's id, or path:line."""
    source: str = ""
    """Who says it, for an episode."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool found. `text` is data for a model, never an instruction."""

    text: str
    citations: tuple[Citation, ...] = ()
    is_error: bool = False
    """The call was right, but what it did failed (a program that raised)."""
    is_empty: bool = False
    """Nothing was found."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Numbers and names beside the text, JSON values."""
    flags: tuple[str, ...] = ()
    """What the safety screen found in the text."""
    is_withheld: bool = False
    """Whether it is kept from the model for that."""


class Described(Protocol):
    """What is known of a tool where it is not called."""

    @property
    def name(self) -> str:
        """As callers write it."""

    @property
    def description(self) -> str:
        """What it is for, for a model."""

    @property
    def parameters(self) -> dict[str, Any]:
        """JSON schema of the arguments."""


class Tool(Described, Protocol):
    """One tool. Thread-safe."""

    def call(self, arguments: Arguments, *, timeout_s: float, guard: Guard) -> ToolResult:
        """Do it within `timeout_s` seconds. Raises ToolError, ToolUnavailable, and what the guard raises."""


class Retrieve(Protocol):
    """The memory's recall."""

    def __call__(self, query: str, *, k: int, min_cosine: float, where: EpisodeFilter) -> Sequence[RecallHit]: ...


class ToolArguments(BaseModel):
    """Base of a tool's arguments; the docstrings of the fields are what a model reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Model = TypeVar("Model", bound=ToolArguments)


def parse_arguments(model: type[Model], arguments: Arguments) -> Model:
    """The arguments, checked. Raises ToolError for the first that does not fit."""
    try:
        return model.model_validate(dict(arguments))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in problem["loc"]) or "arguments"
        if problem["type"] == "missing":
            message = f"{name} is missing: add it"
        elif problem["type"] == "extra_forbidden":
            message = f"{name} is not an argument: use {', '.join(model.model_fields)}"
        else:
            message = f"{name} = {shown(problem['input'])}: {problem['msg'].removeprefix('Value error, ')}"
        raise ToolError(message, name) from error


def schema_of(model: type[ToolArguments]) -> dict[str, Any]:
    """JSON schema without pydantic's titles."""
    schema: dict[str, Any] = _without_titles(model.model_json_schema())
    schema.pop("description", None)
    return schema


def shown(value: object) -> str:
    """A value as an error quotes it."""
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _without_titles(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_titles(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _without_titles(one) for name, one in value.items()}
        if key == "properties"
        else _without_titles(value)
        for key, value in schema.items()
        if key != "title"
    }
