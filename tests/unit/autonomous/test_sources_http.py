"""Addresses as sources, against a real server that pages, floods, sends wrong types, and redirects where it must not."""

import ipaddress
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import ValidationError

from autonomous.sources.batch import ReadLimit, SourceProblem
from autonomous.sources.config import HttpSource, refuse_trusted_fields, shown
from autonomous.sources.cursors import CursorStore
from autonomous.sources.http import HttpReader
from autonomous.sources.http_address import checked_address, is_public, permit_all
from autonomous.sources.http_fetch import FetchBounds, Fetcher
from tests.streams import documents_of, http_server, read_all, source

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


@pytest.fixture
def site() -> Iterator[Site]:
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


@pytest.fixture
def cursors(tmp_path: Path) -> Iterator[CursorStore]:
    store = CursorStore(tmp_path / "cursors.sqlite")
    yield store
    store.close()


def reader(site: Site, path: str, cursors: CursorStore, **fields: Any) -> HttpReader:
    fields = {"allow_private": True, **fields}
    config = source(kind="http", url=site.url + path, **fields)
    cursors.add(config)
    assert isinstance(config, HttpSource)
    return HttpReader(config, known=cursors, max_document_bytes=1000, clock=lambda: 50.0)


def texts(batches: Any) -> list[str]:
    return [
        str(one.content, "utf-8") if isinstance(one.content, bytes) else one.content for one in documents_of(batches)
    ]


def items(*words: str, **more: Any) -> dict[str, Any]:
    return {"items": [{"text": word, "id": word} for word in words], **more}


# -- what is read


def test_a_json_list_is_read_in_bounded_batches_and_not_again_while_it_is_the_same(
    site: Site, cursors: CursorStore
) -> None:
    site.page("/feed", [{"text": f"word {n}"} for n in range(5)], ETag='"1"')
    feed = reader(site, "/feed", cursors)
    cursor, batches = read_all(feed, cursors, cursor={}, limit=LIMIT)
    assert (texts(batches), len(batches), len(site.asked)) == ([f"word {n}" for n in range(5)], 3, 1)
    cursor, batches = read_all(feed, cursors, cursor=cursor, limit=LIMIT)
    assert (texts(batches), site.asked[-1][1]["If-None-Match"]) == ([], '"1"')
    site.page("/feed", [{"text": f"word {n}"} for n in range(6)], ETag='"2"')
    assert texts(read_all(feed, cursors, cursor=cursor, limit=LIMIT)[1]) == ["word 5"]


def test_an_answer_without_etag_is_known_by_its_hash(site: Site, cursors: CursorStore) -> None:
    site.page("/feed", [{"text": "one"}])
    feed = reader(site, "/feed", cursors)
    cursor, _ = read_all(feed, cursors, cursor={}, limit=LIMIT)
    again, batches = read_all(feed, cursors, cursor=cursor, limit=LIMIT)
    assert (texts(batches), again) == ([], cursor)


def test_a_restart_in_the_middle_of_an_answer_reads_what_was_not_acknowledged(site: Site, cursors: CursorStore) -> None:
    site.page("/feed", [{"text": f"word {n}"} for n in range(4)])
    feed = reader(site, "/feed", cursors)
    first = feed.read({}, LIMIT)
    cursors.commit("src", first, refused=[], num_repeated=0, num_bytes=0)
    site.page("/feed", [{"text": "new"}] + [{"text": f"word {n}"} for n in range(4)])  # the list has moved meanwhile
    _, batches = read_all(reader(site, "/feed", cursors), cursors, cursor=first.cursor, limit=LIMIT)
    assert texts(batches) == ["new", "word 2", "word 3"]


def test_next_links_are_followed_from_the_body_and_from_the_header(site: Site, cursors: CursorStore) -> None:
    site.page("/a", items("one", next="/b?page=2"))
    site.page("/b", items("two"), Link='</c>; rel="next"')
    site.page("/c", items("three", next=None))
    cursor, batches = read_all(reader(site, "/a", cursors, id_field="id"), cursors, cursor={}, limit=LIMIT)
    assert texts(batches) == ["one", "two", "three"]
    assert "url" not in cursor


def test_a_chain_of_pages_that_leads_back_ends(site: Site, cursors: CursorStore) -> None:
    site.page("/a", items("one", next="/a"))
    assert texts(read_all(reader(site, "/a", cursors), cursors, cursor={}, limit=LIMIT)[1]) == ["one"]


