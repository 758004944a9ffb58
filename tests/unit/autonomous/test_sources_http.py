"""Addresses as sources, against a real server: what is read, in which batches, and what is no document."""

import re
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from autonomous.sources.batch import SourceProblem
from autonomous.sources.cursors import CursorStore
from tests.http_site import LIMIT, Site, items, reader, texts
from tests.streams import documents_of, read_all


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


def test_a_page_behind_a_first_one_that_stays_the_same_is_read_when_it_grows(site: Site, cursors: CursorStore) -> None:
    site.page("/a", items("one", next="/b"), ETag='"same"')
    site.page("/b", items("two"), ETag='"1"')
    feed = reader(site, "/a", cursors)
    cursor, _ = read_all(feed, cursors, cursor={}, limit=LIMIT)
    site.page("/b", items("two", "three"), ETag='"2"')
    cursor, batches = read_all(feed, cursors, cursor=cursor, limit=LIMIT)
    assert texts(batches) == ["three"]
    site.page("/a", items("one", next=None), ETag='"alone"')
    cursor, _ = read_all(feed, cursors, cursor=cursor, limit=LIMIT)
    assert texts(read_all(feed, cursors, cursor=cursor, limit=LIMIT)[1]) == []
    assert site.asked[-1][1]["If-None-Match"] == '"alone"', "a feed of one page is asked for only if it is new"


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
