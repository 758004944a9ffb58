"""The memory over HTTP, with the real stores behind it."""

from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from tests.unit.serve.local_parts import LocalParts

GATE = {
    "id": "gate", "source": "guide", "title": "Vellmar", "happened_at": 100.0, "metadata": {"lang": "en"},
    "text": "The access code of the gate of Vellmar is KX-4471. The gate of Vellmar is part of the wall of Vellmar.",
}  # fmt: skip
OTHER = {
    "id": "other", "source": "forum", "title": "Rumour", "happened_at": 200.0,
    "text": "The access code of the gate of Vellmar is KX-9999.",
}  # fmt: skip


async def _add(api: httpx.AsyncClient, *documents: dict[str, Any]) -> None:
    assert (await api.post("/v1/knowledge", json={"documents": list(documents)})).status_code == 201


async def test_a_context_fits_its_budget_and_names_where_each_piece_stands(api: httpx.AsyncClient) -> None:
    await _add(api, GATE, OTHER)
    note = {"session": "s", "key": "name", "value": "Ada", "pinned": True}
    assert (await api.post("/v1/memory/notes", json=note)).status_code == 204
    body = {"request": "What is the access code of the gate of Vellmar?", "token_budget": 60, "session": "s"}
    context = (await api.post("/v1/memory/context", json=body)).json()

    assert context["parts"][0]["tier"] == "working"
    assert {part["tier"] for part in context["parts"]} == {"working", "semantic", "episodic"}
    assert context["num_tokens"] <= context["budget_tokens"] == 60
    only = {**body, "sources": ["forum"], "happened_from": 150, "metadata": {}}
    parts = (await api.post("/v1/memory/context", json=only)).json()["parts"]
    assert {part["source_id"] for part in parts if part["tier"] == "episodic"} == {"forum"}
    refused = await api.post("/v1/memory/context", json={"request": "x", "token_budget": 0})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "token_budget")


async def test_facts_come_with_their_sentence_and_as_of_any_moment(api: httpx.AsyncClient) -> None:
    await _add(api, GATE, OTHER)

    async def objects(**params: Any) -> list[str]:
        answer = await api.get("/v1/facts", params={"about": "access code of the gate of Vellmar", **params})
        return [fact["object"] for fact in answer.json()["facts"]]

    (fact, *_) = (await api.get("/v1/facts", params={"about": "KX-4471"})).json()["facts"]
    assert fact["sentence"] == "The access code of the gate of Vellmar is KX-4471."
    assert (fact["valid_from"], fact["valid_to"], fact["trust"], fact["rule"]) == (100.0, None, 2, None)
    assert set(await objects()) == {"KX-4471", "KX-9999"}
    assert await objects(valid_at=150) == ["KX-4471"]
    assert await objects(recorded_at=1) == []
    (group,) = (await api.get("/v1/memory/contradictions")).json()["contradictions"]
    assert [one["object"] for one in group] == ["KX-9999", "KX-4471"]


async def test_a_source_is_held_back_believed_again_and_forgotten(api: httpx.AsyncClient) -> None:
    await _add(api, GATE, OTHER)
    signed = {"by": "ann", "reason": "no one knows them"}
    held = await api.put("/v1/memory/sources/forum", json={"trust": "untrusted", **signed})
    (episode,) = held.json()["episodes"]
    assert [one["id"] for one in (await api.get("/v1/memory/waiting")).json()["episodes"]] == [episode]
    hits = (await api.get("/v1/knowledge/search", params={"q": "gate of Vellmar KX-9999"})).json()["hits"]
    assert {hit["source"] for hit in hits} == {"guide"}
    (decision,) = (await api.get("/v1/memory/sources")).json()["sources"]
    assert (decision["source_id"], decision["trust"], decision["by"]) == ("forum", 1, "ann")

    released = await api.post("/v1/memory/release", json={"ids": [episode, "unknown"], **signed})
    assert released.json() == {"episodes": [episode]}
    forgotten = await api.post("/v1/memory/forget", json={"source": "forum", **signed})
    assert forgotten.json() == {"deleted_episodes": 1, "versions": []}
    again = await api.post("/v1/memory/forget", json={"source": "forum", **signed})
    assert (again.status_code, again.json()["error"]["code"]) == (404, "not_found")
    unknown = await api.put("/v1/memory/sources/forum", json={"trust": "friendly", **signed})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "trust")


