"""Pages to text: three tiers, what neither of them finds, and the charset of a page."""

import builtins
import pydoc
import sys
from collections.abc import Sequence

import pytest
from resiliparse.extract.html2text import extract_plain_text

from train.data.clean import CleanConfig, CleanDocument, DataCleaner
from train.data.document import RawDocument
from train.data.html import KINDS, ExtractorKind, HtmlExtractor

TIERS: Sequence[ExtractorKind] = ("blocks", "resiliparse", "trafilatura")
PARAGRAPHS = [
    "The council met on Tuesday to decide how the old harbour should be used once the last ferries have left it.",
    "Most of the speakers wanted a park, with a pool that is open all year, and houses only on its northern side.",
    "The mayor promised to publish the costs of every plan in spring, before the citizens vote on them in June.",
]
ARTICLE = f"""<!DOCTYPE html><html><head><title>A harbour for all</title></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/news">All the news</a></li></ul></nav>
<main><article><h1>A harbour for all</h1>{"".join(f"<p>{text}</p>" for text in PARAGRAPHS)}</article></main>
<aside class="related"><a href="/1">Ten things about ferries</a></aside>
<footer>Imprint and privacy</footer><script>track()</script></body></html>"""


def _clean(content: bytes | str, media_type: str = "text/html", **config: object) -> CleanDocument:
    cleaner = DataCleaner(CleanConfig.model_validate(config))
    return cleaner.clean(RawDocument("id", "source", "", content, media_type, 0.0, {}))


@pytest.mark.parametrize("kind", TIERS)
def test_each_tier_keeps_the_article_and_drops_what_surrounds_it(kind: ExtractorKind) -> None:
    document = _clean(ARTICLE, extractor=kind)
    assert all(text in document.text for text in PARAGRAPHS)
    for boilerplate in ("All the news", "Imprint", "Ten things", "track()"):
        assert boilerplate not in document.text
    assert document.title == "A harbour for all"


def test_the_tier_of_resiliparse_gives_what_it_gives_on_real_pages() -> None:
    extractor = HtmlExtractor("resiliparse")
    for module in (builtins, pydoc, sys):
        page = pydoc.html.page(module.__name__, pydoc.html.document(module))
        expected = extract_plain_text(
            page, main_content=True, comments=False, post_meta=False, list_bullets=False, alt_texts=False
        )
        assert len(expected) > 1000
        assert extractor.extract(page)[0] == expected


@pytest.mark.parametrize("kind", TIERS)
def test_a_page_without_main_content_gives_all_its_text(kind: ExtractorKind) -> None:
    assert HtmlExtractor(kind).extract("<html><body><nav>Only this</nav></body></html>")[0].strip() == "Only this"


@pytest.mark.parametrize("kind", TIERS)
def test_all_text_can_be_asked_for(kind: ExtractorKind) -> None:
    text = HtmlExtractor(kind, main_content=False).extract(ARTICLE)[0]
    assert "All the news" in text
    assert "Imprint" in text


@pytest.mark.parametrize("kind", TIERS)
@pytest.mark.parametrize(
    "page", ["<div>" * 60_000 + "text", "<p>text" + "<i>" * 250_000, "<b><table>" * 3_000 + "text"]
)
def test_a_page_that_would_keep_an_extractor_busy_gives_its_text(kind: ExtractorKind, page: str) -> None:
    assert HtmlExtractor(kind).extract(page)[0].strip() == "text"


@pytest.mark.parametrize("kind", TIERS)
@pytest.mark.parametrize(
    "page", ["", "plain words", "<", "<html>", "\x00", "<title>only a title</title>", "<p>&#0;&#x110000;"]
)
def test_any_string_is_a_page(kind: ExtractorKind, page: str) -> None:
    text, title = HtmlExtractor(kind).extract(page)
    assert isinstance(text, str)
    assert title == ("only a title" if "title" in page else "")


def test_a_missing_quality_tier_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(ValueError, match="pip install trafilatura"):
        DataCleaner(CleanConfig(extractor="trafilatura"))
    DataCleaner(CleanConfig())


def test_the_tiers_are_those_that_the_configuration_names() -> None:
    assert tuple(KINDS) == TIERS
    with pytest.raises(ValueError, match="extractor"):
        CleanConfig.model_validate({"extractor": "justext"})


RUSSIAN = "Совет решил во вторник, как использовать старую гавань, когда её покинут последние паромы. " * 3
JAPANESE = "評議会は火曜日に、最後のフェリーが去った後の古い港の使い方を決定した。市長は費用の公表を約束した。" * 3
CZECH = "Rada v úterý rozhodla, jak se bude využívat starý přístav, až z něj odplují poslední trajekty. " * 6
FRENCH = (
    "Le conseil a décidé mardi de l’usage du vieux port, une fois les derniers bacs partis ; à l’été prochain, " * 4
)


@pytest.mark.parametrize(
    ("text", "encoding", "header", "meta"),
    [
        (RUSSIAN, "koi8-r", "KOI8-R", ""),
        (RUSSIAN, "koi8-r", "", "koi8-r"),
        (RUSSIAN, "windows-1251", "windows-1251", "koi8-r"),
        (JAPANESE, "cp932", "Shift_JIS", ""),
        (JAPANESE, "euc-jp", "x-euc-jp", ""),
        (JAPANESE, "iso-2022-jp", "ISO-2022-JP", ""),
        (CZECH, "iso-8859-2", "latin2", ""),
        (FRENCH, "cp1252", "iso-8859-1", ""),
        (FRENCH, "cp1252", "us-ascii", ""),
        (RUSSIAN, "utf-8", "iso-8859-1", "iso-8859-1"),
        (RUSSIAN, "utf-8-sig", "koi8-r", ""),
        (RUSSIAN, "utf-16", "koi8-r", ""),
        (CZECH, "cp1250", "no-such-charset", "windows-1250"),
    ],
)
def test_a_page_is_read_by_mark_then_utf8_then_header_then_its_own_declaration(
    text: str, encoding: str, header: str, meta: str
) -> None:
    page = f'<html><head><meta charset="{meta}"></head><body><p>{text}</p></body></html>'
    media_type = f"text/html; charset={header}" if header else "text/html"
    assert _clean(page.encode(encoding), media_type).text == text.strip()


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(RUSSIAN, "koi8-r"), (RUSSIAN, "windows-1251"), (JAPANESE, "shift_jis"), (JAPANESE, "euc-jp"), (CZECH, "cp1250")],
)
def test_the_charset_of_a_text_that_names_none_is_guessed_and_counted(text: str, encoding: str) -> None:
    document = _clean(text.encode(encoding), "text/plain")
    assert document.text == text.strip()
    assert document.counts["decoded_guess"] == 1


def test_western_text_that_names_no_charset_is_windows_1252() -> None:
    document = _clean(FRENCH.encode("cp1252"), "text/plain")
    assert document.text == FRENCH.strip()
    assert "decoded_guess" not in document.counts


def test_utf8_cut_inside_of_a_character_stays_utf8_whatever_the_header_says() -> None:
    cut = RUSSIAN.encode()[:-3]
    text = _clean(cut, "text/plain; charset=iso-8859-1").text
    assert text == cut.decode("utf-8", "replace").strip()
    assert text.startswith("Совет")
