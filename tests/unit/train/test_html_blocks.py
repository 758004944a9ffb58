"""Our own HTML to text: the scanner against html.parser and html.unescape, hostile pages, and what is main content."""

import builtins
import html
import html.parser
import pydoc
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.html import HtmlExtractor
from train.data.html_blocks import join_blocks, select_blocks
from train.data.html_scan import Page, scan_page
from train.data.html_text import MAX_NAME
from train.data.html_tree import B_START, B_STOP, GAP_BYTES

PARAGRAPHS = (
    "The council met on Tuesday to decide how the old harbour should be used once the last ferries have left it.",
    "Most of the speakers wanted a park, with a pool that is open all year, and houses only on its northern side.",
    "The mayor promised to publish the costs of every plan in spring, before the citizens vote on them in June.",
)
INLINE = ("a", "b", "code", "em", "span", "x-unknown", "tt", "small", "strong", "big", "font")
UNSEEN = (*INLINE, "script", "style")
BLOCK = ("div", "section", "blockquote", "p", "h2", "ul", "pre")


def _all_text(markup: str) -> str:
    page = scan_page(markup)
    return join_blocks(page, select_blocks(page) | True)


def _main_text(markup: str) -> str:
    return HtmlExtractor("blocks").extract(markup)[0]


class _Reference(html.parser.HTMLParser):
    """Visible text of well-formed markup: inline elements add nothing, others separate."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.num_hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.num_hidden += tag in {"script", "style"}
        self.pieces.append("" if tag in UNSEEN else "\n")

    def handle_endtag(self, tag: str) -> None:
        self.num_hidden -= tag in {"script", "style"}
        self.pieces.append("" if tag in UNSEEN else "\n")

    def handle_data(self, data: str) -> None:
        self.pieces.append("" if self.num_hidden else data)


def _reference_words(markup: str) -> list[str]:
    parser = _Reference()
    parser.feed(markup)
    parser.close()
    return "".join(parser.pieces).split()


words = st.text(st.sampled_from("abz.,!? \n\t'\"-éß中文。\u3000\xa0\U0001f600"), max_size=12).map(html.escape)
references = st.sampled_from(["&amp;", "&copy;", "&eacute;", "&#65;", "&#x4e2d;", "&lt;", "&hellip;", "&#160;"])
leaves = st.one_of(
    words,
    references,
    st.sampled_from(["<br>", "<hr>", "<!-- <p>no --> ", "<script>if (a<b) '</p>'</script>", "<style>p{}</style>"]),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map("".join),
        st.tuples(st.sampled_from(INLINE[1:6]), inner).map(lambda pair: f"<{pair[0]} class='x'>{pair[1]}</{pair[0]}>"),
        st.tuples(st.sampled_from(BLOCK), inner).map(lambda pair: f"<{pair[0]} id=x>{pair[1]}</{pair[0]}>"),
    ),
    max_leaves=24,
)
TOKENS = """<div> </div> <p> </p> <a/href=x> </a> <table> <tr> <td> </table> <li> </ul> <dt> <pre> </pre> <br/>
&amp; &lt &#65 &#x & < > <!-- --> <!--> <![CDATA[ ]]> <? </ <script> </script> <title> </title>
<svg> <path/> <template> <select> <p/hidden> </span> <span/hidden> <x-y> é 中 。 \u3000 \U0001f600
\x00 = " ' / <plaintext> <nav> text words, some. <p/class=sidebar/ <form> <h1>"""
tokens = st.sampled_from(
    [*TOKENS.split(), " ", "\n", "\r\n", "&nbsp;", "&#10;", "&Tab;", "<p style='display: none'>", "\ud800"]
)


