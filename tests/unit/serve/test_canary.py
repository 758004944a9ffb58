"""A canary answers its share of V2's users, always the same; and how requests end is told to the rollout."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import httpx
import pytest

from autonomous.versions.rollout import Outcome
from serve.engine import GenerateChunk, GenerateRequest
from serve.ray_outcomes import MAX_HELD, OutcomeSender
from serve.router import is_for_canary
from tests.unit.serve.local_parts import LocalParts

KEYS = [f"user-{number}" for number in range(4000)]


def question(**fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "hello there"}], "retrieval": False, **fields}


@pytest.mark.parametrize("percent", [1, 5, 25, 50])
def test_share_of_the_users_is_the_canarys_within_the_error_of_counting(percent: float) -> None:
    share = percent / 100
    found = sum(is_for_canary(key, version="v-1", percent=percent) for key in KEYS) / len(KEYS)
    assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / len(KEYS))


def test_larger_share_keeps_the_users_of_the_smaller_and_another_version_meets_others() -> None:
    few = {key for key in KEYS if is_for_canary(key, version="v-1", percent=5)}
    more = {key for key in KEYS if is_for_canary(key, version="v-1", percent=25)}
    others = {key for key in KEYS if is_for_canary(key, version="v-2", percent=5)}
    assert few < more
    assert len(few & others) < len(few) / 4


async def test_users_of_v2_meet_the_canary_by_their_name_and_others_who_they_asked_for(
    api: httpx.AsyncClient, parts: LocalParts
) -> None:
    parts.percent = 50.0
    for user in KEYS[:12]:
        expected = "ver-new" if is_for_canary(user, version="ver-new", percent=50.0) else "ver-base"
        for field in ("user", "session"):
            answer = (await api.post("/v1/chat/completions", json=question(**{field: user}))).json()
            assert answer["version"] == expected
    for model in ("v1", "base", "ver-base"):
        answer = (await api.post("/v1/chat/completions", json=question(model=model, user=KEYS[0]))).json()
        assert answer["version"] == {"v1": "ver-new"}.get(model, model)
    assert {outcome.version for outcome in parts.outcomes} == {"ver-new", "ver-base"}
    assert len(parts.outcomes) == 24, "who names a version does not judge it"


async def test_without_a_canary_v2_answers_everybody(api: httpx.AsyncClient, parts: LocalParts) -> None:
    for user in KEYS[:8]:
        assert (await api.post("/v1/chat/completions", json=question(user=user))).json()["version"] == "ver-base"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_masked_answer_is_told_as_masked(api: httpx.AsyncClient, parts: LocalParts, is_stream: bool) -> None:
    secret = "write to ada@example.org"  # the echo engine repeats it
    body = {"messages": [{"role": "user", "content": secret}], "retrieval": False, "stream": is_stream}
    answer = await api.post("/v1/chat/completions", json=body)
    assert "ada@example.org" not in answer.text
    assert [(one.is_masked, one.is_error) for one in parts.outcomes] == [(True, False)]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_failure_of_the_engine_counts_and_a_mistake_of_the_client_does_not(
    api: httpx.AsyncClient, parts: LocalParts, monkeypatch: pytest.MonkeyPatch, is_stream: bool
) -> None:
    await api.post("/v1/chat/completions", json=question(model="nobody"))
    await api.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "long " * 5000}]})
    assert parts.outcomes == []

    async def fail(request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        raise RuntimeError("out of memory")
        yield

    monkeypatch.setattr(parts, "generate", fail)
    answer = await api.post("/v1/chat/completions", json=question(stream=is_stream))
    assert answer.status_code == 500
    assert [one.is_error for one in parts.outcomes] == [True]


@pytest.mark.slow
async def test_outcomes_are_sent_together_and_those_that_nobody_takes_are_dropped() -> None:
    sent: list[Sequence[Outcome]] = []
    is_away = True

    async def send(outcomes: Sequence[Outcome]) -> None:
        if is_away:
            raise OSError("the agent restarts")
        sent.append(outcomes)

    sender = OutcomeSender(send)
    for number in range(MAX_HELD + 5):
        sender.observe(Outcome("v", float(number)))
    assert sender._sending is not None
    await sender._sending
    is_away = False
    sender.observe(Outcome("v", 1.0))
    sender.observe(Outcome("v", 2.0))
    with suppress(asyncio.CancelledError):
        await sender._sending
    assert [[one.seconds for one in batch] for batch in sent] == [[1.0, 2.0]]
