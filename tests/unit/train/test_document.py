"""What a source yields, and what it refuses with which fix."""

import os
import subprocess
from pathlib import Path

import pytest

from train.data.document import EmptySource, RawDocument, Rejected, read_source


def _documents(folder: Path, **options: int) -> list[RawDocument]:
    return [item for item in read_source(folder, **options) if isinstance(item, RawDocument)]


def _rejected(folder: Path, **options: int) -> dict[str, Rejected]:
    return {item.path: item for item in read_source(folder, **options) if isinstance(item, Rejected)}


def _git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "two.md").write_text("# Two\n")
    (folder / "a.txt").write_text("one")
    (folder / "c.py").write_text("print(3)")
    (folder / "d.html").write_text("<p>four</p>")
    return folder


def test_files_come_sorted_by_relative_path_with_their_media_type(folder: Path) -> None:
    assert [(document.title, document.media_type) for document in _documents(folder)] == [
        ("a.txt", "text/plain"),
        ("b/two.md", "text/markdown"),
        ("c.py", "text/x-python"),
        ("d.html", "text/html"),
    ]


def test_a_changed_file_keeps_its_document_id(folder: Path) -> None:
    before = _documents(folder)[0]
    (folder / "a.txt").write_text("something else")
    after = _documents(folder)[0]
    assert (after.id, after.source_id) == (before.id, "folder:docs")
    assert after.content != before.content


def test_text_is_told_by_content_not_by_suffix(folder: Path) -> None:
    (folder / "notes.dat").write_text("plain words")
    (folder / "fake.txt").write_bytes(b"\x7fELF\x00\x01")
    (folder / "noise").write_bytes(bytes(range(1, 256)) * 20)
    (folder / "paper.txt").write_bytes(b"%PDF-1.4 text")
    assert "notes.dat" in [document.title for document in _documents(folder)]
    rejected = _rejected(folder)
    assert "binary" in rejected["fake.txt"].reason
    assert "control bytes" in rejected["noise"].reason
    assert "PDF" in rejected["paper.txt"].reason
    assert all("UTF-8" in item.fix for item in rejected.values())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "latin-1"])
def test_other_encodings_are_text(folder: Path, encoding: str) -> None:
    (folder / "z.txt").write_bytes("Zürich über alles".encode(encoding))
    assert _documents(folder)[-1].title == "z.txt"


def test_a_file_above_the_limit_is_refused_with_size_limit_field_and_fix(folder: Path) -> None:
    (folder / "big.txt").write_text("x" * 1001)
    item = _rejected(folder, max_file_bytes=1000)["big.txt"]
    assert "1,001 bytes" in item.reason
    assert "ingest.max_document_bytes = 1,000" in item.reason
    assert "at least 1001" in item.fix


def test_a_file_at_the_limit_is_read(folder: Path) -> None:
    (folder / "big.txt").write_text("x" * 1000)
    assert "big.txt" in [document.title for document in _documents(folder, max_file_bytes=1000)]


def test_an_empty_file_a_pipe_and_a_dangling_link_are_refused_and_the_rest_is_read(folder: Path) -> None:
    (folder / "empty.md").write_text(" \n")
    os.mkfifo(folder / "pipe")
    (folder / "gone").symlink_to(folder / "nowhere")
    rejected = _rejected(folder)
    assert set(rejected) == {"empty.md", "pipe", "gone"}
    assert "pipe" in rejected["pipe"].reason
    assert "cannot be read" in rejected["gone"].reason
    assert len(_documents(folder)) == 4


def test_symbolic_links_lead_nowhere_outside_and_nothing_is_read_twice(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "x.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "linked").symlink_to(tmp_path / "private")
    (folder / "twin.txt").symlink_to(folder / "a.txt")
    (folder / "loop").symlink_to(folder)
    assert set(_rejected(folder)) == {"link.txt", "linked"}
    assert [document.title for document in _documents(folder)] == ["a.txt", "b/two.md", "c.py", "d.html"]


def test_version_control_caches_and_the_manifest_are_no_documents(folder: Path) -> None:
    for name in (".hg/store.txt", "__pycache__/x.txt", "MANIFEST.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "b" / "MANIFEST.json").write_text("{}")
    assert [document.title for document in _documents(folder)] == [
        "a.txt",
        "b/MANIFEST.json",
        "b/two.md",
        "c.py",
        "d.html",
    ]


def test_a_git_repository_yields_its_tracked_files_only(folder: Path) -> None:
    _git(folder, "init", "-q")
    _git(folder, "add", "a.txt", "b")
    (folder / "b" / "two.md").unlink()
    items = list(read_source(folder))
    assert [item.title for item in items if isinstance(item, RawDocument)] == ["a.txt"]
    assert [item.path for item in items if isinstance(item, Rejected)] == ["b/two.md"]
    assert isinstance(items[0], RawDocument)
    assert items[0].source_id == "git:docs"


def test_a_tracked_folder_replaced_by_a_link_does_not_lead_out(folder: Path, tmp_path: Path) -> None:
    _git(folder, "init", "-q")
    _git(folder, "add", ".")
    (folder / "b" / "two.md").unlink()
    (folder / "b").rmdir()
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "two.md").write_text("secret")
    (folder / "b").symlink_to(tmp_path / "private")
    assert "leads out" in _rejected(folder)["b/two.md"].reason


def test_a_repository_that_git_cannot_list_is_walked(folder: Path) -> None:
    (folder / ".git").mkdir()
    assert len(_documents(folder)) == 4


def test_a_source_without_a_readable_document_says_so_after_its_refusals(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\x00\x01")
    stream = read_source(tmp_path)
    assert isinstance(next(stream), Rejected)
    with pytest.raises(EmptySource, match=r"no readable document \(1 files were rejected\)"):
        next(stream)


def test_an_empty_folder_is_an_empty_source(tmp_path: Path) -> None:
    with pytest.raises(EmptySource, match="give a folder with text files"):
        list(read_source(tmp_path))


def test_a_missing_path_or_a_file_is_refused_at_once(folder: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_source(folder / "nowhere")
    with pytest.raises(ValueError, match="give the folder that holds it"):
        read_source(folder / "a.txt")


def test_files_are_read_one_by_one_as_the_stream_advances(folder: Path) -> None:
    stream = read_source(folder)
    next(stream)
    (folder / "d.html").write_text("<p>changed later</p>")
    assert [item.content for item in stream if isinstance(item, RawDocument)][-1] == b"<p>changed later</p>"


def test_a_name_that_is_not_unicode_still_gives_a_printable_title(folder: Path) -> None:
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt"))).write_text("odd")
    assert _documents(folder)[-1].title == "\ufffd.txt"
