"""What the tests of sources on the web share: a site on a real server that pages, floods or redirects, and its readers."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from autonomous.sources.batch import ReadLimit
from autonomous.sources.config import HttpSource
from autonomous.sources.cursors import CursorStore
from autonomous.sources.http import HttpReader
from tests.streams import documents_of, http_server, source

LIMIT = ReadLimit(num_documents=2, num_bytes=1 << 20)
Answer = Callable[[BaseHTTPRequestHandler], None]


class Site:
    """What the server answers by path, and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.num_bytes = 0

    def page(
        self, path: str, body: bytes | str | list[Any] | dict[str, Any], *, kind: str = "", **headers: str
    ) -> None:
        content = (
            body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        )
        is_json = isinstance(body, list | dict)

        def answer(request: BaseHTTPRequestHandler) -> None:
            etag = headers.get("ETag")
            if etag and request.headers.get("If-None-Match") == etag:
                request.send_response(304)
                request.end_headers()
                return
            request.send_response(200)
            request.send_header("Content-Type", kind or ("application/json" if is_json else "text/html"))
            request.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                request.send_header(name.replace("_", "-"), value)
            request.end_headers()
            request.wfile.write(content)

        self.answers[path] = answer

    def redirect(self, path: str, to: str) -> None:
        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(302)
            request.send_header("Location", to)
            request.end_headers()

        self.answers[path] = answer


@contextmanager
def serving_site() -> Iterator[Site]:
    """A Site behind a real server."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append((self.path, dict(self.headers)))
            answer = site.answers.get(urlsplit(self.path).path)
            if answer is None:
                self.send_error(404)
                return
            with suppress(OSError):  # the reader has hung up
                answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with http_server(Handler) as url:
        site.url = url
        yield site


def reader(site: Site, path: str, cursors: CursorStore, **fields: Any) -> HttpReader:
    """Of the source "src" at a path of the site."""
    fields = {"allow_private": True, **fields}
    config = source(kind="http", url=site.url + path, **fields)
    cursors.add(config)
    assert isinstance(config, HttpSource)
    return HttpReader(config, known=cursors, max_document_bytes=1000, clock=lambda: 50.0)


def texts(batches: Any) -> list[str]:
    """Of the documents of all batches."""
    return [
        str(one.content, "utf-8") if isinstance(one.content, bytes) else one.content for one in documents_of(batches)
    ]


def items(*words: str, **more: Any) -> dict[str, Any]:
    """An answer that lists them."""
    return {"items": [{"text": word, "id": word} for word in words], **more}
