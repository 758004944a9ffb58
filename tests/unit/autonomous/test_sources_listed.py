"""Folders and git repositories as sources: what changed is read, what is gone is told."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from autonomous.sources.batch import ReadLimit, SourceProblem
from autonomous.sources.cursors import CursorStore
from autonomous.sources.git import GitRepository
from autonomous.sources.listed import FolderReader, GitReader
from autonomous.sources.readers import check_place
from tests.streams import Stream, documents_of, http_server, read_all, source

LIMIT = ReadLimit(num_documents=2, num_bytes=1 << 20)
SETTLED_AT = 2_000_000_000.0
"""A clock far ahead of the files: none was changed a moment ago."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "wiki"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.md", "b.txt", "deep/c.md"):
        (folder / name).write_text(f"The page {name} is about pumps.\n")
    return folder


def folder_reader(folder: Path, cursors: CursorStore, *, now: float = SETTLED_AT, **fields: Any) -> FolderReader:
    config = source(kind="folder", path=str(folder), **fields)
    cursors.add(config)
    return FolderReader(config, known=cursors, max_document_bytes=1000, clock=lambda: now)


def rewrite(path: Path, text: str) -> None:
    """A change that the file's time shows, also within one tick of the clock."""
    before = path.stat().st_mtime_ns
    path.write_text(text)
    os.utime(path, ns=(before + 1_000_000_000, before + 1_000_000_000))


def test_a_pass_reads_every_file_once_and_the_next_one_nothing(folder: Path, cursors: CursorStore) -> None:
    reader = folder_reader(folder, cursors)
    cursor, batches = read_all(reader, cursors, cursor={}, limit=LIMIT)
    assert [one.title for one in documents_of(batches)] == ["a.md", "b.txt", "deep/c.md"]
    assert {one.source_id for one in documents_of(batches)} == {"src"}
    assert max(len(batch.documents) for batch in batches) == 2
    assert documents_of(read_all(reader, cursors, cursor=cursor, limit=LIMIT)[1]) == []


def test_a_batch_that_was_not_acknowledged_is_read_again(folder: Path, cursors: CursorStore) -> None:
    reader = folder_reader(folder, cursors)
    first = reader.read({}, LIMIT)
    assert reader.read({}, LIMIT).documents == first.documents
    cursors.commit("src", first, refused=[], num_repeated=0, num_bytes=0)
    again = folder_reader(folder, cursors)  # a new process: the listing is gone, cursor and marks are not
    assert [one.title for one in again.read(first.cursor, LIMIT).documents] == ["deep/c.md"]


def test_only_a_changed_content_is_read_again_under_the_same_id(folder: Path, cursors: CursorStore) -> None:
    reader = folder_reader(folder, cursors)
    cursor, before = read_all(reader, cursors, cursor={}, limit=LIMIT)
    rewrite(folder / "a.md", "The page a.md is about valves.\n")
    rewrite(folder / "b.txt", (folder / "b.txt").read_text())  # touched, as a checkout does
    cursor, batches = read_all(reader, cursors, cursor=cursor, limit=LIMIT)
    (changed,) = documents_of(batches)
    assert (changed.id, changed.content) == (documents_of(before)[0].id, b"The page a.md is about valves.\n")
    assert documents_of(read_all(reader, cursors, cursor=cursor, limit=LIMIT)[1]) == []


def test_a_file_changed_a_moment_ago_is_looked_at_again(folder: Path, cursors: CursorStore) -> None:
    changed_at = (folder / "a.md").stat().st_mtime
    reader = folder_reader(folder, cursors, now=changed_at + 0.5)
    cursor, _ = read_all(reader, cursors, cursor={}, limit=LIMIT)
    times = (folder / "a.md").stat().st_mtime_ns
    (folder / "a.md").write_text("The page a.md is about dumps.\n")  # as long as before
    os.utime(folder / "a.md", ns=(times, times))
    (again,) = documents_of(read_all(reader, cursors, cursor=cursor, limit=LIMIT)[1])
    assert again.content == b"The page a.md is about dumps.\n"