@settings(max_examples=300, deadline=None)
@given(trees)
def test_the_visible_text_is_what_a_parser_of_the_standard_library_finds(markup: str) -> None:
    assert _all_text(markup).split() == _reference_words(markup)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(sorted(html.entities.html5)).map("&{}".format),
            st.integers(0, 0x120000).map("&#{};".format),
            st.integers(0, 0x120000).map("&#x{:X}".format),
            st.sampled_from(["&", "&#", "&#x", "&#;", "&amp", "x", ";", "&notit;", "&ampamp;"]),
        ),
        max_size=8,
    ).map("|".join)
)
def test_character_references_are_those_of_the_standard_library(text: str) -> None:
    found = _all_text(f"<pre>|{text}|</pre>")
    assert found == html.unescape(f"|{text}|").replace("\x00", "")


def test_every_named_reference_is_known_with_and_without_what_follows_it() -> None:
    for name in html.entities.html5:
        assert len(name) <= MAX_NAME
        for text in (f"&{name}", f"&{name}=", f"&{name}x"):
            assert _all_text(f"<pre>|{text}|</pre>") == html.unescape(f"|{text}|"), name


def _check_page(page: Page) -> None:
    stops = [0, *page.blocks[:, B_STOP].tolist()]
    for index, (start, stop) in enumerate(page.blocks[:, [B_START, B_STOP]].tolist()):
        assert start == stops[index] + (GAP_BYTES if index else 0)
        assert start < stop <= len(page.buffer)
        bytes(page.buffer[start:stop]).decode()


@settings(max_examples=500, deadline=None)
@given(st.lists(tokens, max_size=60).map("".join))
def test_any_markup_gives_whole_blocks_of_valid_text(markup: str) -> None:
    _check_page(scan_page(markup))
    text, _ = HtmlExtractor("blocks").extract(markup)
    assert "\x00" not in text
    assert text.encode().decode() == text


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_string_is_a_page_of_itself(text: str) -> None:
    _check_page(scan_page(text))
    _check_page(scan_page("<" + text + "<!" + text))


@pytest.mark.parametrize(
    "unit",
    ["<div>", "<p>x", "<", "<!--", "&", "&#9", "<a href=x>", "<a href=x><div>", "<li>", "<table><td><p>", "</p>", "<title>",
     "<script>", "<svg>", "<b hidden>", "<p a='", "</script", "<p style='display:", "x<br>", "<![CDATA["],
)  # fmt: skip
def test_the_time_is_linear_in_a_page_that_repeats_itself(unit: str) -> None:
    _main_text(unit)
    start = time.process_time()
    text = _main_text(unit * (2_000_000 // len(unit)))
    assert time.process_time() - start < 2.0
    assert len(text) <= 3_000_000


def test_a_large_page_keeps_all_its_paragraphs() -> None:
    page = "".join(f"<p>{number} {PARAGRAPHS[number % 3]}</p>" for number in range(80_000))
    assert len(page) > 9_000_000
    assert _main_text(page).count("\n\n") == 79_999


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("<p>one<p>two", "one\n\ntwo"),
        ("<p>a <b>b</b>c\n d</p>", "a bc d"),
        ("one<br>two", "one\ntwo"),
        ("<ul><li>a<li>b<ul><li>c</ul></ul>", "a\nb\n\nc"),
        ("<dl><dt>a<dd>b<dt>c<dd>d</dl>", "a\nb\nc\nd"),
        ("<table><tr><th>a<th>b<tr><td>c<td>d</table>", "a\tb\nc\td"),
        ("x<pre>\n  a\r\n\tb  c\n</pre>y", "x\n\n  a\n\tb  c\n\ny"),
        ("<pre>a<b>\n</b>c</pre>", "a\nc"),
        ("<img alt=no>yes<input value=no>", "yes"),
        ("<p title='a>b'>x</p>", "x"),
        ("<p title=a>b>x</p>", "b>x"),
        ("<P CLASS=X>x</P >y", "x\n\ny"),
        ("a < b <3 c", "a < b <3 c"),
        ("<?xml version='1.0'?><div/><p>a<span/>b</p>", "ab"),
        ("<script>a</scripty></SCRIPT >x", "x"),
        ("<svg><title>a</title><text>b</text></svg>c", "c"),
        ("<svg><path d=x><p>c", "c"),
        ("<svg/>c", "c"),
        ("<select><option>a</select><textarea><p>b</textarea>c", "c"),
        ("<div hidden>a<div>b</div>c</div>d", "d"),
        ("<p style='color:red; DISPLAY : none'>a</p>b", "b"),
        ("<li aria-hidden=true>a<li>b", "b"),
        ("<span hidden>a<span>b</span>c</span>d", "d"),
        ("a<![CDATA[b]]>c", "ac"),
        ("<!--><p>a-->b<!-- -->c<!-- --!>d", "a-->bcd"),
        ("a\x00b", "ab"),
        ("<a href=1>a<div>b</a>c</div>d", "a\nbc\nd"),
        ("a</p>b", "a\n\nb"),
    ],
)
def test_markup_reads_as_in_a_browser(markup: str, expected: str) -> None:
    assert _all_text(markup) == expected


