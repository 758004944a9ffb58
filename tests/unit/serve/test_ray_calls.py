"""How errors of actors and replicas reach the HTTP surface. Starts no Ray."""

import ast
import asyncio
import json
import pickle
import time
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, PendingCallsLimitExceeded, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from autonomous.budget import BudgetExceeded
from autonomous.safety.latch import LearningStopped
from autonomous.versions.schema import UnknownVersion
from autonomous.versions.states import StaleTransition, State
from serve.engine import PromptTooLongError
from serve.errors import ConflictError, NotFoundError, NotReadyError, OverloadedError, describe_error, to_response
from serve.ray_calls import CAUSES, ActorCalls, unwrap

REPOSITORY = Path(__file__).resolve().parents[3]


def remote(cause: Exception) -> Exception:
    """The error as a Ray caller sees it: its class derives from the cause's, which was pickled, its text is a traceback."""
    cause = pickle.loads(pickle.dumps(cause))
    error = RayTaskError("method", "Traceback: secret path", cause, proctitle="actor", pid=1, ip="127.0.0.1")
    return error.as_instanceof_cause()


@pytest.mark.parametrize(
    ("cause", "kind", "status"),
    [
        (UnknownVersion("no version ver-x"), NotFoundError, 404),
        (StaleTransition("ver-x", expected="GATED", actual=State.SHADOW), ConflictError, 409),
        (LearningStopped("stopped by a person"), LearningStopped, 423),
        (PromptTooLongError("3 too many"), PromptTooLongError, 400),
        (ActorDiedError(), NotReadyError, 503),
    ],
)
def test_an_actors_error_arrives_typed_and_without_its_traceback(
    cause: Exception, kind: type[Exception], status: int
) -> None:
    problem = unwrap(remote(cause))
    assert isinstance(problem, kind)
    error = describe_error(problem)
    assert error.status == status
    assert "Traceback" not in error.message


def test_a_spent_budget_says_when_it_begins_anew_and_not_to_come_back_in_a_second() -> None:
    spent = BudgetExceeded("tool_calls", span="2026-01-01", limit=5, used=5, amount=1, resets_at=time.time() + 3600)
    response = to_response(unwrap(remote(spent)))
    assert response.status_code == 429
    assert 3590 < int(response.headers["Retry-After"]) <= 3600
    error = json.loads(bytes(response.body))["error"]
    assert (error["code"], error["message"]) == ("budget_spent", str(spent))


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (PendingCallsLimitExceeded("full"), OverloadedError),
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), OverloadedError),
        (DeploymentUnavailableError("failed"), NotReadyError),
    ],
)
def test_backpressure_and_failed_deployments_are_told_apart(problem: Exception, kind: type[Exception]) -> None:
    assert isinstance(unwrap(problem), kind)


def test_every_error_that_is_mapped_by_name_exists() -> None:
    defined = {
        node.name
        for package in ("autonomous", "memory", "actors")
        for path in (REPOSITORY / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    assert set(CAUSES) <= defined


class Restarting(ActorCalls):
    """Actors that are down for the first call of each method."""

    def __init__(self) -> None:
        super().__init__(timeout_s=60.0)
        self.tried: list[str] = []

    async def once(self, name: str, method: str, *args: object) -> str:
        self.tried.append(method)
        if self.tried.count(method) == 1:
            raise ActorDiedError()
        return "done"


async def test_a_call_goes_on_behind_a_restart_and_an_act_is_never_repeated() -> None:
    calls = Restarting()
    assert await calls.call("agent", "status") == "done"
    with pytest.raises(NotReadyError, match="restarted during approve; it may or may not have happened"):
        await calls.act("agent", "approve", "ver-1")
    assert calls.tried == ["status", "status", "approve"]


class Busy(ActorCalls):
    """Actors that never answer, but one that says what it waited for in vain."""

    def __init__(self) -> None:
        super().__init__(timeout_s=0.01)

    async def once(self, name: str, method: str, *args: object) -> None:
        if name == "semantic":
            raise TimeoutError("the model did not answer within 5 s")
        await asyncio.sleep(60)


async def test_an_actor_that_does_not_answer_is_named_with_the_seconds_and_the_setting() -> None:
    words = r"the episodic actor did not answer recall within 0\.01 s \(http\.request_timeout_s\)"
    with pytest.raises(TimeoutError, match=words):
        await Busy().call("episodic", "recall", "x")
    with pytest.raises(TimeoutError, match=r"^the model did not answer within 5 s$"):
        await Busy().call("semantic", "ask")