def test_a_cursor_parameter_goes_on_where_it_ended_also_after_a_restart(site: Site, cursors: CursorStore) -> None:
    events = [f"event {n}" for n in range(7)]

    def answer(request: BaseHTTPRequestHandler) -> None:
        start = int(parse_qs(urlsplit(request.path).query).get("since", ["0"])[0])
        page = items(*events[start : start + 3], next=min(start + 3, len(events)))
        site.page("/page", page)
        site.answers["/page"](request)

    site.answers["/events"] = answer
    fields = {"cursor_parameter": "since", "id_field": "id"}
    feed = reader(site, "/events?kind=all", cursors, **fields)
    cursor, batches = read_all(feed, cursors, cursor={}, limit=LIMIT)
    assert texts(batches) == events
    events += ["event 7", "event 8"]
    _, batches = read_all(reader(site, "/events?kind=all", cursors, **fields), cursors, cursor=cursor, limit=LIMIT)
    assert texts(batches) == ["event 7", "event 8"]
    assert site.asked[-1][0].startswith("/events?kind=all&since=")


def test_json_lines_and_pages_of_text_are_read(site: Site, cursors: CursorStore) -> None:
    lines = '{"text": "one"}\n{broken\n{"text": "two"}\n{"text": "three"}'
    site.page("/lines", lines, kind="application/x-ndjson")
    cursor, batches = read_all(reader(site, "/lines", cursors), cursors, cursor={}, limit=LIMIT)
    assert texts(batches) == ["one", "two", "three"]
    assert ["is no JSON" in one.reason for batch in batches for one in batch.refused] == [True]
    site.page("/page", "<p>Die Brücke</p>".encode("latin-1"), kind="text/html; charset=latin-1")
    page = reader(site, "/page", cursors)
    cursor, batches = read_all(page, cursors, cursor={}, limit=LIMIT)
    (document,) = documents_of(batches)
    assert (document.content, document.media_type) == ("<p>Die Brücke</p>", "text/html")
    site.page("/page", "<p>Neu</p>")
    (changed,) = documents_of(read_all(page, cursors, cursor=cursor, limit=LIMIT)[1])
    assert changed.id == document.id


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        (bytes(range(256)) * 3, "image/png", "is binary.*image/png"),
        (b"%PDF-1.7 x", "application/pdf", "is a PDF"),
        (b"", "text/html", "is empty"),
        (b"y" * 1001, "text/plain", "1,001 bytes, above the limit"),
    ],
)
def test_a_page_that_is_no_document_is_refused_with_the_reason(
    site: Site, cursors: CursorStore, body: bytes, kind: str, reason: str
) -> None:
    site.page("/page", body, kind=kind)
    _, batches = read_all(reader(site, "/page", cursors), cursors, cursor={}, limit=LIMIT)
    (refused,) = batches[0].refused
    assert documents_of(batches) == []
    assert re.search(reason, refused.reason)
    assert refused.fix


@pytest.mark.parametrize("body", ["{not json", '{"total": 3}', '"text"', "[" * 100_000, b"\xff\xfe[\x00"])
def test_an_answer_that_is_no_list_is_an_error_with_a_fix(site: Site, cursors: CursorStore, body: Any) -> None:
    site.page("/feed", body, kind="application/json")
    with pytest.raises(SourceProblem, match="give an address that answers with a list of objects"):
        reader(site, "/feed", cursors).read({}, LIMIT)


def test_items_that_are_no_documents_are_refused_one_by_one(site: Site, cursors: CursorStore) -> None:
    site.page("/feed", [{"text": "good"}, 7, {"title": "no text"}, {"text": "z" * 1025}, {"text": "last"}])
    _, batches = read_all(reader(site, "/feed", cursors), cursors, cursor={}, limit=LIMIT)
    assert texts(batches) == ["good", "last"]
    assert len([one for batch in batches for one in batch.refused]) == 3


# -- floods


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


# -- where it may lead


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.9.9", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:7f00:1::",
    ],
)  # fmt: skip
def test_no_address_of_this_machine_a_private_network_or_a_link_is_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_public_network_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_host_with_one_private_address_among_public_ones_is_refused() -> None:
    with pytest.raises(SourceProblem, match=r"is 10.0.0.1.*allow_private = true.*in the configuration file"):
        checked_address("x.test", 80, resolve=lambda *_: ["8.8.8.8", "10.0.0.1"], permits=is_public)


def test_a_private_address_is_refused_before_anything_is_sent(site: Site, cursors: CursorStore) -> None:
    site.page("/feed", [])
    with pytest.raises(SourceProblem, match=r"is 127.0.0.1, an address of this machine"):
        reader(site, "/feed", cursors, allow_private=False).read({}, LIMIT)
    assert site.asked == []


