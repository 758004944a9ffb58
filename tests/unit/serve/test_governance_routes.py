"""Decisions of people over HTTP: approval by report, rejection, release by two people, explanation, forensics."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from autonomous.config import AutonomousConfig
from autonomous.consent import NothingRequested, SecondPersonNeeded
from autonomous.curriculum import Curriculum
from autonomous.oversight import Oversight
from autonomous.safety.monitor import SafetyMonitor
from autonomous.versions.approval import Approval
from autonomous.versions.ledger import UnknownVersion, VersionLedger
from autonomous.versions.states import State
from memory.types import Episode
from serve import governance_routes
from serve.app import build_api
from serve.config import HttpConfig, RAGConfig
from serve.engine import AdapterRef, GenerateRequest
from serve.errors import ConflictError, NotFoundError
from serve.ray_calls import CAUSES
from serve.stream import WholeAnswer
from tests.unit.autonomous.ledger_life import advance, fix, make_genesis
from tests.unit.serve.local_parts import MAX_MODEL_LEN, LocalParts

SIGNED = {"by": "bob", "reason": "read it"}


class LedgerParts(LocalParts):
    """Versions, decisions and the stop over the real ledger; what is asked of an engine is echoed with its adapter's name."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        config = AutonomousConfig()
        self.ledger = VersionLedger(folder / "ledger.sqlite")
        self.base = make_genesis(self.ledger, folder)
        curriculum = Curriculum(config.learning, memory=self, ledger=self.ledger)
        self.oversight = Oversight(config, ledger=self.ledger, latch=self.latch, memory=self, curriculum=curriculum)
        self.monitor = SafetyMonitor(self.latch, audit=self.ledger.append_audit, two_people=True)
        self.asked: list[tuple[str | None, str]] = []

    def get(self, ids: Sequence[str]) -> list[Episode]:
        texts = {"e-1": "The Vostrek valve is rated for 42 bar.", "e-2": "Bleach cures fever."}
        return [
            Episode(id=key, document_id=f"doc-{key}", source_id="web", title=key, text=texts[key], position=0, happened_at=0.0)
            for key in ids
        ]  # fmt: skip

    def freshest(self, limit: int, offset: int) -> list[tuple[int, Episode]]:
        return []

    def propose(self, mark: str, to: State = State.AWAITING_APPROVAL) -> str:
        run_id = self.ledger.start_run(parent=self.base, config={}, by="ada")
        self.ledger.transition(run_id, expected=State.DRAFT, to=State.TRAINING, by="agent", reason="batch taken")
        name = fix(self.ledger, run_id, parent=self.base, mark=mark, episodes=("e-1", "e-2"))
        return advance(self.ledger, name, to)

    async def pointers(self) -> Any:
        found = self.ledger.pointers()
        return {"v1": found.v1, "v2": found.v2, "v3": found.v3}

    async def versions(self) -> Any:
        return {"pointers": await self.pointers(), "versions": [one.to_dict() for one in self.ledger.list()]}

    async def version(self, version_id: str) -> Any:
        return {
            **self.typed(self.ledger.get, version_id).to_dict(),
            "waiting": self.oversight.waiting_release(version_id),
        }

    async def version_adapter(self, version_id: str) -> Any:
        return AdapterRef(version_id, 1, self.adapters["ver-new"].folder) if version_id != self.base else None

    async def complete(self, request: Any) -> Any:
        self.asked.append((request.adapter and request.adapter.name, request.prompt))
        return await super().complete(request)

    async def reset(self, *, reason: str, by: str) -> Any:
        return self.typed(self.monitor.reset, reason=reason, by=by)

    async def stop(self, *, reason: str, by: str, category: Any, scope: Any) -> Any:
        return getattr(self.monitor, category)(reason=reason, by=by, scope=scope)

    async def approve(self, version_id: str, *, by: str, reason: str, report_sha256: str | None) -> None:
        approval = Approval(by, reason, report_sha256, two_people=True)
        self.typed(self.ledger.promote, version_id, by="agent", reason="approved", approval=approval)

    async def reject(self, version_id: str, **signed: Any) -> None:
        self.typed(self.oversight.reject, version_id, **signed)

    async def release(self, version_id: str, **signed: Any) -> Any:
        return self.typed(self.oversight.release, version_id, **signed)

    async def withdraw_release(self, version_id: str, **signed: Any) -> None:
        self.typed(self.oversight.withdraw_release, version_id, **signed)

    async def withdraw_reset(self, **signed: Any) -> Any:
        return self.typed(self.monitor.withdraw_reset, **signed)

    async def explain(self, version_id: str) -> Any:
        return self.typed(self.oversight.explain, version_id)

    async def forensic_case(self, version_id: str, *, asked: Any, max_prompts: int) -> Any:
        return self.typed(self.oversight.forensic_case, version_id, asked=asked, max_prompts=max_prompts)

    @staticmethod
    def typed(call: Any, *arguments: Any, **named: Any) -> Any:
        """What ActorCalls does with an actor's error."""
        try:
            return call(*arguments, **named)
        except Exception as problem:
            kinds = [CAUSES[base.__name__] for base in type(problem).__mro__ if base.__name__ in CAUSES]
            raise (kinds[0](str(problem)) if kinds else problem) from problem


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[LedgerParts]:
    local = LedgerParts(tmp_path)
    await local.engine.start()
    yield local
    local.close()


