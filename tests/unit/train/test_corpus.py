"""The default corpus: real documentation of this installation, the same bytes each time."""

import hashlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from train.data.corpus import MAX_README_BYTES, write_default_corpus
from train.data.document import RawDocument, read_source


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_default_corpus(tmp_path_factory.mktemp("state") / "corpus")


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_has_the_python_topics_and_the_pages_of_installed_packages(corpus: Path) -> None:
    assert "assert" in (corpus / "language" / "assert.txt").read_text()
    page = (corpus / "packages" / "pydantic.md").read_text()
    title, headers, _ = page.split("\n\n", 2)
    assert title == "# pydantic"
    assert headers.startswith(f"Name: pydantic\nVersion: {importlib.metadata.version('pydantic')}\nSummary: ")
    assert "License: " in headers
    assert "# Pydantic" in page


def test_every_page_is_a_readable_document_and_the_manifest_is_none(corpus: Path) -> None:
    items = list(read_source(corpus))
    assert all(isinstance(item, RawDocument) for item in items)
    assert len(items) == len(_bytes(corpus)) - 1


def test_the_manifest_names_version_and_sha256_of_every_page(corpus: Path) -> None:
    files = json.loads((corpus / "MANIFEST.json").read_text())["files"]
    found = {name: hashlib.sha256(data).hexdigest() for name, data in _bytes(corpus).items() if name != "MANIFEST.json"}
    assert {file["path"]: file["sha256"] for file in files} == found
    assert all(file["name"] and file["version"] for file in files)


def test_pages_are_cut_at_the_end_of_a_paragraph(corpus: Path) -> None:
    sizes = [path.stat().st_size for path in (corpus / "packages").iterdir()]
    assert MAX_README_BYTES / 2 < max(sizes) < MAX_README_BYTES + 2000


def test_writing_it_again_touches_nothing(corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    write_default_corpus(corpus)
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_two_folders_get_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    assert _bytes(write_default_corpus(tmp_path)) == _bytes(corpus)


@pytest.mark.slow
def test_pages_of_packages_that_are_gone_are_removed_and_nothing_else(tmp_path: Path) -> None:
    write_default_corpus(tmp_path)
    (tmp_path / "packages" / "gone.md").write_text("old")
    (tmp_path / "packages" / "mine.md").write_text("a person's own")
    (tmp_path.parent / "outside.md").write_text("precious")
    manifest = json.loads((tmp_path / "MANIFEST.json").read_text())
    manifest["files"] += [{"path": "packages/gone.md"}, {"path": "../outside.md"}]
    (tmp_path / "MANIFEST.json").write_text(json.dumps(manifest))
    write_default_corpus(tmp_path)
    assert not (tmp_path / "packages" / "gone.md").exists()
    assert (tmp_path / "packages" / "mine.md").exists()
    assert (tmp_path.parent / "outside.md").exists()


@pytest.mark.slow
def test_the_package_importlib_metadata_changes_nothing(tmp_path: Path) -> None:
    """Once imported it gives other metadata objects, whose README is a header and whose [] raises KeyError."""
    command = "import sys; from pathlib import Path; {} from train.data.corpus import write_default_corpus; "
    command += "write_default_corpus(Path(sys.argv[1]))"
    for name, first in (("plain", ""), ("moved", "import importlib_metadata;")):
        subprocess.run([sys.executable, "-c", command.format(first), str(tmp_path / name)], check=True)
    plain, moved = (json.loads((tmp_path / name / "MANIFEST.json").read_text())["files"] for name in ("plain", "moved"))
    assert [row["path"] for row in plain] == [row["path"] for row in moved]
