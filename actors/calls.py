"""Calls to named actors that may be restarting."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, RayActorError

from actors.base import NAMESPACE

RETRY_PAUSE_S = 0.5

T = TypeVar("T")


class ActorMissing(RuntimeError):
    """No actor of this name runs: the system is starting, or the actor is being replaced by newer code."""


def actor(name: str) -> Any:
    """The long-lived actor of this name. Raises ActorMissing."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError as error:
        raise ActorMissing(f"the {name} actor does not run; start the system with: autonomous up") from error


def retried(call: Callable[[], T], *, timeout_s: float) -> T:
    """Repeat an idempotent call while the other side restarts. Raises the last such error after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return call()
        except (RayActorError, ActorUnavailableError, ActorMissing):
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_PAUSE_S)
