"""The HTTP API as a client sees it."""

import json
from typing import Any

import httpx
import pytest

from serve.errors import NotReadyError, OverloadedError

GATE = {
    "text": "The gate of Vellmar is green.",
    "title": "Guide to Vellmar",
    "id": "docs/vellmar.md",
    "source": "guide",
}


def chat(question: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], **more}


async def events_of(api: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = await api.post(path, json={**body, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


# --- answers ------------------------------------------------------------------------------------------------------


async def test_an_answer_uses_what_was_added_and_names_its_source(api: httpx.AsyncClient) -> None:
    added = await api.post("/v1/knowledge", json={"documents": [GATE]})
    assert added.status_code == 201
    reply = (await api.post("/v1/chat/completions", json=chat("What colour is the gate of Vellmar?"))).json()
    assert "green" in reply["choices"][0]["message"]["content"]
    (source,) = reply["sources"]
    assert (source["document_id"], source["source"], source["title"]) == (
        "docs/vellmar.md",
        "guide",
        "Guide to Vellmar",
    )
    assert reply["version"] == "ver-base"
    assert set(reply["timings"]) == {"retrieval_s", "first_token_s", "total_s"}
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"]


async def test_retrieval_can_be_turned_off(api: httpx.AsyncClient) -> None:
    await api.post("/v1/knowledge", json={"documents": [GATE]})
    reply = (await api.post("/v1/chat/completions", json=chat("the gate of Vellmar", retrieval=False))).json()
    assert reply["choices"][0]["message"]["content"] == "the gate of Vellmar"
    assert reply["sources"] == []


async def test_a_short_follow_up_is_searched_with_the_question_before_it(api: httpx.AsyncClient, parts: Any) -> None:
    await api.post("/v1/chat/completions", json=chat("What colour is the gate of Vellmar?", session="s"))
    await api.post("/v1/chat/completions", json=chat("And since when?", session="s"))
    await api.post("/v1/chat/completions", json=chat("And since when?", session="other"))
    assert parts.searched[1:] == ["What colour is the gate of Vellmar? And since when?", "And since when?"]


@pytest.mark.parametrize(
    ("name", "header", "answer", "version"),
    [
        ("v2", None, "hello", "ver-base"),
        ("v1", None, "[ver-new] hello", "ver-new"),
        ("ver-new", None, "[ver-new] hello", "ver-new"),
        ("base", None, "hello", "base"),
        ("v1", "base", "hello", "base"),
    ],
)
async def test_the_model_name_or_header_picks_the_version(
    api: httpx.AsyncClient, name: str, header: str | None, answer: str, version: str
) -> None:
    headers = {"X-Model-Version": header} if header else {}
    response = await api.post("/v1/chat/completions", json=chat("hello", model=name), headers=headers)
    assert response.json()["choices"][0]["message"]["content"] == answer
    assert response.json()["version"] == response.headers["X-Model-Version"] == version


async def test_a_stream_says_the_same_as_the_whole_answer_and_ends_with_the_facts(api: httpx.AsyncClient) -> None:
    await api.post("/v1/knowledge", json={"documents": [GATE]})
    body = chat("What colour is the gate of Vellmar? " + "word " * 40)
    whole = (await api.post("/v1/chat/completions", json=body)).json()
    events = await events_of(api, "/v1/chat/completions", body)
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert text == whole["choices"][0]["message"]["content"]
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    last = events[-1]
    assert last["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (last["usage"], last["version"], last["sources"]) == (whole["usage"], "ver-base", whole["sources"])
    assert len({event["id"] for event in events}) == 1


async def test_secrets_are_masked_in_whole_answers_and_in_streams(api: httpx.AsyncClient) -> None:
    key = "AKIA" + "IOSFODNN7EXAMPLQ"
    body = chat(f"repeat {key} " + "and go on " * 20, retrieval=False)
    whole = (await api.post("/v1/chat/completions", json=body)).text
    events = json.dumps(await events_of(api, "/v1/chat/completions", body))
    assert key not in whole
    assert key[:12] not in events


async def test_completions_continue_prompts_as_they_are(api: httpx.AsyncClient) -> None:
    reply = (await api.post("/v1/completions", json={"prompt": ["one two", "three"], "max_tokens": 1})).json()
    assert [choice["text"] for choice in reply["choices"]] == ["one ", "three"]
    assert [choice["finish_reason"] for choice in reply["choices"]] == ["length", "stop"]
    events = await events_of(api, "/v1/completions", {"prompt": "one two"})
    assert "".join(event["choices"][0]["text"] for event in events) == "one two"


async def test_a_long_prompt_leaves_out_passages_before_it_fails(api: httpx.AsyncClient) -> None:
    await api.post("/v1/knowledge", json={"documents": [GATE]})
    reply = await api.post("/v1/chat/completions", json=chat("the gate of Vellmar is green " * 60))
    assert reply.status_code == 200
    assert reply.json()["sources"] == []


# --- knowledge ----------------------------------------------------------------------------------------------------


async def test_documents_are_added_once_listed_found_and_erased(api: httpx.AsyncClient) -> None:
    statuses = []
    for _ in range(2):
        reply = (await api.post("/v1/knowledge", json={"documents": [GATE]})).json()
        statuses.append(reply["documents"][0]["status"])
    assert statuses == ["stored", "repeated"]
    listed = (await api.get("/v1/knowledge", params={"source": "guide"})).json()["documents"]
    assert [document["document_id"] for document in listed] == ["docs/vellmar.md"]
    hits = (await api.get("/v1/knowledge/search", params={"q": "gate of Vellmar"})).json()["hits"]
    assert hits[0]["text"] == GATE["text"]
    erased = await api.delete("/v1/knowledge/docs/vellmar.md")
    assert erased.json() == {"deleted_episodes": 1, "versions": []}
    assert (await api.get("/v1/knowledge/search", params={"q": "gate of Vellmar"})).json()["hits"] == []
    assert (await api.delete("/v1/knowledge/docs/vellmar.md")).status_code == 404


# --- learning, versions, safety -----------------------------------------------------------------------------------


async def test_learning_starts_once_and_reports_progress(api: httpx.AsyncClient) -> None:
    started = await api.post("/v1/learn", json={})
    assert started.status_code == 202
    assert (await api.post("/v1/learn")).status_code == 409
    status = (await api.get(f"/v1/learn/{started.json()['run_id']}")).json()
    assert (status["phase"], status["step"]) == ("training", 3)
    assert (await api.get("/v1/learn/run-unknown")).status_code == 404
    assert (await api.get("/v1/learn/next")).json()["num_pending"] == 0


async def test_a_stop_refuses_writes_and_learning_with_423_while_answers_go_on(api: httpx.AsyncClient) -> None:
    signed = {"reason": "test", "by": "me"}
    stopped = (await api.post("/v1/safety/stop", json=signed)).json()
    assert stopped["mode"] == "stopped"
    assert stopped["seconds"] >= 0
    for path, body in (("/v1/knowledge", {"documents": [GATE]}), ("/v1/learn", {})):
        refused = await api.post(path, json=body)
        assert refused.status_code == 423
        assert refused.json()["error"]["code"] == "learning_stopped"
    assert (await api.post("/v1/chat/completions", json=chat("hello"))).status_code == 200
    assert (await api.post("/v1/safety/reset", json=signed)).json()["mode"] == "armed"
    assert (await api.post("/v1/knowledge", json={"documents": [GATE]})).status_code == 201


async def test_a_stop_has_a_scope_and_is_only_made_harder_and_wider(api: httpx.AsyncClient) -> None:
    signed = {"reason": "test", "by": "me"}
    for asked, mode, scope in (
        ({"category": "pause", "scope": "learner"}, "paused", "learner"),
        ({"category": "kill", "scope": "learner"}, "killed", "learner"),
        ({"category": "pause", "scope": "all"}, "killed", "all"),
        ({}, "killed", "all"),
    ):
        state = (await api.post("/v1/safety/stop", json={**signed, **asked})).json()
        assert (state["mode"], state["scope"]) == (mode, scope)
    refused = await api.post("/v1/safety/stop", json={**signed, "scope": "everything"})
    assert refused.status_code == 400
    assert "scope = 'everything'" in refused.json()["error"]["message"]


async def test_approval_moves_the_pointer_and_rollback_moves_it_back(api: httpx.AsyncClient) -> None:
    signed = {"reason": "test", "by": "me"}
    assert (await api.post("/v1/versions/rollback", json=signed)).status_code == 409
    await api.post("/v1/versions/ver-new/approve", json=signed)
    assert (await api.get("/v1/versions")).json()["pointers"]["v2"] == "ver-new"
    back = (await api.post("/v1/versions/rollback", json=signed)).json()
    assert (back["from"], back["to"]) == ("ver-new", "ver-base")
    assert (await api.get("/v1/versions/ver-new")).json()["lineage"] == ["ver-base"]


async def test_what_is_not_frozen_cannot_be_unlocked(api: httpx.AsyncClient) -> None:
    refused = await api.post("/v1/versions/unlock", json={"reason": "test", "by": "me"})
    assert refused.status_code == 400
    assert "nothing to unlock" in refused.json()["error"]["message"]


async def test_decisions_need_a_reason_and_a_name(api: httpx.AsyncClient) -> None:
    refused = await api.post("/v1/safety/stop", json={"reason": ""})
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert "by is missing" in message
    assert "reason = ''" in message


# --- bad input ----------------------------------------------------------------------------------------------------


async def test_malformed_json_names_the_position(api: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}
    body = '{"messages": [\n  {"role": "user" "content": "x"}]}'
    error = (await api.post("/v1/chat/completions", content=body, headers=headers)).json()["error"]
    assert "line 2, column 19" in error["message"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "body", "invalid_json")


@pytest.mark.parametrize(
    ("content", "content_type", "expected"),
    [
        (b'{"a": "\xff"}', "application/json", "not valid UTF-8: invalid start byte at byte 7"),
        (b"[" * 100_000, "application/json", "nested too deeply"),
        (b"", "application/json", "body is missing"),
        (b"[1]", "application/json", "not a JSON object"),
        (b'{"messages": []}', "text/plain", "Content-Type: application/json"),
    ],
)
async def test_bodies_that_cannot_be_read_say_why(
    api: httpx.AsyncClient, content: bytes, content_type: str, expected: str
) -> None:
    response = await api.post("/v1/chat/completions", content=content, headers={"Content-Type": content_type})
    assert response.status_code == 400
    assert expected in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param", "expected"),
    [
        (chat("x", temperature=9), "temperature", "temperature = 9: "),
        (chat("x", retreival=False), "retreival", "retreival is not a known field"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'user'"),
        ({"messages": []}, "messages", "messages = []"),
        ({}, "messages", "messages is missing: add it"),
        (chat("a\ud800"), "messages[0].content", "lone surrogate) at character 1"),
    ],
)
async def test_a_wrong_field_is_named_with_its_value_and_the_fix(
    api: httpx.AsyncClient, body: dict[str, Any], param: str, expected: str
) -> None:
    response = await api.post(
        "/v1/chat/completions", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"].startswith(param)
    assert expected in error["message"]


async def test_an_unknown_model_is_404_and_lists_the_names(api: httpx.AsyncClient) -> None:
    response = await api.post("/v1/chat/completions", json=chat("x", model="gpt-9"))
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "v1" in error["message"]


async def test_a_prompt_beyond_the_context_says_by_how_much(api: httpx.AsyncClient) -> None:
    for stream in (False, True):
        response = await api.post("/v1/chat/completions", json=chat("word " * 500, stream=stream))
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert "too many" in error["message"]


@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_body_over_the_limit_is_refused(api: httpx.AsyncClient, is_announced: bool) -> None:
    async def pieces() -> Any:
        for _ in range(30):
            yield b" " * 5_000

    content = b" " * 150_000 if is_announced else pieces()
    response = await api.post("/v1/knowledge", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert "100000" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("problem", "status"), [(OverloadedError("busy"), 429), (NotReadyError("starting"), 503), (KeyError("secret"), 500)]
)
async def test_errors_of_the_engine_have_their_status_also_before_a_stream(
    api: httpx.AsyncClient, parts: Any, problem: Exception, status: int
) -> None:
    parts.fail_with = problem
    for stream in (False, True):
        response = await api.post("/v1/chat/completions", json=chat("x", stream=stream))
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert "secret" not in response.text
        assert ("Retry-After" in response.headers) == (status in (429, 503))


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("PUT", "/v1/learn", 405)])
async def test_unknown_routes_answer_in_the_same_shape(
    api: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await api.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["message"]


# --- state and pages ----------------------------------------------------------------------------------------------


async def test_health_and_readiness(api: httpx.AsyncClient, parts: Any) -> None:
    assert (await api.get("/healthz")).status_code == 200
    assert (await api.get("/readyz")).status_code == 200
    parts.is_ready = False
    unready = await api.get("/readyz")
    assert unready.status_code == 503
    assert unready.json()["parts"] == {"engine": "starting"}
    assert (await api.get("/v1/status")).json()["pointers"]["v2"] == "ver-base"
    assert (await api.get("/v1/audit")).json()["ok"] is True


async def test_pages_work_without_a_network_and_document_every_route(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    docs = (await api.get("/docs")).text
    for path in document["paths"]:
        assert path in docs
    console = await api.get("/")
    assert "connect-src 'self'" in console.headers["Content-Security-Policy"]
    for page in (docs, console.text):
        external = [part for part in page.split("http")[1:] if not part.startswith("://www.w3.org")]
        assert not [part for part in external if part.startswith(("://", "s://"))]
