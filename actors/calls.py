"""Calls to named actors that may be restarting."""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, RayActorError

from actors.base import NAMESPACE
from memory.store import StoreAway

logger = logging.getLogger(__name__)

RETRY_PAUSE_S = 0.5
SERVER_PAUSE_S = 5.0

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


def when_there(open_store: Callable[[], T]) -> T:
    """Open a store in an actor's constructor; wait while its database server is away.

    An actor whose constructor raises is never started again by Ray, so it could not come back when the server does.
    """
    while True:
        try:
            return open_store()
        except StoreAway as error:
            logger.warning("waiting for the database server: %s", error)
            time.sleep(SERVER_PAUSE_S)