def test_what_is_hidden_is_shown_where_a_page_shows_nothing_else() -> None:
    assert _main_text("<div style='display:none'><p>Only this</p></div>") == "Only this"


def test_the_title_is_the_first_of_the_page_and_not_of_a_drawing() -> None:
    extract = HtmlExtractor("blocks").extract
    page = "<svg><title>no</title></svg><title>\n A &amp;\n B</title><title>no</title><p>x"
    assert extract(page) == ("x", "A & B")
    assert extract("<title>not closed <p>x") == ("", "")


MENU = "".join(f"<li><a href='/{topic}'>{topic} news</a></li>" for topic in ("World", "Sport", "Money", "Travel"))
TEASERS = "".join(f"<div class=card><a href='/{n}'>Teaser {n} about something else</a></div>" for n in range(6))
ARTICLE = f"""<body><div class=header><ul class=menu>{MENU}</ul></div><div class="layout has-sidebar"><div class=story>
<h1>A harbour for all</h1><p>{PARAGRAPHS[0]}<h2>The park</h2><p>{PARAGRAPHS[1]}<ul><li>A pool, open all year<li>Houses</ul>
<table><tr><td>Cost<td>9 million</table><pre>x = 1\n  y = 2</pre><p>{PARAGRAPHS[2]}<h2>Related stories</h2></div>
<div class=sidebar>{TEASERS}</div></div><div id=footer><p>Copyright, all rights reserved. <a href=/i>Imprint</a></div>"""


def test_an_article_without_landmarks_keeps_its_lists_tables_and_code_only() -> None:
    text = _main_text(ARTICLE)
    for kept in (*PARAGRAPHS, "A harbour for all", "The park", "A pool, open all year", "9 million", "x = 1\n  y = 2"):
        assert kept in text
    for dropped in ("Sport", "Teaser", "Copyright", "Imprint", "Related stories"):
        assert dropped not in text


def test_an_article_in_a_script_without_spaces_is_found() -> None:
    text = "評議会は火曜日に、最後のフェリーが去った後の古い港の使い方を決定した。市長は費用の公表を約束した。"
    page = ARTICLE
    for paragraph in PARAGRAPHS:
        page = page.replace(paragraph, text)
    found = _main_text(page)
    assert found.count(text) == 3
    assert "Teaser" not in found


def test_a_manual_loses_nothing() -> None:
    page = pydoc.html.page("builtins", pydoc.html.document(builtins))
    expected = _reference_words(page)
    found = _main_text(page).split()
    assert len(found) > 0.95 * len(expected) > 1000


@pytest.mark.parametrize("body", [f"<p>{PARAGRAPHS[0]}", "<h1>Name</h1><p>Short text.", "<pre>code</pre>", "words"])
def test_a_page_without_boilerplate_is_kept_whole(body: str) -> None:
    assert _main_text(f"<html><body>{body}</body></html>").split() == _reference_words(body)