def test_removed_files_are_told_once_also_more_than_a_batch_holds(folder: Path, cursors: CursorStore) -> None:
    for number in range(5):
        (folder / f"n{number}.md").write_text(f"Number {number}.")
    reader = folder_reader(folder, cursors)
    cursor, before = read_all(reader, cursors, cursor={}, limit=LIMIT)
    ids = {one.title: one.id for one in documents_of(before)}
    for number in range(5):
        (folder / f"n{number}.md").unlink()
    cursor, batches = read_all(reader, cursors, cursor=cursor, limit=LIMIT)
    assert [key for batch in batches for key in batch.removed] == [ids[f"n{number}.md"] for number in range(5)]
    assert max(len(batch.removed) for batch in batches) == 2
    assert [batch.removed for batch in read_all(reader, cursors, cursor=cursor, limit=LIMIT)[1]] == [[]]


def test_a_folder_that_is_empty_all_at_once_is_an_error_and_no_removal(folder: Path, cursors: CursorStore) -> None:
    reader = folder_reader(folder, cursors)
    cursor, _ = read_all(reader, cursors, cursor={}, limit=LIMIT)
    for path in (*folder.glob("*.*"), folder / "deep" / "c.md"):
        path.unlink()
    with pytest.raises(SourceProblem, match="3 files of it were read before: if it is not mounted"):
        reader.read(cursor, LIMIT)
    assert len(cursors.marks("src")) == 3


def test_a_folder_that_may_not_be_listed_is_an_error_and_no_removal(
    folder: Path, cursors: CursorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = folder_reader(folder, cursors)
    cursor, _ = read_all(reader, cursors, cursor={}, limit=LIMIT)
    scan = os.scandir

    def refuse(path: str) -> Any:  # as the kernel does; permissions alone forbid nothing to root
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(SourceProblem, match=r"cannot be listed .*deep.*: give read permission"):
        reader.read(cursor, LIMIT)
    assert len(cursors.marks("src")) == 3


def test_patterns_choose_and_what_is_no_text_is_refused_with_a_fix(folder: Path, cursors: CursorStore) -> None:
    (folder / "empty.md").write_text("")
    (folder / "image.md").write_bytes(bytes(range(256)) * 2)
    (folder / "long.md").write_text("x" * 1001)
    (folder / "latin.md").write_bytes("Über die Brücke.".encode("latin-1"))
    (folder / "draft.md").write_text("not yet")
    reader = folder_reader(folder, cursors, include=["*.md"], exclude=["draft*"])
    _, batches = read_all(reader, cursors, cursor={}, limit=LIMIT)
    assert [one.title for one in documents_of(batches)] == ["a.md", "deep/c.md", "latin.md"]
    refused = {one.path: (one.reason, one.fix) for batch in batches for one in batch.refused}
    assert refused.keys() == {"empty.md", "image.md", "long.md"}
    assert "1,001 bytes, above the limit ingest.max_document_bytes = 1,000" in refused["long.md"][0]
    assert "1001" in refused["long.md"][1]
    assert "binary" in refused["image.md"][0]


def test_a_link_that_leads_out_of_the_folder_is_not_followed(
    folder: Path, cursors: CursorStore, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("The token is 1234.")
    (folder / "link.md").symlink_to(tmp_path / "secret")
    _, batches = read_all(folder_reader(folder, cursors), cursors, cursor={}, limit=LIMIT)
    assert not any(b"1234" in one.content for one in documents_of(batches) if isinstance(one.content, bytes))
    assert [one.path for batch in batches for one in batch.refused] == ["link.md"]


def test_the_systems_own_home_is_never_a_source(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "logs").mkdir(parents=True)
    for path in (home, home / "logs", tmp_path):
        with pytest.raises(SourceProblem, match="the system's own state"):
            check_place(source(kind="folder", path=str(path)), home=home)
    with pytest.raises(SourceProblem, match="the system's own state"):
        check_place(source(kind="jsonl", path=str(home / "logs" / "x.jsonl")), home=home)
    with pytest.raises(SourceProblem, match="there is no folder"):
        check_place(source(kind="folder", path=str(tmp_path / "nowhere")), home=home)


# -- git


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder: Path, **files: str | None) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", ".")
        path.unlink() if text is None else path.write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "change", "--date", "2026-01-01T00:00:00Z")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    folder.mkdir()
    git(folder, "init", "--quiet")
    commit(folder, a__py="print(1)\n", b__md="# Bees\nBees fly.\n")
    return folder


def git_reader(place: Path | str, cursors: CursorStore, tmp_path: Path, **fields: Any) -> GitReader:
    config = source(kind="git", repository=str(place), **fields)
    cursors.add(config)
    return GitReader(config, known=cursors, max_document_bytes=1000, clones=tmp_path / "clones")


