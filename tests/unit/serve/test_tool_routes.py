"""The tools over HTTP, with the real memory, latch, ledger and sandbox behind the routes."""

from typing import TYPE_CHECKING

import httpx

from autonomous.tools.config import SandboxConfig
from autonomous.tools.python_sandbox import PythonSandbox

if TYPE_CHECKING:
    import pytest

    from tests.unit.serve.local_parts import LocalParts

GATE = {"id": "gate", "title": "Vellmar", "text": "The access code of the gate of Vellmar is KX-4471."}


async def test_tools_are_listed_with_schemas_and_called(api: httpx.AsyncClient, parts: "LocalParts") -> None:
    listed = (await api.get("/v1/tools")).json()["tools"]
    assert [one["function"]["name"] for one in listed] == ["calculator", "code_search", "documentation", "python"]
    assert listed[0]["function"]["parameters"]["required"] == ["expression"]
    answer = (await api.post("/v1/tools/calculator", json={"arguments": {"expression": "15% of 80"}})).json()
    assert (answer["text"], answer["details"]["value"], answer["is_error"]) == ("15% of 80 = 12", "12", False)
    program = (await api.post("/v1/tools/python", json={"arguments": {"source": "1 / 0"}})).json()
    assert program["is_error"]
    assert "ZeroDivisionError" in program["text"]
    assert program["details"]["isolation"] in ("interpreter", "kernel", "namespaces")
    assert [row.actor for row in parts.tools.ledger.audit(4)] == ["api"] * 4


async def test_errors_name_tool_argument_and_fix(api: httpx.AsyncClient) -> None:
    unknown = await api.post("/v1/tools/rm", json={})
    assert (unknown.status_code, "lists calculator" in unknown.json()["error"]["message"]) == (404, True)
    for arguments, param in (
        ({}, "expression"),
        ({"expression": "1/0"}, "expression"),
        ({"expression": "1", "x": 2}, "x"),
    ):
        refused = await api.post("/v1/tools/calculator", json={"arguments": arguments})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert (await api.post("/v1/tools/calculator", json={"args": {}})).json()["error"]["param"] == "args"
    assert (await api.post("/v1/tools/calculator", json={"timeout_s": 0})).status_code == 400


async def test_a_program_that_cannot_be_shut_in_is_503_with_the_reason(
    api: httpx.AsyncClient, parts: "LocalParts", monkeypatch: "pytest.MonkeyPatch"
) -> None:
    monkeypatch.setattr("autonomous.tools.confined_process.build_filter", lambda machine: b"")
    strict = PythonSandbox(SandboxConfig(), safety_folder=parts.latch.path.parent)
    monkeypatch.setitem(parts.tools.knowledge._tools, "python", strict)
    refused = await api.post("/v1/tools/python", json={"arguments": {"source": "1"}})
    assert refused.status_code == 503
    assert "min_isolation" in refused.json()["error"]["message"]


async def test_while_stopped_no_tool_is_called_and_chat_goes_on(api: httpx.AsyncClient) -> None:
    await api.post("/v1/safety/stop", json={"reason": "x", "by": "ada"})
    assert (await api.post("/v1/tools/calculator", json={"arguments": {"expression": "1"}})).status_code == 423
    assert (await api.post("/v1/knowledge/answer", json={"question": "What is 1 + 1?"})).status_code == 423
    chat = {"model": "v2", "messages": [{"role": "user", "content": "hello"}]}
    assert (await api.post("/v1/chat/completions", json=chat)).status_code == 200


async def test_an_answer_comes_with_its_steps_and_sources(api: httpx.AsyncClient) -> None:
    await api.post("/v1/knowledge", json={"documents": [GATE]})
    sum_ = (await api.post("/v1/knowledge/answer", json={"question": "What is 12 * (3 + 4)?"})).json()
    assert (sum_["answer"], sum_["answered_by"], sum_["version"]) == ("12 * (3 + 4) = 84", "tool", "ver-base")
    assert [(step["tool"], step["requested_by"]) for step in sum_["steps"]] == [("calculator", "rule")]

    question = "What is the access code of the gate of Vellmar?"
    looked_up = (await api.post("/v1/knowledge/answer", json={"question": question, "max_tokens": 300})).json()
    assert looked_up["answered_by"] == "model"
    assert "KX-4471" in looked_up["answer"]  # the echo engine repeats its prompt
    assert [source["title"] for source in looked_up["sources"]] == ["Vellmar"]
    assert [(step["tool"], step["requested_by"]) for step in looked_up["steps"]] == [("documentation", "fallback")]
    refused = await api.post("/v1/knowledge/answer", json={"question": ""})
    assert refused.json()["error"]["param"] == "question"
