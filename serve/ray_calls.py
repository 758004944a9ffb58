"""Calls of named actors: their handles, what is repeated while one restarts, and their errors as ours.

Handles are looked up by name when they are first needed and again after an actor died.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, PendingCallsLimitExceeded, RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from actors.base import NAMESPACE
from serve.errors import (
    RETRY_AFTER_S,
    BudgetSpentError,
    ConflictError,
    ErasureError,
    NotFoundError,
    NotReadyError,
    OverloadedError,
    StorageAwayError,
    StorageFullError,
)
from serve.router import RetryOn, call_with_retry

RETRY_ACTOR: RetryOn = (RayActorError, NotReadyError)

CAUSES: Mapping[str, type[Exception]] = {
    "UnknownVersion": NotFoundError,
    "UnknownRun": NotFoundError,
    "UnknownSource": NotFoundError,
    "UnknownSchedule": NotFoundError,
    "AlreadyLearning": ConflictError,
    "AlreadyBenchmarking": ConflictError,
    "NothingToLearn": ConflictError,
    "NothingToRollBack": ConflictError,
    "BudgetExceeded": BudgetSpentError,
    "ClockWentBack": ConflictError,
    "PromotionRefused": ConflictError,
    "StaleTransition": ConflictError,
    "IllegalTransition": ConflictError,
    "DuplicateVersion": ConflictError,
    "LedgerNotReady": NotReadyError,
    "WorkingMemoryFull": ConflictError,
    "StoreFull": StorageFullError,
    "ErasureIncomplete": ErasureError,
    "ActorMissing": NotReadyError,
    "LatchChanged": ConflictError,
    "SecondPersonNeeded": ConflictError,
    "NothingRequested": ConflictError,
    "StoreAway": StorageAwayError,
    "UnknownTool": NotFoundError,
    "ToolUnavailable": NotReadyError,
    "UnknownResponse": NotFoundError,
    "FeedbackFull": OverloadedError,
}
"""The actors' typed errors by class name: importing them would load the learner's torch into the HTTP process."""


class ActorCalls:
    """Named actors by their methods. Lives in one event loop.

    `call` repeats an idempotent call while the actor restarts, `act` never repeats one that may have begun.
    """

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._handles: dict[str, ActorHandle[Any]] = {}

    async def _handle(self, name: str) -> ActorHandle[Any]:
        if name not in self._handles:
            try:
                self._handles[name] = await asyncio.to_thread(ray.get_actor, name, namespace=NAMESPACE)
            except ValueError as problem:
                raise NotReadyError(f"The {name} actor does not run. Start the system with: autonomous up") from problem
        return self._handles[name]

    async def once(self, name: str, method: str, *args: Any) -> Any:
        """One try. Raises RayActorError if the actor is down, otherwise what `unwrap` returns."""
        handle = await self._handle(name)
        try:
            return await getattr(handle, method).remote(*args)
        except ActorDiedError:
            self._handles.pop(name, None)  # a successor of the same name has another handle
            raise
        except (RayTaskError, PendingCallsLimitExceeded) as problem:
            raise unwrap(problem) from problem

    async def call(self, name: str, method: str, *args: Any) -> Any:
        """An idempotent call: repeated while the actor restarts. Raises TimeoutError."""
        deadline_s = time.monotonic() + self._timeout_s
        try:
            return await call_with_retry(
                lambda: asyncio.wait_for(
                    self.once(name, method, *args), timeout=max(0.001, deadline_s - time.monotonic())
                ),
                retry_on=RETRY_ACTOR,
                deadline_s=deadline_s,
            )
        except RayActorError as problem:
            raise NotReadyError(f"The {name} actor restarts. Try again in a few seconds.") from problem
        except TimeoutError as problem:
            if str(problem):  # the actor's own
                raise
            raise TimeoutError(
                f"the {name} actor did not answer {method} within {self._timeout_s:g} s (http.request_timeout_s); try again "
                f"when it is less busy, or look at: autonomous logs {name}"
            ) from problem

    async def act(self, name: str, method: str, *args: Any) -> Any:
        """A call that must not run twice: never repeated once it may have begun."""
        try:
            return await self.once(name, method, *args)
        except RayActorError as problem:
            raise NotReadyError(
                f"The {name} actor restarted during {method}; it may or may not have happened. "
                "Look at GET /v1/status and GET /v1/audit before trying again."
            ) from problem


def unwrap(problem: BaseException) -> BaseException:
    """A Ray error -> what the remote side raised, or our typed error for it. Others are returned as they are."""
    if isinstance(problem, RayTaskError):
        cause = problem.cause if isinstance(problem.cause, BaseException) else problem
        if (ours := _by_name(cause)) is not None:
            return ours
        if isinstance(cause, PendingCallsLimitExceeded | BackPressureError):
            return _overloaded()
        return NotReadyError(f"a part behind this one restarts: {cause}") if isinstance(cause, RayActorError) else cause
    if isinstance(problem, PendingCallsLimitExceeded | BackPressureError):
        return _overloaded()
    if isinstance(problem, DeploymentUnavailableError):
        return NotReadyError(f"The engine could not be deployed: {problem}. See: autonomous logs")
    return problem


def _by_name(cause: Any) -> Exception | None:
    kind = next((CAUSES[base.__name__] for base in type(cause).__mro__ if base.__name__ in CAUSES), None)
    if kind is BudgetSpentError:
        return BudgetSpentError(str(cause), retry_after_s=max(RETRY_AFTER_S, cause.resets_at - time.time()))
    return None if kind is None else kind(str(cause))


def _overloaded() -> OverloadedError:
    return OverloadedError("More requests wait than are taken at once. Try again in a second.")


def in_one_line(problem: Exception) -> str:
    """An error as a status shows it."""
    cause = unwrap(problem)
    return f"{type(cause).__name__}: {(str(cause).splitlines() or ['no answer'])[0][:200]}"