def test_a_repository_is_read_as_it_is_committed(repository: Path, cursors: CursorStore, tmp_path: Path) -> None:
    (repository / "a.py").write_text("print('not committed')\n")
    (repository / "untracked.md").write_text("not tracked")
    reader = git_reader(repository, cursors, tmp_path)
    cursor, batches = read_all(reader, cursors, cursor={}, limit=LIMIT)
    assert [(one.title, one.content) for one in documents_of(batches)] == [
        ("a.py", b"print(1)\n"),
        ("b.md", b"# Bees\nBees fly.\n"),
    ]
    at = float(git(repository, "log", "-1", "--format=%ct"))
    assert {one.happened_at for one in documents_of(batches)} == {at}
    assert documents_of(read_all(reader, cursors, cursor=cursor, limit=LIMIT)[1]) == []


def test_a_commit_brings_what_changed_and_tells_what_is_gone(
    repository: Path, cursors: CursorStore, tmp_path: Path
) -> None:
    reader = git_reader(repository, cursors, tmp_path)
    cursor, before = read_all(reader, cursors, cursor={}, limit=LIMIT)
    ids = {one.title: one.id for one in documents_of(before)}
    commit(repository, a__py="print(2)\n", b__md=None, c__md="New.")
    _, batches = read_all(reader, cursors, cursor=cursor, limit=LIMIT)
    changed = documents_of(batches)
    assert [one.title for one in changed] == ["a.py", "c.md"]
    assert changed[0].id == ids["a.py"]
    assert [key for batch in batches for key in batch.removed] == [ids["b.md"]]


def test_a_branch_that_was_rewritten_is_read_as_it_is_now(
    repository: Path, cursors: CursorStore, tmp_path: Path
) -> None:
    git(repository, "checkout", "--quiet", "-b", "work")
    commit(repository, x__md="First try.")
    reader = git_reader(repository, cursors, tmp_path, branch="work")
    cursor, _ = read_all(reader, cursors, cursor={}, limit=LIMIT)
    git(repository, "reset", "--quiet", "--hard", "HEAD~1")
    commit(repository, x__md="Second try.")
    git(repository, "checkout", "--quiet", "main")
    (document,) = documents_of(read_all(reader, cursors, cursor=cursor, limit=LIMIT)[1])
    assert document.content == b"Second try."


def test_links_binaries_and_big_files_of_a_commit_are_no_documents(
    repository: Path, cursors: CursorStore, tmp_path: Path
) -> None:
    (repository / "link.md").symlink_to("/etc/passwd")
    (repository / "image").write_bytes(bytes(256))
    (repository / "odd name ü.md").write_bytes("Größe".encode("latin-1"))
    commit(repository, big__txt="y" * 1001, empty__md="")
    _, batches = read_all(git_reader(repository, cursors, tmp_path), cursors, cursor={}, limit=LIMIT)
    assert [one.title for one in documents_of(batches)] == ["a.py", "b.md", "odd name ü.md"]
    assert {one.path for batch in batches for one in batch.refused} == {"big.txt", "image", "empty.md"}


def test_a_bare_repository_is_read_and_a_missing_branch_is_an_error_with_a_fix(
    repository: Path, cursors: CursorStore, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(repository), str(bare))
    assert len(documents_of(read_all(git_reader(bare, cursors, tmp_path), cursors, cursor={}, limit=LIMIT)[1])) == 2
    with pytest.raises(SourceProblem, match=r"branch nowhere.*correct repository or branch"):
        git_reader(bare, cursors, tmp_path, branch="nowhere").read({}, LIMIT)
    (tmp_path / "plain").mkdir()
    with pytest.raises(SourceProblem, match="git cannot read"):
        git_reader(tmp_path / "plain", cursors, tmp_path).read({}, LIMIT)


