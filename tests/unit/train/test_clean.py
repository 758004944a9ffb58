"""Bytes to clean text: decoding, HTML, mojibake, personal data, and time that grows linearly."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.clean import _MOJIBAKE, CleanConfig, CleanDocument, DataCleaner, NotText, _has_mojibake
from train.data.document import RawDocument
from train.data.pii import Span, find_in_line, find_sensitive, is_luhn_valid, mask_sensitive

CLEANER = DataCleaner(CleanConfig())
MAX_SECONDS_PER_MB = 5.0  # ten times what the slowest text below took on a loaded machine


def _clean(content: bytes | str, media_type: str | None = "text/plain", title: str = "t") -> CleanDocument:
    return CLEANER.clean(RawDocument("id", "source", title, content, media_type, 7.0, {"path": "p.txt"}))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_utf_and_byte_order_marks_are_decoded_without_a_count(encoding: str) -> None:
    document = _clean("Zürich – 東京".encode(encoding))
    assert (document.text, document.counts) == ("Zürich – 東京", {})


def test_other_bytes_are_read_as_windows_1252_and_counted() -> None:
    document = _clean("Zürich – “fine”".encode("cp1252"))
    assert document.text == "Zürich – “fine”"
    assert document.counts == {"decoded_latin1": 1, "invalid_bytes": 4}


def test_damaged_utf8_stays_utf8_and_its_bad_bytes_are_counted() -> None:
    document = _clean("é ü ö ä".encode() + b" \xff")
    assert document.text == "é ü ö ä \ufffd"
    assert document.counts == {"invalid_bytes": 1}


@pytest.mark.slow
def test_a_page_is_decoded_by_its_declared_charset() -> None:
    page = '<html><head><meta charset="shift_jis"></head><body><p>日本語の文章です</p></body></html>'
    assert "日本語の文章です" in _clean(page.encode("shift_jis"), "text/html").text


def test_lone_surrogates_from_json_become_replacement_characters() -> None:
    assert _clean("a\ud800b \ud83d\ude00").text == "a\ufffdb 😀"


@pytest.mark.parametrize("content", [b"\x00\x01\x02", b"%PDF-1.7", bytes(range(1, 32)) * 9])
def test_binary_content_is_refused(content: bytes) -> None:
    with pytest.raises(NotText):
        _clean(content)


@pytest.mark.parametrize(("content", "media_type"), [(b"", None), (" \n\t", None), (b"<p> </p>", "text/html")])
def test_content_without_text_is_refused(content: bytes | str, media_type: str | None) -> None:
    with pytest.raises(NotText):
        _clean(content, media_type)


def test_html_becomes_its_visible_text_and_its_title() -> None:
    page = b"<title>The Title</title><script>x()</script><!-- hidden --><h1>Head</h1><p>One.</p><p>Two &amp; three.</p>"
    document = _clean(page, "text/html; charset=utf-8", title="p.txt")
    assert document.title == "The Title"
    assert document.text == "Head\n\nOne.\n\nTwo & three."


def test_a_given_title_is_stronger_than_the_page_title() -> None:
    assert _clean("<title>x</title><p>Text</p>", "text/html", title="Mine").title == "Mine"


def test_markup_in_plain_text_is_left_alone() -> None:
    assert _clean("use <b> & <i>", "text/markdown").text == "use <b> & <i>"


def test_line_ends_control_characters_and_terminal_colours_go_and_text_is_composed() -> None:
    document = _clean("a\r\nb\rc\fd\x07 \x1b[31mred\x1b[0m e\u0301")
    assert document.text == "a\nb\nc\nd red é"
    assert document.counts == {"control_characters": 1}


def test_joiners_that_scripts_and_emoji_need_are_kept() -> None:
    assert _clean("👩\u200d🔬 می\u200cخواهم").text == "👩\u200d🔬 می\u200cخواهم"


def test_mojibake_is_repaired_on_flagged_lines_and_honest_accents_are_kept() -> None:
    document = _clean("Ã©tÃ© Ã  ZÃ¼rich\nâge, naïve, Ñandú\nIt â€™s here")
    assert document.text == "été à Zürich\nâge, naïve, Ñandú\nIt ’s here"
    assert document.counts == {"mojibake_lines": 2}


def test_every_character_that_flags_mojibake_is_found_in_utf8() -> None:
    flagged = {code for code in range(0x80, 0x3000) if _MOJIBAKE.search(chr(code))} | {0xFFFD}
    assert {code for code in [*range(0x80, 0x3000), 0xFFFD] if _has_mojibake(f"a{chr(code)}b".encode())} == flagged


def test_source_line_and_time_are_kept() -> None:
    document = _clean("text")
    assert (document.id, document.source_id, document.happened_at, document.metadata) == (
        "id",
        "source",
        7.0,
        {"path": "p.txt"},
    )


PERSONAL = [
    ("write to anna.berg+x@mail.example.org today", "EMAIL"),
    ("josé@example.com", "EMAIL"),
    ("_anna@example.com_ in italics", "EMAIL"),
    ("anna@münchen.example.de", "EMAIL"),
    ("anna@пример.рф", "EMAIL"),
    ("联系anna@example.com请", "EMAIL"),
    (f"{'bounce' * 16}@example.com", "EMAIL"),
    ("call +49 (0)30 1234567 now", "PHONE"),
    ("tel +33 6 12 34 56 78.", "PHONE"),
    ("(415) 555-2671", "PHONE"),
    ("415-555-2671, office", "PHONE"),
    ("+14155552671", "PHONE"),
    ("1-800-555-1234", "PHONE"),
    ("1 (800) 555-1234", "PHONE"),
    ("0049 30 1234567", "PHONE"),
    ("0043 (1) 5055 0123", "PHONE"),
    ("from 93.184.216.34 port 22", "IPV4"),
    ("host 8.8.8.8", "IPV4"),
    ("http://93.184.216.34/x", "IPV4"),
    ("peer 2606:2800:220:1:248:1893:25c8:1946", "IPV6"),
    ("card 4111 1111 1111 1111", "CARD"),
    ("5500-0000-0000-0004", "CARD"),
    ("378282246310005", "CARD"),
    ("3782 822463 10005", "CARD"),
    ("IBAN DE89 3704 0044 0532 0130 00", "IBAN"),
    ("GB82WEST12345698765432", "IBAN"),
    ("ES91 2100 0418 4502 0005 1332 BANK", "IBAN"),
    ("ssn 219-09-9999", "SSN"),
    ("AKIAIOSFODNN7EXAMPLE", "AWS_KEY"),
    ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "AWS_KEY"),
]


@pytest.mark.parametrize(("text", "kind"), PERSONAL)
def test_personal_data_is_replaced_by_its_typed_placeholder_and_counted(text: str, kind: str) -> None:
    document = _clean(text)
    assert f"<{kind}>" in document.text
    assert document.counts == {kind: 1}


@pytest.mark.parametrize(("text", "kind"), [*PERSONAL, (f"a@{'名' * 63}.example", "EMAIL")])
def test_personal_data_is_found_in_a_long_text_as_in_a_line(text: str, kind: str) -> None:
    filler = "Nothing is to be found in this line of plain words.\n" * 8
    (span,) = find_sensitive(f"{filler}{text}\n{filler}")
    (alone,) = find_sensitive(text)
    assert span == Span(kind, alone.start + len(filler), alone.end + len(filler))


@given(st.lists(st.text("0123456789ABab@.-+ ()/:_", max_size=60), min_size=10, max_size=30))
def test_many_lines_give_the_spans_that_each_gives_alone(lines: list[str]) -> None:
    text = "\n".join([*lines, "x" * 300])
    starts = itertools.accumulate((len(line) + 1 for line in lines), initial=0)
    expected = [span for line, start in zip(lines, starts, strict=False) for span in find_in_line(line, offset=start)]
    assert find_sensitive(text) == expected


def test_only_the_account_number_is_masked_not_the_words_after_it() -> None:
    assert mask_sensitive("ES91 2100 0418 4502 0005 1332 BANK")[0] == "<IBAN> BANK"


def test_a_private_key_is_masked_whole_also_when_its_end_is_missing() -> None:
    body = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n" * 3
    whole = f"a\n-----BEGIN RSA PRIVATE KEY-----\n{body}-----END RSA PRIVATE KEY-----\nb"
    assert _clean(whole).text == "a\n<PRIVATE_KEY>\nb"
    assert "MIIE" not in _clean(f"-----BEGIN PRIVATE KEY-----\n{body}").text


HARD_NEGATIVES = [
    "version 1.2.3.4",
    "Versions after 1.11.1.1 and v2.3.4.5",
    "package==93.84.76.54",
    "opencv-44.55.66.77.tar.gz",
    "see section 113.42.51.64",
    "127.0.0.1, 10.1.2.3, 192.168.1.1, 172.16.5.4",
    "192.0.2.44 198.51.100.7 203.0.113.9",
    "0.0.0.0 255.255.255.255 999.999.999.999",
    "::1 fe80::1 2001:db8::1 std::vector<int>",
    "ISBN 978-3-16-148410-0",
    "ISBN-13: 9783161484100",
    "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "d41d8cd98f00b204e9800998ecf8427e",
    "2024-05-17T12:34:56.123456+02:00",
    "1715949296123456",
    "1715949296",
    "order 4111 1111 1111 1112",
    "order number 4111111111111112",
    "IBAN DE89 3704 0044 0532 0130 01",
    "XX89 3704 0044 0532 0130 00",
    "000-12-3456 666-12-3456 900-12-3456 123-00-4567",
    "+2024-05-17 12:00 added line",
    "x = 1e+1234567890",
    "001 002 003 004 005",
    "0012345 0067890",
    "frame 0042 1203 77",
    "page 2004-00-12 0011-22-33",
    "pi is +3.14159265358979",
    "git@github.com:owner/repository.git",
    "icon@2x.png",
    "@decorator.name and user@localhost",
    "550e8400-e29b-41d4-a716-446655440000",
    "AKIASHORT and xAKIAIOSFODNN7EXAMPLEx",
    "-----BEGIN RSA PRIVATE KEY-----\n...\n-----END RSA PRIVATE KEY-----",
    "00:1a:2b:3c:4d:5e",
]


@pytest.mark.parametrize("text", HARD_NEGATIVES)
def test_what_only_looks_like_personal_data_is_left_alone(text: str) -> None:
    assert mask_sensitive(text) == (text, {})


@pytest.mark.parametrize(
    "token",
    [
        "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2,
        "xoxb-123456789012-abcdefABCDEF",
        "sk-proj-Abc123Def456Ghi789Jkl0",
        "glpat-a1B2c3D4e5F6g7H8i9J0",
    ],
)
def test_access_tokens_are_found_but_left_to_the_screen(token: str) -> None:
    assert [span.kind for span in find_sensitive(f"key: {token}")] == ["TOKEN"]
    assert token in _clean(f"key: {token}").text


@pytest.mark.parametrize(
    "text", ["ghp_" + "x" * 36, "sk-learn-contrib-something-else", "task-based-parallel-programming-x"]
)
def test_placeholders_and_names_are_no_tokens(text: str) -> None:
    assert find_sensitive(text) == []


def test_cleaning_a_clean_text_again_changes_nothing() -> None:
    once = _clean("\n".join(text for text, _ in PERSONAL)).text
    assert _clean(once).text == once


def test_personal_data_is_found_on_either_side_of_every_chunk_border() -> None:
    lines = [f"line {number} " + "word " * (number % 90) + "mail a.b@example.org" for number in range(2000)]
    assert _clean("\n".join(lines)).counts == {"EMAIL": 2000}


@pytest.mark.slow
@given(st.text(max_size=3000))
def test_any_text_is_cleaned_or_refused_and_the_spans_are_ordered(text: str) -> None:
    spans = find_sensitive(text)
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))
    try:
        cleaned = _clean(text).text
    except NotText:
        return
    cleaned.encode("utf-8")
    assert not any(ord(character) < 32 and character not in "\n\t" for character in cleaned)


@given(st.text("0123456789", min_size=15, max_size=18))
def test_exactly_one_check_digit_makes_a_number_valid(digits: str) -> None:
    assert sum(is_luhn_valid(f"{digits}{check}") for check in range(10)) == 1


@pytest.mark.parametrize(
    "pattern",
    ["a", "a@", "1", "+1 ", "1.1.", "eyJ-", "AB12 ", "4111 ", "2001:", "(111) ", "-----BEGIN PRIVATE KEY-----\n"],
)
def test_no_pattern_makes_personal_data_search_slow(pattern: str) -> None:
    text = pattern * (300_000 // len(pattern)) + " x@example.org"
    start = time.process_time()
    mask_sensitive(text)
    assert time.process_time() - start < MAX_SECONDS_PER_MB * 0.3


def test_deeply_nested_html_is_extracted_in_time_that_grows_with_its_size() -> None:
    start = time.process_time()
    assert _clean("<div>" * 60_000 + "text", "text/html").text == "text"
    assert time.process_time() - start < MAX_SECONDS_PER_MB
