"""Feedback over HTTP: what a client gets back it may vote on, and nothing of it is in the way of an answer."""

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from autonomous.feedback import Votes

if TYPE_CHECKING:
    from tests.unit.serve.local_parts import LocalParts

GATE = ("colour of the gate of Vellmar", "which colour has the gate of Vellmar", "gate of Vellmar colour please")


async def ask(
    api: httpx.AsyncClient, question: str, *, headers: dict[str, str] | None = None, **body: Any
) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    answered = await api.post("/v1/chat/completions", json={"messages": messages, **body}, headers=headers)
    assert answered.status_code == 200
    if not body.get("stream"):
        return dict(answered.json())
    lines = [line.removeprefix("data: ") for line in answered.text.splitlines() if line]
    return dict(json.loads(lines[0]))


async def kept(parts: "LocalParts") -> list[Any]:
    await parts.feedback.queue.flush()
    return parts.feedback.log.recent(99)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_the_id_that_the_client_got_is_the_one_in_the_log(
    api: httpx.AsyncClient, parts: "LocalParts", is_stream: bool
) -> None:
    reply = await ask(api, "say ann@example.org and these words", stream=is_stream, user="ann")
    (request,) = await kept(parts)
    assert (request.id, request.version) == (reply["id"], "ver-base")
    assert request.question == request.answer == "say <EMAIL> and these words"
    assert (request.is_retrieved, request.cosine, request.num_output_tokens) == (True, None, 5)
    assert request.user not in ("", "ann")


async def test_passages_in_the_prompt_are_noted_with_their_nearness(
    api: httpx.AsyncClient, parts: "LocalParts"
) -> None:
    document = {"id": "gate", "text": "The gate of Vellmar is green."}
    await api.post("/v1/knowledge", json={"documents": [document]})
    reply = await ask(api, "What colour is the gate of Vellmar?")
    await ask(api, "What colour is the gate of Vellmar?", retrieval=False)
    without, request = sorted(await kept(parts), key=lambda one: one.is_retrieved)
    assert request.cosine == pytest.approx(reply["sources"][0]["cosine"])
    assert list(request.sources) == [source["episode_id"] for source in reply["sources"]]
    assert (without.is_retrieved, without.sources) == (False, ())


async def test_what_is_not_to_be_kept_is_not(api: httpx.AsyncClient, parts: "LocalParts") -> None:
    await ask(api, "not this", store=False)
    await ask(api, "nor this", store=False, stream=True)
    await api.post("/v1/completions", json={"prompt": "nor a raw prompt"})
    await api.post("/v1/chat/completions", json={"messages": [{"role": "system", "content": "no question"}]})
    parts.feedback.is_logged = False
    await ask(api, "nor while the log is off")
    assert await kept(parts) == []


async def test_the_header_names_the_tenant(api: httpx.AsyncClient, parts: "LocalParts") -> None:
    await ask(api, "first words", headers={"OpenAI-Organization": "acme"})
    await ask(api, "second words")
    assert {one.tenant for one in await kept(parts)} == {"acme", "default"}


async def test_an_answer_comes_while_the_log_is_stopped_full_or_broken(
    api: httpx.AsyncClient, parts: "LocalParts"
) -> None:
    await api.post("/v1/safety/stop", json={"by": "ann", "reason": "drill"})
    reply = await ask(api, "while stopped")
    assert await kept(parts) == []
    assert parts.feedback.queue.num_dropped == 1
    refused = await api.post("/v1/feedback", json={"response_id": reply["id"], "rating": "up"})
    assert refused.status_code == 423
    await api.post("/v1/safety/reset", json={"by": "ann", "reason": "over"})
    parts.feedback.database.close()
    assert (await ask(api, "while broken"))["choices"]
    await parts.feedback.queue.flush()
    assert parts.feedback.queue.num_dropped == 2


async def test_a_vote_is_taken_once_and_refusals_say_why(api: httpx.AsyncClient, parts: "LocalParts") -> None:
    reply = await ask(api, "What colour is the gate?")
    body = {"response_id": reply["id"], "rating": "down", "correction": "The gate is green.", "by": "bob"}
    first, again = [(await api.post("/v1/feedback", json=body)).json() for _ in range(2)]
    assert (first["status"], first["correction"], again["status"]) == ("stored", "waits", "repeated")
    assert parts.feedback.store.votes([reply["id"]]) == {reply["id"]: Votes(0, 1, True)}
    unknown = await api.post("/v1/feedback", json={"response_id": "chatcmpl-1", "rating": "up"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    wrong = await api.post("/v1/feedback", json={"response_id": reply["id"], "rating": "fine"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "rating")
    up = await api.post("/v1/feedback", json={**body, "rating": "up"})
    assert up.status_code == 400


async def test_the_queue_lists_what_nobody_has_looked_at(api: httpx.AsyncClient) -> None:
    first = await ask(api, "words about apples and pears")
    second = await ask(api, "something entirely different here")
    listed = (await api.get("/v1/feedback/queue")).json()["answers"]
    assert {one["response_id"] for one in listed} == {first["id"], second["id"]}
    await api.post("/v1/feedback", json={"response_id": first["id"], "rating": "up"})
    (left,) = (await api.get("/v1/feedback/queue", params={"limit": 5})).json()["answers"]
    assert (left["response_id"], left["answer"]) == (second["id"], "something entirely different here")


async def test_a_gap_is_listed_collected_and_its_data_is_learned_next(api: httpx.AsyncClient) -> None:
    replies = [await ask(api, question) for question in GATE]
    for reply in replies:
        body = {
            "response_id": reply["id"],
            "rating": "down",
            "by": "rita",
            "correction": "The gate of Vellmar is green.",
        }
        assert (await api.post("/v1/feedback", json=body)).json()["correction"] == "accepted"
    assert (await api.get("/v1/gaps")).json()["tasks"] == []
    report = (await api.post("/v1/gaps/collect")).json()
    assert (report["num_gaps"], report["num_corrections"], report["num_with_data"]) == (1, 3, 1)
    found = (await api.get("/v1/gaps")).json()
    (task,) = found["tasks"]
    assert (task["state"], task["kind"], task["size"]) == ("data found", "down-voted", 3)
    assert task["question"] in GATE
    assert found["next_run"]["by_origin"] == {"feedback": found["next_run"]["num_episodes"]}
    assert found["next_run"]["num_for_tasks"] > 0
    assert (await api.post("/v1/gaps/learn")).json() == {"run_id": "run-000000000001"}


async def test_a_request_and_a_person_are_erased(api: httpx.AsyncClient, parts: "LocalParts") -> None:
    first, second = await ask(api, "first question of ann", user="ann"), await ask(api, "question of bob", user="bob")
    body = {"response_id": second["id"], "rating": "down", "by": "ann", "correction": "The wall is grey."}
    await api.post("/v1/feedback", json=body)
    await api.post("/v1/gaps/collect")
    assert (await api.delete("/v1/feedback/nothing")).status_code == 404
    gone = (await api.post("/v1/feedback/forget", json={"name": "ann"})).json()
    assert gone == {"num_requests": 1, "num_votes": 1, "num_documents": 1}
    assert [one.id for one in await kept(parts)] == [second["id"]]
    assert parts.episodic.health().num_episodes == 0
    assert (await api.delete(f"/v1/feedback/{second['id']}")).json()["num_requests"] == 1
    assert (await api.post("/v1/feedback/forget", json={"name": "ann"})).status_code == 404
    assert first["id"] != second["id"]