def test_an_object_that_is_not_there_is_an_error_with_a_fix(
    repository: Path, cursors: CursorStore, tmp_path: Path
) -> None:
    blob = git(repository, "rev-parse", "HEAD:a.py")
    (repository / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(SourceProblem, match=rf"lacks objects \({blob}\).*git fetch --refetch --no-filter"):
        read_all(git_reader(repository, cursors, tmp_path), cursors, cursor={}, limit=LIMIT)
    with pytest.raises(SourceProblem, match=rf"lacks objects \({blob}\)"):
        GitRepository(source(kind="git", repository=str(repository)), clones=tmp_path).contents([blob])


def test_a_clone_without_its_contents_is_an_error_with_a_fix(
    repository: Path, cursors: CursorStore, tmp_path: Path
) -> None:
    git(repository, "config", "uploadpack.allowFilter", "true")
    partial = tmp_path / "partial"
    git(tmp_path, "clone", "--quiet", "--bare", "--filter=blob:none", f"file://{repository}", str(partial))
    with pytest.raises(SourceProblem, match=r"lacks objects .*promisor.*git fetch --refetch --no-filter"):
        read_all(git_reader(partial, cursors, tmp_path), cursors, cursor={}, limit=LIMIT)
    git(partial, "fetch", "--quiet", "--refetch", "--no-filter")
    assert len(documents_of(read_all(git_reader(partial, cursors, tmp_path), cursors, cursor={}, limit=LIMIT)[1])) == 2


def test_a_repository_elsewhere_is_cloned_once_and_fetched_then(
    repository: Path, cursors: CursorStore, tmp_path: Path
) -> None:
    from functools import partial
    from http.server import SimpleHTTPRequestHandler

    bare = tmp_path / "served" / "app.git"
    bare.parent.mkdir()
    git(tmp_path, "clone", "--quiet", "--bare", str(repository), str(bare))
    git(bare, "update-server-info")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http_server(partial(Quiet, directory=str(bare.parent))) as url:  # type: ignore[arg-type]
        reader = git_reader(f"{url}/app.git", cursors, tmp_path, allow_remote=True)
        cursor, batches = read_all(reader, cursors, cursor={}, limit=LIMIT)
        assert len(documents_of(batches)) == 2
        commit(repository, a__py="print(3)\n")
        git(repository, "push", "--quiet", str(bare), "main")
        git(bare, "update-server-info")
        (document,) = documents_of(read_all(reader, cursors, cursor=cursor, limit=LIMIT)[1])
        assert document.content == b"print(3)\n"


def test_a_changed_and_a_removed_file_leave_no_old_passage_to_be_recalled(tmp_path: Path) -> None:
    folder = tmp_path / "wiki"
    folder.mkdir()
    for name, code in (("gate.md", "KX-1"), ("door.md", "KX-7"), ("copy.md", "KX-7")):
        (folder / name).write_text(f"The access code of the {name[:4]} is {code}.\n")
    (folder / "copy.md").write_text((folder / "door.md").read_text())
    stream = Stream(tmp_path)
    stream.add(kind="folder", path=str(folder))
    stream.drain()
    assert stream.store.texts() == ["The access code of the door is KX-7.", "The access code of the gate is KX-1."]
    rewrite(folder / "gate.md", "The access code of the gate is KX-2.\n")
    (folder / "door.md").unlink()
    stream.drain(seconds=11)
    assert stream.store.texts() == ["The access code of the door is KX-7.", "The access code of the gate is KX-2."]
    (folder / "copy.md").unlink()
    stream.drain(seconds=11)
    assert stream.store.texts() == ["The access code of the gate is KX-2."]
    assert (stream.row()["num_documents"], stream.row()["num_removed"]) == (4, 2)
    stream.close()


@pytest.mark.parametrize("setting", ["log.showSignature", "core.fsmonitor", "core.hooksPath"])
def test_no_program_that_a_repository_names_is_run(
    setting: str, repository: Path, cursors: CursorStore, tmp_path: Path
) -> None:
    ran, program = tmp_path / "ran", tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n", encoding="utf-8")
    program.chmod(0o755)
    signed = git(repository, "cat-file", "commit", "HEAD").replace(
        "\n\n", "\ngpgsig -----BEGIN PGP SIGNATURE-----\n \n -----END PGP SIGNATURE-----\n\n", 1
    )
    (tmp_path / "commit").write_text(signed + "\n", encoding="utf-8")
    sha = git(repository, "hash-object", "-t", "commit", "-w", str(tmp_path / "commit")).strip()
    git(repository, "update-ref", "refs/heads/signed", sha)
    git(repository, "config", "gpg.program", str(program))
    git(repository, "config", setting, "true" if setting == "log.showSignature" else str(program))
    reader = git_reader(repository, cursors, tmp_path, branch="signed")
    assert len(documents_of(read_all(reader, cursors, cursor={}, limit=LIMIT)[1])) == 2
    assert not ran.exists()
    if setting == "log.showSignature":
        git(repository, "show", "--no-patch", "signed")
        assert ran.exists(), "git runs it where nobody forbids it, so this test can fail"
