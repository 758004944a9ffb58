"""How sources become work units, and what a unit reads: everything once, nothing from outside, the same in any cut."""

import gzip
import io
import itertools
import json
import os
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from tests import source_items
from tests.source_units import ReadSources, read_source, refusals_of, source_at
from train.data.document import EmptySource, RawDocument, Rejected
from train.data.listing import is_wanted, matches
from train.data.source_config import SourceConfig
from train.data.units import KINDS, Unit, plan_units, read_unit

KIB = 1 << 10


def _paths(source: SourceConfig) -> list[str]:
    return [path for unit in plan_units([source]) for path in unit.paths]


def _tile(units: list[Unit]) -> None:
    """Ranges of each path follow each other from its beginning to its end."""
    for path in {path for unit in units for path in unit.paths}:
        ranges = [(unit.start, unit.stop) for unit in units if path in unit.paths]
        assert ranges[0][0] == 0
        assert ranges[-1][1] is None
        assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every topic of the Python reference as a Markdown file, in folders by first letter."""
    folder = tmp_path / "docs"
    for name, text in topics.items():
        path = folder / name[0].lower() / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


# Listing


def test_a_folder_is_listed_in_the_order_of_its_paths_each_file_once(folder: Path) -> None:
    paths = _paths(source_at(folder))
    assert paths == sorted(paths)
    assert sorted(Path(path).stem for path in paths) == sorted(topics)
    documents = [item for item in read_source(source_at(folder)) if isinstance(item, RawDocument)]
    assert [document.metadata["path"] for document in documents] == paths


def test_only_the_suffixes_of_the_kind_are_read_unless_patterns_say_more(folder: Path) -> None:
    for name in ("README", "a.png", "b.jsonl", ".git/config.txt", "node_modules/x.md", "x.md.partial-1"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("text")
    assert set(_paths(source_at(folder))) - {f"{name[0].lower()}/{name}.md" for name in topics} == {"README"}
    assert _paths(source_at(folder, include=["*.png"])) == ["a.png"]
    assert _paths(source_at(folder, include=["w/*.md", "README"], exclude=["*with*"])) == ["README", "w/while.md"]


@pytest.mark.parametrize(
    ("pattern", "path", "is_match"),
    [
        ("*.md", "a/b/c.md", True),
        ("a/*.md", "a/c.md", True),
        ("a/*.md", "a/b/c.md", False),
        ("a/**/*.md", "a/c.md", True),
        ("a/**/*.md", "a/b/d/c.md", True),
        ("**/c.md", "c.md", True),
        ("?.md", "c.md", True),
        ("[a-c].md", "d.md", False),
        ("[!a-c].md", "d.md", True),
        ("a.md", "aXmd", False),
        ("**", "a/b/c", True),
    ],
)
def test_patterns_mean_what_a_shell_means(pattern: str, path: str, is_match: bool) -> None:
    assert matches(pattern, path) is is_match


def test_suffixes_do_not_mind_case_and_compressed_files_belong_to_their_kind(tmp_path: Path) -> None:
    source = source_at(tmp_path, "jsonl")
    assert all(is_wanted(path, source=source) for path in ("a.JSONL", "b/c.jsonl.gz", "d.jsonl.zst", "e.json.gz"))
    assert not any(is_wanted(path, source=source) for path in ("a.json", "b.gz", "jsonl"))


def test_a_location_may_be_a_file_a_folder_or_a_glob(folder: Path) -> None:
    assert _paths(source_at(folder / "w" / "while.md")) == ["while.md"]
    assert _paths(source_at(folder / "w")) == ["while.md", "with.md"]
    assert _paths(source_at(f"{folder}/*/w*.md")) == ["w/while.md", "w/with.md"]
    odd = folder / "a [b]"
    odd.mkdir()
    (odd / "x.md").write_text("x")
    assert _paths(source_at(odd)) == ["x.md"]


def test_a_remote_store_is_listed_and_read_like_a_folder() -> None:

    store = fsspec.filesystem("memory")
    store.pipe({f"/units/{name}.md": text.encode() for name, text in list(topics.items())[:5]})
    source = source_at("memory://units")
    documents = [item for item in read_source(source) if isinstance(item, RawDocument)]
    assert [document.metadata["path"] for document in documents] == sorted(f"{name}.md" for name in list(topics)[:5])
    before = plan_units([source])[0].fingerprint
    store.pipe("/units/if.md", b"longer than before, in any case")
    assert plan_units([source])[0].fingerprint != before


def test_a_link_that_leads_out_is_refused_and_one_within_is_read_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.md").write_text("secret")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "x.md").write_text("secret")
    (folder / "blob").mkdir()
    (folder / "blob" / "0123.bin").write_text("kept under a hash")
    (folder / "out.md").symlink_to(tmp_path / "secret.md")
    (folder / "out").symlink_to(tmp_path / "private")
    (folder / "twin.md").symlink_to(folder / "w" / "with.md")
    (folder / "real.md").symlink_to(folder / "blob" / "0123.bin")
    (folder / "again.md").symlink_to(folder / "blob" / "0123.bin")
    (folder / "loop").symlink_to(folder)
    (folder / "gone.md").symlink_to(folder / "nowhere")
    items = read_source(source_at(folder))
    texts = [item.content for item in items if isinstance(item, RawDocument)]
    assert b"secret" not in texts
    assert texts.count(b"kept under a hash") == 1
    assert len(texts) == len(topics) + 1
    reasons = refusals_of(source_at(folder))
    assert set(reasons) == {"out.md", "out", "gone.md"}
    assert "leads out of the source" in reasons["out.md"]
    assert "leads nowhere" in reasons["gone.md"]


def test_a_local_folder_named_by_a_uri_has_the_same_rules(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.md").write_text("secret")
    (folder / "out.md").symlink_to(tmp_path / "secret.md")
    plain = read_source(source_at(folder))
    for scheme in ("file", "local"):
        assert read_source(source_at(f"{scheme}://{folder}")) == plain


def test_a_file_that_becomes_a_link_after_the_plan_is_refused(folder: Path, tmp_path: Path) -> None:
    source = source_at(folder / "w")
    units = plan_units([source])
    (tmp_path / "secret.md").write_text("secret")
    (folder / "w" / "with.md").unlink()
    (folder / "w" / "with.md").symlink_to(tmp_path / "secret.md")
    items = [item for unit in units for item in read_unit(unit, ReadSources((source,)))]
    assert [item.path for item in items if isinstance(item, Rejected)] == ["with.md"]
    assert len(items) == 2


def test_a_file_that_is_gone_after_the_plan_is_refused_without_the_machines_path(folder: Path) -> None:
    source = source_at(folder / "w")
    units = plan_units([source])
    (folder / "w" / "with.md").unlink()
    items = [item for unit in units for item in read_unit(unit, ReadSources((source,)))]
    (item,) = [item for item in items if isinstance(item, Rejected)]
    assert (item.path, item.reason) == ("with.md", "cannot be read (No such file or directory)")


def test_pipes_and_names_that_are_not_unicode_are_refused(folder: Path) -> None:
    os.mkfifo(folder / "pipe.md")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.md")).write_text("odd")
    reasons = refusals_of(source_at(folder))
    assert "pipe, socket or device" in reasons["pipe.md"]
    assert "not Unicode" in reasons["\ufffd.md"]


@pytest.mark.parametrize(("location", "fields", "words"), [
    ("nowhere", {}, "location .*nowhere does not exist"),
    ("docs", {"kind": "parquet"}, "no file of .*docs matches .parquet"),
    ("docs", {"include": ["*.exe"]}, r"no file of .*docs matches \*.exe"),
])  # fmt: skip
def test_a_source_without_files_says_where_it_looked_and_for_what(
    folder: Path, location: str, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        plan_units([source_at(folder.parent / location, **fields)])


def test_a_source_of_refused_files_alone_is_empty_and_names_the_first(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.md").symlink_to(tmp_path / "y.md")
    with pytest.raises(EmptySource, match=r"1 were refused, first x\.md, which is a symbolic link that leads nowhere"):
        plan_units([source_at(tmp_path / "a")])


# Planning


def test_small_files_go_together_up_to_the_size_of_a_unit(folder: Path) -> None:
    units = plan_units([source_at(folder, unit_bytes=64 * KIB)])
    total = sum(len(text.encode()) for text in topics.values())
    assert sum(unit.size_bytes for unit in units) == total
    assert total / (64 * KIB) < len(units) < 2 * total / (32 * KIB)
    assert all(unit.size_bytes <= 64 * KIB or len(unit.paths) == 1 for unit in units)


def test_a_plan_is_the_same_for_the_same_listing_and_survives_json(folder: Path) -> None:
    sources = [source_at(folder, unit_bytes=64 * KIB), source_at(folder, name="again", include=["w/*"])]
    units = plan_units(sources)
    assert units == plan_units(sources)
    assert [unit.index for unit in units] == list(range(len(units)))
    rows = [unit.to_json() for unit in units]
    assert json.loads(json.dumps(rows)) == rows
    assert [Unit.from_json(row) for row in json.loads(json.dumps(rows))] == units


def test_a_changed_file_changes_the_fingerprint_of_its_unit_only(folder: Path) -> None:
    source = source_at(folder, unit_bytes=32 * KIB)
    before = plan_units([source])
    os.utime(folder / "w" / "with.md", ns=(1, 1))
    after = plan_units([source])
    changed = [old.paths for old, new in zip(before, after, strict=True) if old.fingerprint != new.fingerprint]
    assert len(changed) == 1
    assert "w/with.md" in changed[0]


def test_a_refused_link_is_reported_by_the_first_unit_of_its_source_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("x")
    (folder / "out.md").symlink_to(tmp_path / "x.md")
    units = plan_units([source_at(folder, unit_bytes=64 * KIB)])
    assert [len(unit.rejected) for unit in units] == [1] + [0] * (len(units) - 1)


def test_ids_and_units_do_not_depend_on_where_the_source_lies(folder: Path, tmp_path: Path) -> None:
    first = [item.id for item in read_source(source_at(folder)) if isinstance(item, RawDocument)]
    folder.rename(tmp_path / "moved")
    assert [item.id for item in read_source(source_at(tmp_path / "moved")) if isinstance(item, RawDocument)] == first


def test_what_a_source_states_goes_into_each_documents_metadata(folder: Path) -> None:
    source = source_at(folder / "w", licence="PSF-2.0", language="en")
    for item in read_source(source):
        assert isinstance(item, RawDocument)
        assert item.metadata["licence"] == "PSF-2.0"
        assert item.metadata["source_language"] == "en"
        assert item.metadata["kind"] == "text"


def test_a_unit_of_an_unknown_source_is_an_error(folder: Path) -> None:
    unit = plan_units([source_at(folder)])[0]
    with pytest.raises(ValueError, match="belongs to source 'source', which the configuration does not have"):
        list(read_unit(unit, ReadSources((source_at(folder, name="other"),))))


# Reading, whole and in units


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """READMEs of installed packages as one file of each kind that is cut."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = list(source_items.readmes().values())[:150]
    (folder / "a.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    (folder / "a.txt").write_text("\n\n".join(texts))
    pq.write_table(pa.table({"text": texts}), folder / "a.parquet", row_group_size=7)
    with (folder / "a.warc.gz").open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for number, text in enumerate(texts):
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/plain; charset=utf-8")], protocol="HTTP/1.1")
            body = io.BytesIO(text.encode())
            url = f"http://example.com/{number}"
            writer.write_record(writer.create_warc_record(url, "response", payload=body, http_headers=headers))
    return folder


CUT = {
    "a.jsonl": {"kind": "jsonl"},
    "a.txt": {"kind": "text", "oversize": "split", "max_document_bytes": 16 * KIB},
    "a.parquet": {"kind": "parquet"},
    "a.warc.gz": {"kind": "web"},
}
"""Files that are cut, and the source that reads them."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CUT, "lines"])
def test_a_big_file_gives_the_same_documents_in_any_number_of_units(corpus: Path, name: str) -> None:
    fields = {"kind": "text", "document": "line"} if name == "lines" else CUT[name]
    location = corpus / ("a.txt" if name == "lines" else name)
    whole = read_source(source_at(location, **fields))
    assert len(whole) > 50
    for unit_bytes in (17 * KIB, 64 * KIB, 1 << 30):
        source = source_at(location, unit_bytes=unit_bytes, **fields)
        units = plan_units([source])
        assert (len(units) > 3) == (unit_bytes < 1 << 30)
        _tile(units)
        assert read_source(source) == whole


@given(unit_bytes=st.integers(20 * KIB, 200 * KIB), max_document_bytes=st.integers(2 * KIB, 60 * KIB))
@settings(max_examples=12, deadline=None)
def test_pieces_of_a_big_text_do_not_depend_on_the_size_of_units(
    corpus: Path, unit_bytes: int, max_document_bytes: int
) -> None:
    fields = {"kind": "text", "oversize": "split", "max_document_bytes": max_document_bytes}
    whole = read_source(source_at(corpus / "a.txt", unit_bytes=1 << 30, **fields))
    source = source_at(corpus / "a.txt", unit_bytes=unit_bytes, **fields)
    _tile(plan_units([source]))
    assert read_source(source) == whole


def test_compressed_files_and_annotations_are_whole(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((corpus / "a.jsonl").read_bytes()))
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "x", "rating": 1}\n' * 1000)
    assert [unit.paths for unit in plan_units([source_at(tmp_path, "jsonl", unit_bytes=KIB, exclude=["b*"])])] == [
        ("a.jsonl.gz",)
    ]
    units = plan_units([source_at(tmp_path, "annotations", unit_bytes=KIB)])
    assert [(unit.paths, unit.start, unit.stop) for unit in units] == [(("a.jsonl.gz", "b.jsonl"), 0, None)]


def test_a_damaged_parquet_file_is_planned_whole_and_its_reader_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"x" * 5000)
    source = source_at(tmp_path, "parquet", unit_bytes=KIB)
    assert len(plan_units([source])) == 1
    assert "cannot be read as Parquet" in refusals_of(source)["a.parquet"]


def test_every_kind_has_a_reader() -> None:
    assert set(KINDS) == set(SourceConfig.model_fields["kind"].annotation.__args__)  # type: ignore[union-attr]
