"""EPUB and PDF as documents. Both are built here, byte by byte where they are to be bad."""

import io
import logging
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pyarrow.fs as pafs
import pypdf
import pytest

from train.data.books import read_book
from train.data.clean import CleanConfig, DataCleaner
from train.data.document import RawDocument, Rejected
from train.data.page_text import drop_running_lines, join_pages
from train.data.source_config import SourceConfig

Item = RawDocument | Rejected

CONTAINER = """<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>
<rootfile full-path="OPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""
PACKAGE = """<package xmlns="http://www.idpf.org/2007/opf" version="3.0">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>A Book</dc:title><dc:creator>Ada</dc:creator>
<dc:language>en</dc:language></metadata>
<manifest>{items}<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="img" href="a.png" media-type="image/png"/></manifest>
<spine><itemref idref="nav"/><itemref idref="img"/>{spine}</spine></package>"""
PAGE = """<html xmlns="http://www.w3.org/1999/xhtml"><head><title>{title}</title></head>
<body class="x"><h1>{title}</h1>{body}</body></html>"""


def _source(**fields: Any) -> SourceConfig:
    return SourceConfig.model_validate({"name": "library", "kind": "book", "location": "here", **fields})


def _read(folder: Path, name: str, data: bytes, **fields: Any) -> list[Item]:
    (folder / name).write_bytes(data)
    filesystem = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())
    return list(read_book(filesystem, name, source=_source(**fields)))


def _only_refusal(items: list[Item]) -> Rejected:
    (item,) = items
    assert isinstance(item, Rejected)
    assert item.fix
    return item


def _clean(item: Item) -> str:
    assert isinstance(item, RawDocument)
    return DataCleaner(CleanConfig()).clean(item).text


def _epub(
    chapters: dict[str, str | bytes], *, others: dict[str, str | bytes] | None = None, spine: Sequence[str] = ()
) -> bytes:
    """A book whose spine is the chapters, in reverse order of their names in the archive."""
    names = list(spine or chapters)
    items = "".join(
        f'<item id="c{i}" href="{name}" media-type="application/xhtml+xml"/>' for i, name in enumerate(names)
    )
    references = "".join(f'<itemref idref="c{i}"/>' for i in range(len(names)))
    members: dict[str, str | bytes] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OPS/book.opf": PACKAGE.format(items=items, spine=references),
        "OPS/nav.xhtml": PAGE.format(title="Navigation", body="<p>nowhere</p>"),
        **{f"OPS/{name}": page for name, page in reversed(chapters.items())},
        **(others or {}),
    }
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


def _chapters() -> dict[str, str | bytes]:
    """Two chapters of real prose."""
    paragraphs = {
        name: "".join(f"<p>{text}</p>" for text in topics[name].split("\n\n")[:8]) for name in ("if", "while")
    }
    return {f"{name}.xhtml": PAGE.format(title=name.title(), body=body) for name, body in paragraphs.items()}


# EPUB


def test_a_book_is_one_document_in_the_order_of_its_spine(tmp_path: Path) -> None:
    (document,) = _read(tmp_path, "a.epub", _epub(_chapters()))
    assert isinstance(document, RawDocument)
    assert (document.title, document.media_type) == ("A Book", "text/html")
    assert document.metadata == {"path": "a.epub", "offset": "0", "author": "Ada", "declared_language": "en"}
    text = _clean(document)
    assert 0 < text.index('The "if" statement') < text.index('The "while" statement')
    assert "nowhere" not in text


def test_a_chapter_can_be_a_document_with_its_own_title(tmp_path: Path) -> None:
    items = _read(tmp_path, "a.epub", _epub(_chapters()), book={"document": "chapter"})
    documents = [item for item in items if isinstance(item, RawDocument)]
    assert [DataCleaner(CleanConfig()).clean(document).title for document in documents] == ["If", "While"]
    assert [document.metadata["chapter"] for document in documents] == ["OPS/if.xhtml", "OPS/while.xhtml"]
    assert documents[0].metadata["book"] == "A Book"
    assert len({document.id for document in documents}) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1"])
def test_pages_come_as_utf8_whatever_they_declare(tmp_path: Path, encoding: str) -> None:
    page = f'<?xml version="1.0" encoding="{encoding}"?>{PAGE.format(title="T", body="<p>Zürich über alles</p>")}'
    (document,) = _read(tmp_path, "a.epub", _epub({"a.xhtml": page.encode(encoding)}))
    assert isinstance(document, RawDocument)
    assert "Zürich über alles".encode() in document.content  # type: ignore[operator]


def test_a_missing_chapter_and_one_outside_of_the_archive_are_refused_and_the_rest_is_read(tmp_path: Path) -> None:
    data = _epub(_chapters(), spine=["if.xhtml", "gone.xhtml", "../../../etc/passwd", "while.xhtml"])
    items = _read(tmp_path, "a.epub", data)
    assert [item.reason for item in items if isinstance(item, Rejected)] == [
        "chapter 'OPS/gone.xhtml' of its spine is not in the archive",
        "chapter '../../etc/passwd' of its spine leads out of the archive",
    ]
    assert 'The "while" statement' in _clean(items[-1])


def test_protected_text_is_named_with_its_algorithm_and_hidden_fonts_are_no_protection(tmp_path: Path) -> None:
    entry = (
        '<EncryptedData xmlns="http://www.w3.org/2001/04/xmlenc#"><EncryptionMethod Algorithm="{}"/><CipherData>'
        '<CipherReference URI="{}"/></CipherData></EncryptedData>'
    )
    fonts = entry.format("http://www.idpf.org/2008/embedding", "OPS/font.otf")
    text = entry.format("http://www.w3.org/2001/04/xmlenc#aes128-cbc", "OPS/if.xhtml")
    wrapper = '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container">{}</encryption>'
    for content, is_protected in ((fonts, False), (fonts + text, True)):
        data = _epub(_chapters(), others={"META-INF/encryption.xml": wrapper.format(content)})
        items = _read(tmp_path, "a.epub", data)
        if is_protected:
            item = _only_refusal(items)
            assert "'OPS/if.xhtml' is encrypted by http://www.w3.org/2001/04/xmlenc#aes128-cbc" in item.reason
            assert "without digital rights management" in item.fix
        else:
            assert isinstance(items[0], RawDocument)


def test_a_zip_bomb_is_stopped_at_the_limit_whatever_its_members_declare(tmp_path: Path) -> None:
    data = _epub({"a.xhtml": b"<p>" + b" " * (50 << 20)})
    assert len(data) < 100_000
    item = _only_refusal(_read(tmp_path, "a.epub", data))
    assert "at least 16,777,217 bytes, above max_document_bytes = 16,777,216" in item.reason
    assert 'book.document = "chapter"' in item.fix
    lying = data.replace((50 * (1 << 20) + 3).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert lying != data
    item = _only_refusal(_read(tmp_path, "a.epub", lying))
    assert item.offset == 0


def test_an_archive_of_countless_members_is_refused_before_they_are_listed(tmp_path: Path) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for number in range(20_001):
            archive.writestr(f"{number}", b"")
    assert "more than 20,000 members" in _only_refusal(_read(tmp_path, "a.epub", data.getvalue())).reason


def test_entities_that_grow_are_refused(tmp_path: Path) -> None:
    laughs = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>' + CONTAINER
    item = _only_refusal(_read(tmp_path, "a.epub", _epub(_chapters(), others={"META-INF/container.xml": laughs})))
    assert "'META-INF/container.xml', which is no XML" in item.reason


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a": "b"}, "is a zip file but no EPUB"),
        ({"META-INF/container.xml": CONTAINER}, "names the package document 'OPS/book.opf', which it does not have"),
        ({"META-INF/container.xml": "<a"}, "'META-INF/container.xml', which is no XML"),
        ({"META-INF/container.xml": CONTAINER, "OPS/book.opf": "<package/>"}, "has no page of text in its spine"),
    ],
)
def test_a_zip_that_is_no_book_says_what_is_missing(tmp_path: Path, members: dict[str, str], reason: str) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert reason in _only_refusal(_read(tmp_path, "a.epub", data.getvalue())).reason


def test_a_cut_and_a_damaged_book_are_refused_and_no_other_exception_leaves(tmp_path: Path) -> None:
    data = _epub(_chapters())
    assert "no zip file, or was cut short" in _only_refusal(_read(tmp_path, "a.epub", data[:-100])).reason
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position : position + 3] = b"\xff\x00\xff"
        assert _read(tmp_path, "a.epub", bytes(damaged))


@pytest.mark.parametrize(("data", "reason"), [(b"", "is empty"), (b"plain text", "is neither EPUB nor PDF")])
def test_other_files_are_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    assert reason in _only_refusal(_read(tmp_path, "a.epub", data)).reason


# PDF


def _pdf(pages: Sequence[bytes], *, font: bytes = b"", info: bytes = b"") -> bytes:
    """Pages of content streams; F1 is Helvetica unless a font is given."""
    font = font or b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"
    kids = b" ".join(b"%d 0 R" % (5 + 2 * number) for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)),
        font,
        b"<< %s >>" % info,
    ]
    for number, content in enumerate(pages):
        packed = zlib.compress(content)
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            b"/Contents %d 0 R >>" % (6 + 2 * number)
        )
        objects.append(b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(packed), packed))
    out = bytearray(b"%PDF-1.7\n")
    offsets = []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R /Info 4 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(out)


def _lines(lines: Sequence[str]) -> bytes:
    """A page of lines."""
    shown = [b"(%s) Tj 0 -14 Td" % line.encode("cp1252").replace(b"(", b"\\(").replace(b")", b"\\)") for line in lines]
    return b"BT /F1 12 Tf 72 720 Td\n" + b"\n".join(shown) + b"\nET"


def _prose_pages(num_pages: int) -> list[list[str]]:
    """Real prose, 30 lines a page, with a running header and a page number."""
    lines = [line.strip() for name in sorted(topics) for line in topics[name].split("\n") if len(line.strip()) > 50]
    body = [lines[30 * number : 30 * number + 30] for number in range(num_pages)]
    return [["The Python Book", *page, f"Chapter {number // 3} {number + 5}"] for number, page in enumerate(body)]


def test_pages_are_joined_without_running_headers_and_page_numbers(tmp_path: Path) -> None:
    pages = _prose_pages(8)
    data = _pdf([_lines(page) for page in pages], info=b"/Title (A Paper) /Author (Ada)")
    (document,) = _read(tmp_path, "a.pdf", data)
    assert isinstance(document, RawDocument)
    assert (document.title, document.media_type) == ("A Paper", "text/plain")
    assert document.metadata == {"path": "a.pdf", "offset": "0", "author": "Ada", "pages": "8"}
    text = _clean(document)
    assert "The Python Book" not in text
    assert "Chapter" not in text.replace("Chapter:", "")
    assert "".join(text.split()) == "".join(" ".join(" ".join(page[1:-1]) for page in pages).split())


def test_lines_of_a_paragraph_are_joined_only_if_asked() -> None:
    lines = ["A paragraph whose first line is full and whose", "second line is as full as the first one was so"]
    page = "\n".join([*lines, "it ends here.", "Short."])
    assert join_pages([page], repeated_share=0.5, join_lines=True).split("\n") == [
        "A paragraph whose first line is full and whose second line is as full as the first one was so it ends here.",
        "Short.",
    ]
    assert join_pages([page], repeated_share=0.5, join_lines=False) == page


def test_a_divided_word_is_put_together_in_the_spelling_of_the_book() -> None:
    pages = [
        "A long-\nterm docu-\nment, in an off-\n line way by Anglo-\nSaxons.",
        "It is long-term work, and a soft\u00ad\nware thing of 1-\n2 x -\nend",
    ]
    text = join_pages(pages, repeated_share=0.5, join_lines=False)
    words = text.split()
    assert {"long-term", "document,", "Anglo-Saxons.", "software"} <= set(words)
    assert {"docu-", "docu-ment,", "longterm"}.isdisjoint(words)
    assert "1-\n2 x -\nend" in text


def test_running_lines_differ_on_odd_and_even_pages_and_count_up() -> None:
    pages = [
        f"{'BOOK' if n % 2 else f'Part {n // 4}'}\ntext {n} alpha\nbody\n{n + 11} Part {n // 4}" for n in range(12)
    ]
    kept = drop_running_lines(["\n".join([page, ""]) for page in pages], repeated_share=0.5)
    assert all(line not in ("BOOK", "Part 0") for page in kept for line in page)
    assert not any(str(number + 11) in line.split() for number, page in enumerate(kept) for line in page)


def test_text_that_repeats_in_the_middle_of_pages_stays() -> None:
    pages = [f"one {n}x\ntwo {n}y\nthree {n}z\nthe same\nfour a{n}b\nfive c{n}d\nsix e{n}f{'g' * n}" for n in range(9)]
    kept = drop_running_lines(pages, repeated_share=0.5)
    assert all("the same" in page for page in kept)


def test_narrow_gaps_of_tex_fonts_are_spaces(tmp_path: Path) -> None:
    """pypdf itself glues these words together: its threshold is half of the width of this font's glyph 32."""
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /ABCDEF+NimbusRomNo9L /FirstChar 32 /LastChar 122 /Widths [%s] >>"
    widths = b"500 " * 91
    shown = b"(In)-200(addition,)-190(if)-200(y)20(ou)-190(ha)15(v)30(e)-200(some)-190(pack)-40(ages)"
    content = b"BT /F1 10 Tf 72 700 Td [%s] TJ ET" % shown
    data = _pdf([content], font=font % widths)
    assert pypdf.PdfReader(io.BytesIO(data)).pages[0].extract_text() == "Inaddition,ifyouhavesomepackages"
    (document,) = _read(tmp_path, "a.pdf", data)
    assert isinstance(document, RawDocument)
    assert document.content == b"In addition, if you have some packages"


