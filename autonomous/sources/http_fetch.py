"""One HTTP answer within bounds: of where it comes from, how long it is, how long it takes, how often it is redirected.

The name is resolved and checked for every request, redirects included, and the connection goes to the checked address. An
answer is asked for without compression, so that what arrives is what is held. Nothing of a query, a name or a token is in
any error or log.
"""

import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import httpx

from autonomous.sources.batch import SourceProblem
from autonomous.sources.config import shown_url
from autonomous.sources.http_address import Permits, Resolve, checked_address, is_public, resolve_host
from memory.store import no_guard
from memory.types import Guard

logger = logging.getLogger(__name__)

MAX_REDIRECTS = 5
SILENCE_S = 30.0
"""Longest wait for the next bytes."""
USER_AGENT = "autonomous-learning"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class FetchBounds:
    """What one answer may take."""

    max_bytes: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """`body` is empty if `is_unchanged`: the server has nothing newer than what was named."""

    url: str
    """The address that answered, behind redirects."""
    body: bytes
    content_type: str
    charset: str
    etag: str
    last_modified: str
    next_link: str
    """The address of the next page as a header gives it; empty if none."""
    is_unchanged: bool = False


class Fetcher:
    """See the module. `resolve` and `permits` say where a name leads and whether that may be; `token_env` names the variable
    with a token, which only the host of `origin` sees.
    """

    def __init__(
        self,
        bounds: FetchBounds,
        *,
        origin: str,
        token_env: str = "",
        resolve: Resolve = resolve_host,
        permits: Permits = is_public,
    ) -> None:
        self._bounds = bounds
        self._origin = _parsed(origin)
        self._token_env = token_env
        self._resolve = resolve
        self._permits = permits

    def fetch(self, url: str, *, etag: str = "", last_modified: str = "", guard: Guard = no_guard) -> Answer:
        """GET, redirects followed. `guard` is asked before each request and while the answer comes. Raises SourceProblem."""
        named = {"If-None-Match": etag, "If-Modified-Since": last_modified}
        headers = {name: value for name, value in named.items() if value}
        first = url
        # The transport alone: a client logs whole addresses. Without a proxy: it would resolve names past the check.
        transport = httpx.HTTPTransport(trust_env=False)
        with transport, _deadline(self._bounds.timeout_s) as watch:
            for _ in range(MAX_REDIRECTS + 1):
                guard()
                target = _parsed(url)
                has_token = self._token_env and _same_origin(target, self._origin)
                token = _token(self._token_env) if has_token else {}
                answer = self._get(transport, target, headers={**headers, **token}, watch=watch, guard=guard)
                if isinstance(answer, Answer):
                    return answer
                url = joined(url, answer)
        raise SourceProblem(f"{shown_url(first)} redirects more than {MAX_REDIRECTS} times: give the last address")

    def _get(
        self,
        transport: httpx.HTTPTransport,
        target: httpx.URL,
        *,
        headers: Mapping[str, str],
        watch: "_Watch",
        guard: Guard,
    ) -> Answer | str:
        """The answer, or the address that it redirects to."""
        shown = shown_url(str(target))
        port = target.port or (443 if target.scheme == "https" else 80)
        address = checked_address(target.host, port, resolve=self._resolve, permits=self._permits)
        sent = {
            **headers, "Host": target.netloc.decode("ascii"), "User-Agent": USER_AGENT, "Accept-Encoding": "identity",
            "Accept": "application/json, application/x-ndjson, text/*;q=0.9, */*;q=0.1", "Connection": "close",
        }  # fmt: skip
        timeout = httpx.Timeout(min(SILENCE_S, self._bounds.timeout_s)).as_dict()
        extensions = {"sni_hostname": target.host, "trace": watch.see, "timeout": timeout}
        request = httpx.Request("GET", target.copy_with(host=address), headers=sent, extensions=extensions)
        try:
            with closing(transport.handle_request(request)) as response:
                if response.status_code in _REDIRECTS and (location := response.headers.get("location")):
                    return str(location)
                if response.status_code == httpx.codes.NOT_MODIFIED:
                    return Answer(str(target), b"", "", "", "", "", "", is_unchanged=True)
                if response.status_code != httpx.codes.OK:
                    raise SourceProblem(
                        f"{shown} answers {response.status_code} {response.reason_phrase}{_hint(response)}"
                    )
                return self._read(response, target, guard)
        except httpx.HTTPError as error:
            if watch.is_over:
                raise SourceProblem(
                    f"{shown} did not answer whole within {self._bounds.timeout_s:g} s: raise timeout_s, or give a smaller "
                    "answer"
                ) from None
            logger.info("fetch failed url=%s error=%s", shown, type(error).__name__)
            raise SourceProblem(f"{shown} cannot be read ({_without(str(error), target)}); it is tried again") from None

    def _read(self, response: httpx.Response, target: httpx.URL, guard: Guard) -> Answer:
        shown = shown_url(str(target))
        coding = response.headers.get("content-encoding", "identity").lower()
        if coding not in ("identity", ""):
            raise SourceProblem(
                f"{shown} answers in {coding} though it was asked not to: give an address that does not"
            )
        body = bytearray()
        announced = response.headers.get("content-length", "")
        too_long = announced.isdigit() and int(announced) > self._bounds.max_bytes
        for piece in () if too_long else response.iter_raw():
            guard()
            body += piece
            if len(body) > self._bounds.max_bytes:
                too_long = True
                break
        if too_long:
            size = f"{int(announced):,} bytes" if announced.isdigit() else f"more than {self._bounds.max_bytes:,} bytes"
            raise SourceProblem(
                f"{shown} answers with {size}, the limit max_response_bytes is {self._bounds.max_bytes:,}: raise it, or give "
                "an address with smaller pages"
            )
        content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        return Answer(
            url=str(target),
            body=bytes(body),
            content_type=content_type,
            charset=response.charset_encoding or "",
            etag=response.headers.get("etag", "")[:1000],
            last_modified=response.headers.get("last-modified", "")[:100],
            next_link=response.links.get("next", {}).get("url", ""),
        )


