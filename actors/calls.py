"""Calls to named actors that may be restarting."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, RayActorError

from actors.base import NAMESPACE

RETRY_PAUSE_S = 0.5

T = TypeVar("T")


def actor(name: str) -> Any:
    """The long-lived actor of this name. Raises ValueError if it does not exist."""
    return ray.get_actor(name, namespace=NAMESPACE)


def retried(call: Callable[[], T], *, timeout_s: float) -> T:
    """Repeat an idempotent call while the other side restarts. Raises the last RayActorError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return call()
        except (RayActorError, ActorUnavailableError):
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_PAUSE_S)
