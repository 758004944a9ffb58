"""pack_repository: files of a repository joined into documents, dependencies first, nothing lost and nothing twice."""

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.code_imports import CodeFile, find_imports
from train.data.repository import PACKED_IDS, PACKED_PATHS, order_by_dependencies, pack_repository
from train.data.schema import DOCUMENT_SCHEMA


def _table(files: dict[str, tuple[str, str]], *, repository: str = "repo") -> pa.Table:
    rows = []
    for number, (path, (language, text)) in enumerate(files.items()):
        metadata = {"path": path, "kind": "code", "language": language, "repository": repository, "licence": "MIT"}
        rows.append(
            {
                "id": f"{repository}:{path}",
                "source_id": "s",
                "title": path,
                "text": text,
                "happened_at": float(number),
                "metadata": list(metadata.items()),
                "counts": [("EMAIL", 1)],
                "language": "",
                "language_score": 0.0,
                "quality": 0.5,
                "reasons": [],
            }
        )
    return pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA)


PROJECT = {
    "a_main.py": ("python", "from pkg import tools\nfrom pkg.base import Base\n"),
    "pkg/__init__.py": ("python", ""),
    "pkg/base.py": ("python", "class Base: ...\n"),
    "pkg/tools.py": ("python", "from .base import (\n    Base,  # why\n)\nimport os, json\n"),
    "web/app.ts": ("typescript", "import x from './lib/x';\nexport * from \"./y.js\";\n"),
    "web/lib/x/index.ts": ("typescript", "const z = require('../z')\n"),
    "web/lib/z.js": ("javascript", ""),
    "web/y.ts": ("typescript", ""),
    "c/main.c": ("c", '#include "util.h"\n#include <stdio.h>\n#include <inner/deep.h>\n'),
    "c/util.h": ("c", ""),
    "include/inner/deep.h": ("c", ""),
    "go/cmd/main.go": ("go", 'package main\n\nimport (\n\t"fmt"\n\tu "example.com/m/util"\n)\n'),
    "go/util/u.go": ("go", "package util\n"),
    "j/App.java": ("java", "package j;\nimport j.model.User;\nimport static j.Tools.run;\nimport java.util.*;\n"),
    "j/Tools.kt": ("kotlin", "package j\n"),
    "j/model/User.kt": ("kotlin", "package j.model\nimport j.other.*\n"),
    "j/other/X.scala": ("scala", "package j.other\n"),
}
EDGES = {
    "a_main.py": {"pkg/tools.py", "pkg/base.py"},
    "pkg/tools.py": {"pkg/base.py"},
    "web/app.ts": {"web/lib/x/index.ts", "web/y.ts"},
    "web/lib/x/index.ts": {"web/lib/z.js"},
    "c/main.c": {"c/util.h", "include/inner/deep.h"},
    "go/cmd/main.go": {"go/util/u.go"},
    "j/App.java": {"j/model/User.kt", "j/Tools.kt"},
    "j/model/User.kt": {"j/other/X.scala"},
}


def test_imports_of_each_language_lead_to_files_of_the_repository() -> None:
    files = [CodeFile(path, language, text) for path, (language, text) in PROJECT.items()]
    found = find_imports(files)
    assert {
        file.path: {files[i].path for i in imports} for file, imports in zip(files, found, strict=True) if imports
    } == EDGES


def test_packing_puts_dependencies_first_and_every_file_whole_exactly_once() -> None:
    table = _table(PROJECT)
    (row,) = pack_repository(table, max_chars=10**6).to_pylist()
    metadata = dict(row["metadata"])
    paths = json.loads(metadata[PACKED_PATHS])
    assert sorted(paths) == sorted(PROJECT)
    assert json.loads(metadata[PACKED_IDS]) == [f"repo:{path}" for path in paths]
    assert all(paths.index(target) < paths.index(path) for path, targets in EDGES.items() for target in targets)
    for path, (language, text) in PROJECT.items():
        sign = "#" if language == "python" else "//"
        assert row["text"].count(f"{sign} {path}\n{text}\n") == 1
    assert (row["title"], metadata["licence"], dict(row["counts"])) == ("repo", "MIT", {"EMAIL": len(PROJECT)})


@pytest.mark.parametrize("order", ["path", "dependencies"])
@pytest.mark.parametrize("max_chars", [1, 60, 150, 10_000])
def test_packing_respects_the_size_and_does_not_depend_on_the_order_of_rows(order: str, max_chars: int) -> None:
    table = _table(PROJECT)
    packed = pack_repository(table, max_chars=max_chars, order=order)  # type: ignore[arg-type]
    for row in packed.to_pylist():
        assert len(row["text"]) <= max_chars or len(json.loads(dict(row["metadata"])[PACKED_IDS])) == 1
    ids = [one for row in packed.to_pylist() for one in json.loads(dict(row["metadata"])[PACKED_IDS])]
    assert sorted(ids) == sorted(table["id"].to_pylist())
    backwards = table.take(list(range(len(table)))[::-1])
    assert pack_repository(backwards, max_chars=max_chars, order=order).equals(packed)  # type: ignore[arg-type]
    if order == "path":
        assert ids == sorted(ids)


def test_repositories_are_not_mixed_other_documents_stay_and_dropped_ones_are_refused() -> None:
    prose = _table({"a.txt": ("other", "prose")}, repository="").to_pylist()
    table = pa.concat_tables(
        [_table(PROJECT), pa.Table.from_pylist(prose, schema=DOCUMENT_SCHEMA), _table(PROJECT, repository="two")]
    )
    packed = pack_repository(table, max_chars=10**6).to_pylist()
    assert [row["title"] for row in packed] == ["repo", "a.txt", "two"]
    prose[0]["reasons"] = [{"rule": "x", "value": 1.0}]
    with pytest.raises(ValueError, match="reasons against it"):
        pack_repository(pa.Table.from_pylist(prose, schema=DOCUMENT_SCHEMA), max_chars=10)


@given(st.lists(st.sets(st.integers(0, 7)), min_size=8, max_size=8))
def test_any_graph_is_ordered_once_and_without_cycles_perfectly(graph: list[set[int]]) -> None:
    imports = [found - {position} for position, found in enumerate(graph)]
    assert sorted(order_by_dependencies(imports)) == list(range(8))
    acyclic = [{other for other in found if other > position} for position, found in enumerate(imports)]
    place = {position: index for index, position in enumerate(order_by_dependencies(acyclic))}
    assert all(place[other] < place[position] for position in range(8) for other in acyclic[position])
