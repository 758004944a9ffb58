"""The way to one HTTP server: a connection pool, JSON out and in, typed errors."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

import httpx

from cluster.client_errors import error_of, reached

Json = dict[str, Any]

UNREACHABLE_TIMEOUT_S = 5.0
"""A loopback connection is made in milliseconds; a longer wait means that nobody listens."""


def quoted(name: str) -> str:
    """A name as one part of a path."""
    return quote(name, safe="")


class Connection:
    """One connection pool to one server. Requests raise ClientError."""

    def __init__(self, base_url: str, *, timeout_s: float) -> None:
        timeout = httpx.Timeout(timeout_s, connect=UNREACHABLE_TIMEOUT_S)
        self.base_url = base_url.rstrip("/")
        # A proxy of the environment must not see a loopback address.
        self._http = httpx.Client(base_url=self.base_url, timeout=timeout, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def json(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        params: Json | None = None,
        timeout_s: float | None = None,
    ) -> Json:
        """The JSON object that answers a request; parameters that are None are left out."""
        timeout = httpx.USE_CLIENT_DEFAULT if timeout_s is None else httpx.Timeout(timeout_s)
        given = {name: value for name, value in (params or {}).items() if value is not None}
        with reached(self.base_url):
            response = self._http.request(method, path, json=body, params=given, timeout=timeout)
        if response.status_code >= 400:
            raise error_of(response)
        try:
            reply = response.json()
        except ValueError:
            reply = {}
        return reply if isinstance(reply, dict) else {"data": reply}

    @contextlib.contextmanager
    def events(self, path: str, body: Json) -> Iterator[Iterator[Json]]:
        """The JSON objects of an answer that arrives in pieces, as server-sent events."""
        with reached(self.base_url), self._http.stream("POST", path, json=body) as response:
            if response.status_code >= 400:
                response.read()
                raise error_of(response)
            yield _events(response.iter_lines())


def _events(lines: Iterable[str]) -> Iterator[Json]:
    for line in lines:
        if line.startswith("data:"):
            data = line[len("data:") :].strip()
            if data == "[DONE]":
                return
            yield json.loads(data)
