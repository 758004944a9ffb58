"""Sources over HTTP, with the real reader, cursors and store behind it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.unit.serve.local_parts import LocalParts

SIGNED = {"by": "ann", "reason": "it is ours"}


@pytest.fixture
def wiki(tmp_path: Path) -> Path:
    folder = tmp_path / "wiki"
    folder.mkdir()
    (folder / "gate.md").write_text("The access code of the gate of Vellmar is KX-4471.")
    (folder / "empty.md").write_text("")
    return folder


async def test_a_source_is_added_read_shown_and_removed(
    api: httpx.AsyncClient, parts: "LocalParts", wiki: Path
) -> None:
    body = {"source": {"id": "wiki", "kind": "folder", "path": str(wiki), "include": ["*.md"]}, **SIGNED}
    added = await api.post("/v1/sources", json=body)
    assert (added.status_code, added.json()) == (201, {"id": "wiki"})
    parts.sources.settle()
    (row,) = (await api.get("/v1/sources")).json()["sources"]
    assert (row["id"], row["num_documents"], row["num_refused"], row["origin"]) == ("wiki", 1, 1, "run time")
    assert row["config"] == {"id": "wiki", "kind": "folder", "path": str(wiki), "include": ["*.md"]}
    (refused,) = (await api.get("/v1/sources/wiki/refused")).json()["refused"]
    assert (refused["key"], refused["status"]) == ("empty.md", "unreadable")
    assert (await api.post("/v1/sources/wiki/read")).status_code == 202
    assert (await api.delete("/v1/sources/wiki", params=SIGNED)).status_code == 204
    assert (await api.get("/v1/sources")).json() == {"sources": [], "waits_for": ""}
    for method, path in (("POST", "wiki/read"), ("GET", "wiki/refused"), ("DELETE", "wiki")):
        missing = await api.request(method, f"/v1/sources/{path}", params=SIGNED if method == "DELETE" else None)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("source", "param", "says"),
    [
        ({"id": "a", "kind": "ftp"}, "source", "'folder', 'git', 'http', 'jsonl'"),
        ({"id": "a", "kind": "folder"}, "source.folder.path", "missing"),
        ({"id": "a", "kind": "folder", "path": "docs"}, "source.folder.path", "is relative"),
        ({"id": "a", "kind": "folder", "path": "/nowhere/at/all"}, None, "there is no folder"),
        ({"id": "a/b", "kind": "folder", "path": "/tmp"}, "source.folder.id", "match pattern"),
        ({"id": "a", "kind": "http", "url": "http://x.org/", "allow_private": True}, None, "configuration file"),
        ({"id": "a", "kind": "git", "repository": "https://x.org/a.git"}, "source.git", "allow_remote = true"),
    ],
)
async def test_a_source_that_cannot_be_read_is_refused_with_the_field_and_the_fix(
    api: httpx.AsyncClient, source: dict[str, Any], param: str | None, says: str
) -> None:
    answer = await api.post("/v1/sources", json={"source": source, **SIGNED})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert says in answer.json()["error"]["message"]


async def test_the_systems_own_home_is_refused(api: httpx.AsyncClient, parts: "LocalParts", tmp_path: Path) -> None:
    body = {"source": {"id": "own", "kind": "folder", "path": str(tmp_path)}, **SIGNED}
    answer = await api.post("/v1/sources", json=body)
    assert (answer.status_code, "own state" in answer.json()["error"]["message"]) == (400, True)


async def test_while_learning_is_stopped_no_source_is_added_and_the_reason_is_shown(
    api: httpx.AsyncClient, parts: "LocalParts", wiki: Path
) -> None:
    await api.post("/v1/safety/stop", json=SIGNED)
    body = {"source": {"id": "wiki", "kind": "folder", "path": str(wiki)}, **SIGNED}
    assert (await api.post("/v1/sources", json=body)).status_code == 423
    parts.sources.settle()
    assert "stopped by ann" in (await api.get("/v1/sources")).json()["waits_for"]