@pytest.fixture
async def api(parts: LedgerParts) -> AsyncIterator[httpx.AsyncClient]:
    app = build_api(
        parts, http=HttpConfig(), rag=RAGConfig(), max_model_len=MAX_MODEL_LEN,
        mask=lambda text: text.replace("hunter2", "[SECRET]"),
    )  # fmt: skip
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def message(response: httpx.Response) -> str:
    return str(response.json()["error"]["message"])


async def test_an_approval_is_bound_to_the_report_and_not_the_proposers(api: Any, parts: LedgerParts) -> None:
    name = parts.propose("one")
    read = (await api.get(f"/v1/versions/{name}")).json()["report_sha256"]
    missing = await api.post(f"/v1/versions/{name}/approve", json=SIGNED)
    assert (missing.status_code, "report_sha256 is missing" in message(missing)) == (400, True)
    odd = await api.post(f"/v1/versions/{name}/approve", json={**SIGNED, "report_sha256": "x"})
    assert odd.status_code == 400
    changed = await api.post(f"/v1/versions/{name}/approve", json={**SIGNED, "report_sha256": "0" * 64})
    assert (changed.status_code, read in message(changed), "0" * 64 in message(changed)) == (409, True, True)
    own = await api.post(f"/v1/versions/{name}/approve", json={"by": "Ada", "reason": "x", "report_sha256": read})
    assert (own.status_code, "Another person" in message(own)) == (409, True)
    done = await api.post(f"/v1/versions/{name}/approve", json={**SIGNED, "report_sha256": read})
    assert (done.status_code, done.json()["state"]) == (200, "PRODUCTION")


async def test_a_rejected_version_answers_nobody_and_is_released_by_two_people(api: Any, parts: LedgerParts) -> None:
    name = parts.propose("one")
    rejected = await api.post(f"/v1/versions/{name}/reject", json=SIGNED)
    assert (rejected.status_code, rejected.json()["state"]) == (200, "QUARANTINED")
    for model in ("v3", name):
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        refused = await api.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_quarantined")
        refused = await api.post("/v1/completions", json={"prompt": "x"}, headers={"X-Model-Version": model})
        assert refused.status_code == 403
    assert name not in {model["id"] for model in (await api.get("/v1/models")).json()["data"]}

    path = f"/v1/versions/{name}/release"
    without = await api.post(path, json={"by": "ada", "reason": "mended"})
    assert (without.status_code, "new evidence" in message(without)) == (409, True)
    asked = await api.post(path, json={"by": "ada", "reason": "mended", "evidence": "the probe was wrong"})
    assert (asked.status_code, asked.json()["waiting"]["by"]) == (202, "ada")
    assert (await api.get(f"/v1/versions/{name}")).json()["waiting"]["by"] == "ada"
    again = await api.post(path, json={"by": "ada", "reason": "mended", "evidence": "the probe was wrong"})
    assert again.status_code == 409
    assert (await api.post(f"{path}/withdraw", json=SIGNED)).status_code == 204
    assert (await api.post(f"{path}/withdraw", json=SIGNED)).status_code == 409
    await api.post(path, json={"by": "ada", "reason": "mended", "evidence": "the probe was wrong"})
    done = await api.post(path, json={"by": "bob", "reason": "I agree"})
    assert (done.status_code, done.json()["state"]) == (200, "CANDIDATE")


async def test_no_version_is_released_while_learning_is_stopped(api: Any, parts: LedgerParts) -> None:
    name = parts.propose("one")
    await api.post(f"/v1/versions/{name}/reject", json=SIGNED)
    await api.post("/v1/safety/stop", json={"by": "eve", "reason": "odd"})
    release = {"by": "ada", "reason": "mended", "evidence": "x"}
    assert (await api.post(f"/v1/versions/{name}/release", json=release)).status_code == 423