def only_first(address: Any) -> bool:
    return str(address) == "127.0.0.1"


def test_a_redirect_to_a_private_address_is_refused_and_not_connected_to(site: Site) -> None:
    port = urlsplit(site.url).port
    site.page("/secret", "metadata")
    site.redirect("/a", f"http://127.0.0.2:{port}/secret")
    fetcher = Fetcher(FetchBounds(1000, 5.0), origin=site.url, permits=only_first)
    with pytest.raises(SourceProblem, match=r"127.0.0.2"):
        fetcher.fetch(f"{site.url}/a")
    assert [path for path, _ in site.asked] == ["/a"]
    for bad in ("file:///etc/passwd", "gopher://x/", "http://user:pass@127.0.0.1/", "http://[::1"):
        site.redirect("/a", bad)
        with pytest.raises(SourceProblem):
            fetcher.fetch(f"{site.url}/a")


def test_redirects_are_followed_a_few_times_and_no_more(site: Site) -> None:
    site.page("/end", "here")
    site.redirect("/a", "/end")
    site.redirect("/loop", "/loop")
    fetcher = Fetcher(FetchBounds(1000, 5.0), origin=site.url, permits=permit_all)
    assert fetcher.fetch(f"{site.url}/a").body == b"here"
    with pytest.raises(SourceProblem, match="redirects more than 5 times"):
        fetcher.fetch(f"{site.url}/loop")


def test_the_connection_goes_to_the_address_that_was_checked(site: Site) -> None:
    """The name is resolved once: what it leads to afterwards (DNS rebinding) does not matter."""
    asked: list[str] = []

    def resolve(host: str, _: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    site.page("/x", "here")
    port = urlsplit(site.url).port
    fetcher = Fetcher(FetchBounds(1000, 5.0), origin="http://rebind.test", resolve=resolve, permits=only_first)
    assert fetcher.fetch(f"http://rebind.test:{port}/x").body == b"here"
    assert (asked, site.asked[0][1]["Host"]) == (["rebind.test"], f"rebind.test:{port}")


def test_a_token_goes_to_the_host_of_the_source_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEED_TOKEN", "SECRET")
    site.page("/end", "here")
    site.redirect("/a", f"http://other.test:{urlsplit(site.url).port}/end")
    fetcher = Fetcher(
        FetchBounds(1000, 5.0), origin=site.url, token_env="FEED_TOKEN", permits=permit_all,
        resolve=lambda *_: ["127.0.0.1"],
    )  # fmt: skip
    fetcher.fetch(f"{site.url}/a")
    assert [headers.get("Authorization") for _, headers in site.asked] == ["Bearer SECRET", None]
    monkeypatch.delenv("FEED_TOKEN")
    with pytest.raises(SourceProblem, match="no such variable"):
        fetcher.fetch(f"{site.url}/a")


def test_no_key_of_a_query_is_in_an_error_a_log_or_the_status(
    site: Site, cursors: CursorStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    said = []
    for path in ("/gone?key=SECRET", "/cut?key=SECRET"):
        site.answers["/cut"] = lambda request: request.wfile.write(b"garbage\r\n\r\n") and None
        with pytest.raises(SourceProblem) as error:
            reader(site, path, cursors).read({}, LIMIT)
        said.append(str(error.value))
    config = source(kind="http", url="https://example.org/x?key=SECRET&b=2")
    assert "SECRET" not in " ".join(said) + caplog.text + json.dumps(shown(config))
    assert shown(config)["url"] == "https://example.org/x?key=...&b=..."


@pytest.mark.parametrize(
    "url", ["ftp://x.org/", "file:///etc/passwd", "https://", "http://a:b@x.org/", "http://x:99999/"]
)
def test_what_is_no_web_address_is_refused_in_the_configuration(url: str) -> None:
    with pytest.raises(ValidationError):
        source(kind="http", url=url)


def test_what_widens_the_reach_is_set_in_the_configuration_file_alone() -> None:
    for fields in (
        {"kind": "http", "url": "http://x.org/", "allow_private": True},
        {"kind": "http", "url": "http://x.org/", "token_env": "HOME"},
        {"kind": "git", "repository": "https://x.org/a.git", "allow_remote": True},
    ):
        with pytest.raises(ValueError, match="can only be set in the configuration file"):
            refuse_trusted_fields(source(**fields))
    for place in ("https://x.org/a.git", "git@x.org:a.git", "ssh://x.org/a", "ext::sh -c id", "x.org:a"):
        with pytest.raises(ValidationError, match=r"allow_remote = true|an address of https or ssh"):
            source(kind="git", repository=place)
