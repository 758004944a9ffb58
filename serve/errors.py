"""One mapping from exceptions to HTTP: every error has OpenAI's shape and a sentence that names field, value and fix.

In: an exception of a route, of request validation, or of the parts behind the routes. Out: status and
{"error": {"message", "type", "param", "code"}}.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from autonomous.safety.latch import LearningStopped
from serve.engine import EngineDeadError, PromptTooLongError, UnknownAdapterError
from serve.router import QuarantinedModelError, UnknownModelError

_log = logging.getLogger(__name__)
_MAX_SHOWN_CHARS = 80
RETRY_AFTER_S = 1


class NotFoundError(LookupError):
    """404: no document, run or version has this id."""


class ConflictError(RuntimeError):
    """409: the request does not fit the present state (already learning, nothing to learn, a stale transition)."""


class OverloadedError(RuntimeError):
    """429: more requests wait than are taken; try again later."""


class BudgetSpentError(RuntimeError):
    """429: a budget has no room until its window begins anew, in `retry_after_s`."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReadyError(RuntimeError):
    """503: a part that the request needs is starting or being replaced."""


class StorageAwayError(RuntimeError):
    """503: the memory's database server does not answer. Not waited for: it may be away for hours."""


class StorageFullError(RuntimeError):
    """507: there is no room for a write; nothing of it was kept."""


class ErasureError(RuntimeError):
    """500: something of what was to be erased is still found; the message says what to do."""


class UnsupportedError(ValueError):
    """400: a request that is well formed but asks for what this server does not do; `param` is the field."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class ApiError:
    """What a client is told."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None

    def to_body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def to_event(self) -> dict[str, Any]:
        """The same inside a stream, whose HTTP status has gone out already: the status is a field."""
        return {"error": {**self.to_body()["error"], "status": self.status}}


_RULES: tuple[tuple[type[Exception], int, str, str | None, str | None], ...] = (
    (UnknownModelError, 404, "invalid_request_error", "model", "model_not_found"),
    (QuarantinedModelError, 403, "permission_error", "model", "model_quarantined"),
    (PromptTooLongError, 400, "invalid_request_error", "messages", "context_length_exceeded"),
    (UnknownAdapterError, 404, "invalid_request_error", "model", "adapter_not_found"),
    (NotFoundError, 404, "invalid_request_error", None, "not_found"),
    (ConflictError, 409, "conflict_error", None, "conflict"),
    (LearningStopped, 423, "stopped_error", None, "learning_stopped"),
    (OverloadedError, 429, "rate_limit_error", None, "overloaded"),
    (BudgetSpentError, 429, "rate_limit_error", None, "budget_spent"),
    (StorageAwayError, 503, "storage_error", None, "storage_away"),
    (StorageFullError, 507, "storage_error", None, "storage_full"),
    (ErasureError, 500, "server_error", None, "erasure_incomplete"),
    (NotReadyError, 503, "unavailable_error", None, "not_ready"),
    (EngineDeadError, 503, "unavailable_error", None, "engine_not_ready"),
    (TimeoutError, 504, "timeout_error", None, "timeout"),
    (ValueError, 400, "invalid_request_error", None, "invalid_value"),
)
"""(exception, status, type, param, code), the first that fits counts."""

_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


def describe_error(problem: BaseException) -> ApiError:
    """The client's view of an exception; an unknown one is a 500 that gives nothing away."""
    if isinstance(problem, RequestValidationError):
        return _describe_validation(problem)
    if isinstance(problem, HTTPException):
        return _describe_http(problem)
    for kind, status, error_type, param, code in _RULES:
        if isinstance(problem, kind):
            message = str(problem) or HTTPStatus(status).phrase
            return ApiError(status, message, error_type, getattr(problem, "param", param), code)
    return ApiError(
        500,
        "Internal error. The server's log has the details; the request can be repeated.",
        "server_error",
        None,
        "internal",
    )


def _describe_http(problem: HTTPException) -> ApiError:
    cause = problem.__cause__
    if problem.status_code == 400 and isinstance(cause, UnicodeDecodeError):
        message = f"The body is not valid UTF-8: {cause.reason} at byte {cause.start}. Encode the JSON as UTF-8."
        return ApiError(400, message, "invalid_request_error", "body", "invalid_json")
    if problem.status_code == 400 and isinstance(cause, RecursionError):
        return ApiError(
            400, "The JSON body is nested too deeply. Flatten it.", "invalid_request_error", "body", "invalid_json"
        )
    code = _HTTP_CODES.get(problem.status_code)
    return ApiError(problem.status_code, str(problem.detail), "invalid_request_error", None, code)


def _describe_validation(problem: RequestValidationError) -> ApiError:
    """All problems in one message; `param` names the first field."""
    errors = list(problem.errors())
    first = errors[0]
    if first["type"] == "json_invalid":
        return _describe_json(first, problem.body)
    if first["loc"] == ("body",) and first["type"] in ("missing", "model_attributes_type"):
        message = (
            "The body is missing or is not a JSON object. Send one, with the header Content-Type: application/json."
        )
        return ApiError(400, message, "invalid_request_error", "body", "invalid_body")
    sentences = dict.fromkeys(_sentence(error) for error in errors)
    return ApiError(400, " ".join(sentences), "invalid_request_error", _field(first["loc"]), "invalid_value")


def _describe_json(error: Mapping[str, Any], document: object) -> ApiError:
    position = int(error["loc"][1])
    where = f"character {position}"
    if isinstance(document, str):
        line = document.count("\n", 0, position) + 1
        column = position - document.rfind("\n", 0, position)
        where += f" (line {line}, column {column})"
    message = f"The body is not valid JSON at {where}: {error['ctx']['error']}. Correct it there and send it again."
    return ApiError(400, message, "invalid_request_error", "body", "invalid_json")


def _sentence(error: Mapping[str, Any]) -> str:
    field, problem = _field(error["loc"]), str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{field} is missing: add it."
    if error["type"] == "extra_forbidden":
        return f"{field} is not a known field: remove it or correct its name (the fields are listed at /docs)."
    return f"{field} = {_shown(error.get('input'))}: {problem}."


def _field(loc: Sequence[Any]) -> str:
    """("body", "messages", 0, "role") -> "messages[0].role"."""
    parts = loc[1:] if len(loc) > 1 and loc[0] in ("body", "query", "path", "header") else loc
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path or "body"


def _shown(value: object) -> str:
    """A value as it is quoted in a message: short, and printable even if it holds lone surrogates."""
    text = repr(value).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}..."


def to_response(problem: BaseException) -> JSONResponse:
    """The HTTP response of an exception."""
    error = describe_error(problem)
    headers = dict(getattr(problem, "headers", None) or {})
    if error.status in (429, 503):
        headers["Retry-After"] = str(math.ceil(getattr(problem, "retry_after_s", RETRY_AFTER_S)))
    return JSONResponse(error.to_body(), status_code=error.status, headers=headers)


def install_error_handlers(app: FastAPI) -> None:
    """Make every route of `app` answer errors in this shape."""

    async def handle(request: Request, problem: Exception) -> JSONResponse:
        response = to_response(problem)
        if response.status_code >= 500:
            _log.warning(
                "%s %s failed: %s: %s", request.method, request.url.path, type(problem).__name__, problem,
                exc_info=problem if response.status_code == 500 else None,
            )  # fmt: skip
        return response

    for kind in (*(rule[0] for rule in _RULES), RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, handle)
