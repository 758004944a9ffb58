"""What may not be read, and what must not be written to: refused by name before anything is lost."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.source_units import read_source, refusals_of, source_at
from train.data.listing import NoAccess, refuse_overlap
from train.data.units import plan_units


@pytest.mark.parametrize(
    ("location", "output"),
    [
        ("docs", "docs/out"),
        ("docs", "docs"),
        ("docs/text", "docs"),
        ("docs/a.txt", "docs"),
        ("docs/**/*.txt", "docs/text/out"),
        ("docs/*/*.txt", "docs/out"),
        ("docs/**", "docs/out"),
        ("docs", "link/out"),
        ("link", "docs/text/out"),
        ("file://docs", "link"),
    ],
)
def test_an_output_that_would_be_its_own_input_is_refused(tmp_path: Path, location: str, output: str) -> None:
    (tmp_path / "docs" / "text").mkdir(parents=True)
    (tmp_path / "docs" / "a.txt").write_text("words")
    (tmp_path / "link").symlink_to(tmp_path / "docs")
    place = f"file://{tmp_path}/docs" if location == "file://docs" else str(tmp_path / location)
    with pytest.raises(
        ValueError, match=r"output = .* (holds|lies in) source 'source' \(location = .*give an output outside"
    ):
        refuse_overlap(source_at(place), output=str(tmp_path / output))


@pytest.mark.parametrize(
    ("location", "output"),
    [
        ("docs", "out"),
        ("docs", "docs-of-run"),
        ("docs/a.txt", "docs/out"),
        ("docs/*.txt", "docs/out"),
        ("docs/t*/*.txt", "docs/out"),
        ("docs", "memory://docs/out"),
    ],
)
def test_an_output_beside_its_source_is_taken(tmp_path: Path, location: str, output: str) -> None:
    (tmp_path / "docs" / "text").mkdir(parents=True)
    (tmp_path / "docs" / "a.txt").write_text("words")
    refuse_overlap(source_at(tmp_path / location), output=output if "://" in output else str(tmp_path / output))


def test_overlap_is_refused_on_object_stores_too() -> None:
    with fsspec.open("memory://bucket/web/a.txt", "w") as file:
        file.write("words")
    with pytest.raises(ValueError, match="lies in source"):
        refuse_overlap(source_at("memory://bucket/web"), output="memory://bucket/web/out/")
    refuse_overlap(source_at("memory://bucket/web"), output="memory://bucket/web2")


class GuardedStore(MemoryFileSystem):  # type: ignore[misc]
    """An object store that refuses to open what has "secret" in its name, and has lost what has "gone" in it."""

    protocol = "guarded"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> Any:
        return super()._strip_protocol(path.replace("guarded://", "memory://"))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "secret" in path and mode == "rb":
            raise PermissionError("Forbidden")
        if "gone" in path and mode == "rb":
            raise FileNotFoundError(path)
        return super()._open(path, mode, **options)


@pytest.fixture
def guarded() -> Iterator[GuardedStore]:
    fsspec.register_implementation("guarded", GuardedStore, clobber=True)
    yield GuardedStore()
    GuardedStore.store.clear()


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "web", "book", "code", "annotations"])
def test_a_lack_of_permission_is_no_damage_and_ends_the_reading(guarded: GuardedStore, kind: str) -> None:
    suffix = {
        "jsonl": "jsonl",
        "parquet": "parquet",
        "web": "warc",
        "book": "pdf",
        "code": "zip",
        "annotations": "jsonl",
    }
    name = f"b-secret.{suffix.get(kind, 'txt')}"
    guarded.pipe(f"/{kind}/{name}", b"some words")
    source = source_at(f"guarded:///{kind}", kind)
    with pytest.raises(
        NoAccess, match=r"source 'source': .*may not be read \(location = guarded:.*Forbidden.*run again"
    ) as caught:
        read_source(source)
    assert kind == "annotations" or name in str(caught.value)


def test_a_file_that_is_gone_is_a_loss(guarded: GuardedStore) -> None:
    guarded.pipe({"/docs/a.txt": b"words", "/docs/gone.txt": b"words"})
    assert refusals_of(source_at("guarded:///docs")) == {"gone.txt": "cannot be read (FileNotFoundError)"}


def test_a_local_folder_or_a_file_of_a_repository_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses; a test that runs as root must say so itself."""
    for name in ("docs/a.txt", "docs/closed/b.txt", "code/a.py", "code/locked.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("import os\n" * 20)
    real_scandir, real_open = os.scandir, os.open

    def scandir(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_scandir(path)

    def open_(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("locked.py"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_open(path, *arguments, **options)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "open", open_)
    with pytest.raises(NoAccess, match="docs/closed may not be read"):
        plan_units([source_at(tmp_path / "docs")])
    with pytest.raises(NoAccess, match=r"code/locked\.py may not be read .*Permission denied"):
        read_source(source_at(tmp_path / "code", "code", repositories="location"))