async def test_alarms_name_the_source_and_what_it_said(api: httpx.AsyncClient) -> None:
    for source, price in (("handbook", 10), ("forum", 90)):
        text = " ".join(f"The Torvik part {n} costs {price + n} euros." for n in range(3))
        await _add(api, {"id": source, "source": source, "text": text})
    (alarm,) = (await api.get("/v1/memory/alarms")).json()["alarms"]
    assert (alarm["source_id"], alarm["num_contradicting"]) == ("forum", 3)
    assert "The Torvik part 0 costs 90 euros." in alarm["examples"]


async def test_rules_derive_until_they_are_removed(api: httpx.AsyncClient) -> None:
    await _add(api, GATE)
    rule = {"name": "part", "text": "?a is part of ?b => ?b contains ?a"}
    assert (await api.post("/v1/memory/rules", json=rule)).json() == {"num_derived": 1}
    facts = (await api.get("/v1/facts", params={"about": "wall of Vellmar"})).json()["facts"]
    assert [fact["rule"] for fact in facts] == [None, "part"]
    assert (await api.get("/v1/memory/rules")).json()["rules"] == [rule]
    assert (await api.delete("/v1/memory/rules/part")).status_code == 204
    assert (await api.delete("/v1/memory/rules/part")).status_code == 404
    bad = await api.post("/v1/memory/rules", json={"name": "bad", "text": "cats are nice"})
    assert bad.status_code == 400
    assert "rule 'bad'" in bad.json()["error"]["message"]


async def test_a_consolidation_is_told_and_undone(api: httpx.AsyncClient) -> None:
    await _add(api, GATE)
    report = (await api.post("/v1/memory/consolidations")).json()
    assert (report["state"], report["steps"]["snapshot"]["num_episodes"]) == ("done", 1)
    assert [run["run"] for run in (await api.get("/v1/memory/consolidations")).json()["runs"]] == [report["run"]]
    undo = f"/v1/memory/consolidations/{report['run']}/undo"
    undone = (await api.post(undo, json={"by": "ann", "reason": "too early"})).json()
    assert (undone["state"], undone["problem"]) == ("undone", "undone by ann: too early")
    assert (await api.post(undo, json={"by": "ann", "reason": "again"})).status_code == 400


async def test_a_session_ends_and_failed_texts_are_sent_back(api: httpx.AsyncClient, parts: "LocalParts") -> None:
    note = {"session": "s/1", "key": "name", "value": "Ada", "pinned": True}
    await api.post("/v1/memory/notes", json=note)
    assert (await api.delete("/v1/memory/notes/s/1")).status_code == 204
    assert parts.working.items("s/1") == []
    parts.memory.queue.put(["gone"])
    parts.memory.queue._fail("gone", TimeoutError("no answer"), guard=lambda: None)
    (failed,) = (await api.get("/v1/memory/enrichments/failed")).json()["failed"]
    assert failed == {"episode_id": "gone", "num_attempts": 1, "error": "TimeoutError: no answer"}
    assert (await api.post("/v1/memory/enrichments/retry")).json() == {"num_queued": 1}


async def test_an_emergency_stop_refuses_every_change(api: httpx.AsyncClient) -> None:
    await _add(api, GATE)
    signed = {"by": "ann", "reason": "drill"}
    await api.post("/v1/safety/stop", json=signed)
    for method, path, body in (
        ("PUT", "/v1/memory/sources/guide", {"trust": "trusted", **signed}),
        ("POST", "/v1/memory/release", {"ids": ["x"], **signed}),
        ("POST", "/v1/memory/forget", {"source": "guide", **signed}),
        ("POST", "/v1/memory/rules", {"name": "a", "text": "?a is ?b => ?b is ?a"}),
        ("POST", "/v1/memory/consolidations", None),
    ):
        assert (await api.request(method, path, json=body)).status_code == 423
    assert (await api.post("/v1/memory/context", json={"request": "gate of Vellmar"})).status_code == 200
