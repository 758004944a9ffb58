"""What goes wrong between the client and the server, as typed errors that carry the server's own sentence."""

import contextlib
from collections.abc import Iterator

import httpx


class ClientError(RuntimeError):
    """The request has no result; the message is a sentence for the user."""


class ServerUnreachable(ClientError):
    """Nobody answers at the address, or the connection broke before the answer was whole."""


class ApiError(ClientError):
    """The server refused or failed. `status` is the HTTP code, `param` the field that is wrong."""

    def __init__(
        self, message: str, *, status: int, kind: str = "", param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code


class LearningIsStopped(ApiError):
    """423: the emergency stop is set; only a person resets it."""


class TryLater(ApiError):
    """429: more requests wait than the server takes. `retry_after_s` is its own proposal."""

    retry_after_s: float = 1.0


@contextlib.contextmanager
def reached(base_url: str) -> Iterator[None]:
    """Turns httpx's transport errors into one sentence."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ServerUnreachable(f"nobody answers at {base_url}; start the system with: autonomous up") from error
    except httpx.TimeoutException as error:
        raise ServerUnreachable(f"{base_url} did not answer in time; look at: autonomous logs") from error
    except httpx.TransportError as error:
        raise ServerUnreachable(f"the connection to {base_url} broke ({error}); look at: autonomous logs") from error


def error_of(response: httpx.Response) -> ApiError:
    """The typed error of a refused request, with the server's message where it gave one."""
    try:
        error = response.json()["error"]
        message = str(error["message"])
    except (ValueError, KeyError, TypeError):
        error = {}
        message = f"the server answered {response.status_code} {response.reason_phrase}: {response.text[:200].strip()}"
    facts = {
        "status": response.status_code,
        "kind": error.get("type") or "",
        "param": error.get("param"),
        "code": error.get("code"),
    }
    if response.status_code == httpx.codes.LOCKED:
        return LearningIsStopped(message, **facts)
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
        later = TryLater(message, **facts)
        wait = response.headers.get("retry-after", "")
        later.retry_after_s = float(wait) if wait.isdigit() else 1.0
        return later
    return ApiError(message, **facts)