class _Watch:
    """Ends the connection of a fetch that lasts too long: one byte now and then would keep it open for ever."""

    def __init__(self) -> None:
        self.is_over = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def see(self, event: str, info: Mapping[str, Any]) -> None:
        """What httpcore tells of a request."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket")
                if self.is_over:
                    self._end()

    def stop(self) -> None:
        """Time is over."""
        with self._lock:
            self.is_over = True
            self._end()

    def _end(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


@contextmanager
def _deadline(timeout_s: float) -> Iterator[_Watch]:
    watch = _Watch()
    timer = threading.Timer(timeout_s, watch.stop)
    timer.daemon = True
    timer.start()
    try:
        yield watch
    finally:
        timer.cancel()


def _parsed(url: str) -> httpx.URL:
    try:
        target = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise SourceProblem(
            f"{shown_url(url)[:200]!r} is no address: correct the url or its server's redirect"
        ) from error
    if target.scheme not in ("http", "https") or not target.host:
        raise SourceProblem(f"{shown_url(url)[:200]!r} is no web address: only http and https are read")
    if target.userinfo:
        raise SourceProblem(f"{shown_url(url)[:200]} holds a name or password: set token_env instead")
    return target.copy_with(fragment=None)


def joined(url: str, link: str) -> str:
    """Where a link of an answer leads. Raises SourceProblem."""
    try:
        return urljoin(url, link)
    except ValueError as error:
        raise SourceProblem(
            f"{shown_url(url)} leads to a broken address ({error}): its server is to be mended"
        ) from error


def _same_origin(one: httpx.URL, other: httpx.URL) -> bool:
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def _token(name: str) -> dict[str, str]:
    token = os.environ.get(name, "")
    if not token.isascii() or not token.isprintable() or not token:
        raise SourceProblem(f"token_env = {name!r}, but no such variable with a token is set where the system runs")
    return {"Authorization": f"Bearer {token}"}


def _hint(response: httpx.Response) -> str:
    if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return ": set token_env in the configuration file"
    if response.status_code in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
        return ": raise interval_s if it stays so"
    return ": correct the url" if response.is_client_error else "; it is tried again"


def _without(text: str, target: httpx.URL) -> str:
    """An error's words, without a query that they may quote."""
    query = target.query.decode("ascii", "replace")
    return (text.replace(query, "...") if query else text)[:300] or "no answer"