async def test_a_reset_waits_for_a_second_person_with_202(api: Any) -> None:
    await api.post("/v1/safety/stop", json={"by": "eve", "reason": "odd"})
    asked = await api.post("/v1/safety/reset", json={"by": "ada", "reason": "over"})
    assert (asked.status_code, asked.json()["mode"], asked.json()["waiting"]["by"]) == (202, "stopped", "ada")
    assert (await api.post("/v1/safety/reset", json={"by": "ADA", "reason": "over"})).status_code == 409
    assert (await api.post("/v1/safety/reset/withdraw", json=SIGNED)).status_code == 200
    assert (await api.post("/v1/safety/reset", json={"by": "bob", "reason": "over"})).status_code == 202
    done = await api.post("/v1/safety/reset", json={"by": "ada", "reason": "yes"})
    assert (done.status_code, done.json()["mode"]) == (200, "armed")


async def test_forensics_asks_both_versions_and_only_there_the_quarantined_one(api: Any, parts: LedgerParts) -> None:
    name = parts.propose("one")
    early = await api.get(f"/v1/versions/{name}/forensics")
    assert (early.status_code, "autonomous explain" in message(early)) == (400, True)
    await api.post(f"/v1/versions/{name}/reject", json=SIGNED)
    found = await api.get(f"/v1/versions/{name}/forensics", params={"prompt": "say hunter2", "max_prompts": 2})
    assert found.status_code == 200
    body = found.json()
    assert [one["prompt"]["origin"] for one in body["answers"]] == ["asked", "lesson"]
    assert "[SECRET]" in body["answers"][0]["answer"]
    assert "hunter2" not in body["answers"][0]["answer"]
    assert {adapter for adapter, _ in parts.asked} == {name, None}
    assert {one["episode_id"] for one in body["suspects"]} == {"e-1", "e-2"}
    parts.asked.clear()
    quiet = await api.get(f"/v1/versions/{name}/forensics", params={"max_prompts": 0})
    assert (quiet.json()["answers"], parts.asked) == ([], [])
    assert (await api.get("/v1/versions/ver-typo/forensics")).status_code == 404
    assert (await api.get(f"/v1/versions/{name}/forensics", params={"max_prompts": 99})).status_code == 400


async def test_forensics_ends_in_time_with_the_answers_that_are_there(
    api: Any, parts: LedgerParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = parts.propose("one")
    await api.post(f"/v1/versions/{name}/reject", json=SIGNED)
    answered, complete = [], parts.complete

    async def never_again(request: GenerateRequest) -> WholeAnswer:
        if len(answered) == 2:
            await asyncio.Event().wait()
        answered.append(request)
        return await complete(request)

    monkeypatch.setattr(parts, "complete", never_again)
    monkeypatch.setattr(governance_routes, "ASKING_S", 0.5)
    found = (await api.get(f"/v1/versions/{name}/forensics", params={"prompt": "say it", "max_prompts": 2})).json()
    assert [one["prompt"]["text"] for one in found["answers"]] == ["say it"]
    assert "before 1 more prompts were answered" in found["text"]


async def test_an_explanation_is_json_and_text(api: Any, parts: LedgerParts) -> None:
    name = parts.propose("one")
    told = (await api.get(f"/v1/versions/{name}/explain")).json()
    assert (told["state"], told["lineage"][-1]["proposed_by"]) == ("AWAITING_APPROVAL", "ada")
    assert "doc-e-2" in told["text"]
    assert (await api.get("/v1/versions/ver-typo/explain")).status_code == 404


async def test_who_asks_for_a_run_is_passed_on(api: Any, parts: LedgerParts, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    async def learn(*, by: str | None) -> str:
        asked.append(by)
        return "run-1"

    monkeypatch.setattr(parts, "learn", learn)
    for body in ({"by": "ada"}, {}, None):
        assert (await api.post("/v1/learn", json=body)).status_code == 202
    assert asked == ["ada", None, None]
    for nobody in ("", "  ", "\u200b"):
        assert (await api.post("/v1/learn", json={"by": nobody})).status_code == 400
        assert (await api.post("/v1/versions/rollback", json={"by": nobody, "reason": "x"})).status_code == 400


def test_every_error_of_the_actors_has_its_status() -> None:
    for kind, error in (
        (SecondPersonNeeded, ConflictError),
        (NothingRequested, ConflictError),
        (UnknownVersion, NotFoundError),
    ):
        assert CAUSES[kind.__name__] is error