def _encrypted(data: bytes, *, password: str) -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(data))
    writer.encrypt(user_password=password, owner_password="owner", algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def test_a_password_is_named_and_an_empty_one_opens(tmp_path: Path) -> None:
    data = _pdf([_lines(page) for page in _prose_pages(1)])
    item = _only_refusal(_read(tmp_path, "a.pdf", _encrypted(data, password="secret")))
    assert "is encrypted: it needs a password" in item.reason
    assert "qpdf --decrypt" in item.fix
    assert isinstance(_read(tmp_path, "a.pdf", _encrypted(data, password=""))[0], RawDocument)


def test_a_scan_without_a_text_layer_says_what_to_do(tmp_path: Path) -> None:
    item = _only_refusal(_read(tmp_path, "a.pdf", _pdf([b"0 0 100 100 re f"] * 3)))
    assert "has no text layer: 0 letters on 3 pages" in item.reason
    assert "ocrmypdf" in item.fix


@pytest.mark.parametrize(
    ("book", "fields", "reason"),
    [
        ({"max_pages": 2}, {}, "has 4 pages, above book.max_pages = 2"),
        ({"max_page_work": 100}, {}, "has no page of 4 that can be read"),
        ({"max_book_work": 300}, {}, "is above book.max_book_work = 300 at page 2 of 4"),
        ({}, {"max_document_bytes": 3000}, "is above max_document_bytes = 3,000 at page 2 of 4"),
    ],
)
def test_every_limit_of_a_pdf_is_named(
    tmp_path: Path, book: dict[str, int], fields: dict[str, int], reason: str
) -> None:
    data = _pdf([_lines(page) for page in _prose_pages(4)])
    assert reason in _only_refusal(_read(tmp_path, "a.pdf", data, book=book, **fields)).reason


def test_an_unreadable_page_is_skipped_and_counted(tmp_path: Path) -> None:
    pages = [_lines(page) for page in _prose_pages(4)]
    pages[2] = b"0 0 m\n" * 3000
    (document,) = _read(tmp_path, "a.pdf", _pdf(pages), book={"max_page_work": 5000})
    assert isinstance(document, RawDocument)
    assert (document.metadata["pages"], document.metadata["skipped_pages"]) == ("4", "1")


def test_warnings_of_pypdf_are_counted_and_reach_no_other_log(tmp_path: Path) -> None:
    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    records: list[logging.LogRecord] = []
    handler = Kept()
    logging.getLogger().addHandler(handler)
    try:
        data = _pdf([_lines(page) for page in _prose_pages(2)]).replace(b"startxref\n", b"startxref\n9")
        (document,) = _read(tmp_path, "a.pdf", data)
    finally:
        logging.getLogger().removeHandler(handler)
    assert isinstance(document, RawDocument)
    assert int(document.metadata["pdf_warnings"]) > 0
    assert not records


def test_a_cut_or_damaged_pdf_gives_a_document_or_a_refusal_and_no_exception(tmp_path: Path) -> None:
    data = _pdf([_lines(page) for page in _prose_pages(2)])
    assert "cannot be read as PDF" in _only_refusal(_read(tmp_path, "a.pdf", data[:200])).reason
    for position in range(10, len(data), 97):
        damaged = bytearray(data)
        damaged[position : position + 5] = b"\xff[<(/"
        (item,) = _read(tmp_path, "a.pdf", bytes(damaged))
        assert isinstance(item, RawDocument) or item.fix
