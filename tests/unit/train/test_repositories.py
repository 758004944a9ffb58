"""Which repositories and archives a source of code holds, and that a unit reads each."""

import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from train.data.common_crawl import CommonCrawlConfig
from train.data.document import EmptySource, RawDocument
from train.data.source_code import CodeConfig
from train.data.source_config import SourceConfig
from train.data.units import plan_units, read_unit


class _Config(NamedTuple):
    sources: tuple[SourceConfig, ...]
    web: CommonCrawlConfig = CommonCrawlConfig()
    code: CodeConfig = CodeConfig()


def _source(location: Path | str, kind: str = "text", **fields: Any) -> SourceConfig:
    return SourceConfig.model_validate({"name": "source", "kind": kind, "location": str(location), **fields})


def _paths(source: SourceConfig) -> list[str]:
    return [path for unit in plan_units([source]) for path in unit.paths]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Two repositories, one folder without .git, an archive, and a repository inside of another."""
    folder = tmp_path / "code"
    source = Path(json.__file__).read_text()
    for name in ("one", "two", "plain", "one/vendored"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "main.py").write_text(source)
        (folder / name / "LICENSE").write_text(
            "MIT License\n\nPermission is hereby granted, free of charge, to any person"
        )
    for name in ("one", "two", "one/vendored"):
        (folder / name / ".git").mkdir()
    with tarfile.open(folder / "three.tar.gz", "w:gz") as archive:
        archive.add(folder / "plain", arcname="three")
    return folder


def test_a_repository_and_an_archive_are_one_unit_each(code: Path) -> None:
    units = plan_units([_source(code, "code")])
    assert [unit.paths for unit in units] == [("one",), ("three.tar.gz",), ("two",)]
    source = _source(code, "code", repositories="children")
    assert _paths(source) == ["one", "plain", "three.tar.gz", "two"]
    assert _paths(_source(code / "plain", "code", repositories="location")) == [""]
    assert _paths(_source(code, "code", include=["t*"])) == ["three.tar.gz", "two"]


def test_a_changed_file_of_a_repository_changes_its_fingerprint_and_what_git_keeps_does_not(code: Path) -> None:
    def fingerprints() -> list[str]:
        return [unit.fingerprint for unit in plan_units([_source(code, "code")])]

    before = fingerprints()
    (code / "one" / ".git" / "index").write_text("x")
    assert fingerprints() == before
    (code / "one" / "main.py").write_text("changed = 1\n")
    assert [old == new for old, new in zip(before, fingerprints(), strict=True)] == [False, True, True]


def test_units_of_code_are_read_by_the_code_reader(code: Path) -> None:
    source = _source(code, "code", repositories="children")
    config = _Config((source,), code=CodeConfig(allow_unknown_licence=True))
    documents = [
        item for unit in plan_units([source]) for item in read_unit(unit, config) if isinstance(item, RawDocument)
    ]
    assert {document.metadata["repository"] for document in documents} == {"one", "plain", "three", "two"}
    assert {document.metadata["language"] for document in documents} == {"python"}
    assert len({document.id for document in documents}) == len(documents)


def test_a_folder_without_repositories_says_how_to_make_it_one(code: Path) -> None:
    with pytest.raises(EmptySource, match='repositories = "children" each folder in it is one'):
        plan_units([_source(code / "plain", "code")])


def test_a_link_out_of_a_folder_of_repositories_is_refused(code: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (code / "linked").symlink_to(tmp_path / "outside")
    units = plan_units([_source(code, "code")])
    assert [item.path for item in units[0].rejected] == ["linked"]
    assert all("linked" not in unit.paths for unit in units)
