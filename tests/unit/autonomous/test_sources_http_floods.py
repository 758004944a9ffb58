"""Addresses as sources, against a real server that floods, drips, sends bombs or refuses."""

import threading
import time
from http.server import BaseHTTPRequestHandler

import pytest

from autonomous.sources.batch import SourceProblem
from autonomous.sources.cursors import CursorStore
from tests.http_site import LIMIT, Site, reader


def test_an_endless_answer_is_cut_off_at_the_limit_and_never_held(site: Site, cursors: CursorStore) -> None:
    import tracemalloc

    def flood(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.end_headers()
        while True:
            request.wfile.write(b" " * 65536)
            site.num_bytes += 65536

    site.answers["/flood"] = flood
    tracemalloc.start()
    with pytest.raises(SourceProblem, match="max_response_bytes is 1,048,576: raise it"):
        reader(site, "/flood", cursors, max_response_bytes=1 << 20).read({}, LIMIT)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 6 << 20


def test_an_announced_100_mb_is_refused_without_reading_it(site: Site, cursors: CursorStore) -> None:
    def big(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(100 << 20))
        request.end_headers()
        for _ in range(100):
            request.wfile.write(b"x" * (1 << 20))
            site.num_bytes += 1 << 20

    site.answers["/big"] = big
    with pytest.raises(SourceProblem, match="answers with 104,857,600 bytes"):
        reader(site, "/big", cursors).read({}, LIMIT)
    assert site.num_bytes < 32 << 20  # what the sockets hold


def test_an_answer_that_drips_is_ended_at_its_time(site: Site, cursors: CursorStore) -> None:
    hung_up = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        try:
            request.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
            while not hung_up.wait(0.02):
                request.wfile.write(b"z")
        except OSError:
            hung_up.set()

    site.answers["/drip"] = drip
    start = time.monotonic()
    with pytest.raises(SourceProblem, match=r"did not answer whole within 0.3 s: raise timeout_s"):
        reader(site, "/drip", cursors, timeout_s=0.3).read({}, LIMIT)
    assert time.monotonic() - start < 5
    assert hung_up.wait(5)


def test_a_compressed_answer_is_refused_because_it_may_be_a_bomb(site: Site, cursors: CursorStore) -> None:
    import gzip

    site.page("/bomb", gzip.compress(b" " * (64 << 20)), kind="text/plain", Content_Encoding="gzip")
    with pytest.raises(SourceProblem, match="answers in gzip though it was asked not to"):
        reader(site, "/bomb", cursors).read({}, LIMIT)
    assert site.asked[-1][1]["Accept-Encoding"] == "identity"


def test_a_stop_ends_an_answer_that_is_being_read(site: Site, cursors: CursorStore) -> None:
    calls = 0

    def stop_at_third() -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise PermissionError("stopped")

    def flood(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(b" " * 4096)

    site.answers["/flood"] = flood
    with pytest.raises(PermissionError):
        reader(site, "/flood", cursors, max_response_bytes=1 << 30).read({}, LIMIT, guard=stop_at_third)


@pytest.mark.parametrize("status", [404, 401, 500])
def test_a_refusal_of_the_server_is_an_error_with_a_hint(site: Site, cursors: CursorStore, status: int) -> None:
    site.answers["/x"] = lambda request: request.send_error(status)
    with pytest.raises(SourceProblem, match=f"answers {status}"):
        reader(site, "/x?key=SECRET", cursors).read({}, LIMIT)
