"""What every long-lived actor has in common.

A shell's constructor is cheap and restores its state from disk, because Ray runs it again after a crash. Its arguments
are small (paths and frozen configurations): Ray cannot restart an actor with arguments over 100 KB. Methods of the
group "control" answer while the actor is busy.
"""

import os
import time
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import ray
from ray.actor import ActorClass

from autonomous.code import code_sha256

NAMESPACE = "autonomous"
"""The Ray namespace of all named actors. An anonymous namespace would hide them from other jobs."""

T = TypeVar("T")


def as_actor(cls: type[T], **defaults: Any) -> "ActorClass[T]":
    """Make a plain class a Ray actor class. The one place that calls ray.remote on a class, so that mypy keeps types."""
    return cast("ActorClass[T]", ray.remote(**defaults)(cls))


@dataclass(frozen=True, slots=True)
class ActorIdentity:
    """Which process answers under a name, and with which code and settings."""

    name: str
    pid: int
    started_at: float
    is_restart: bool
    code_sha256: str
    settings_sha256: str


class Shell:
    """Base of the actors. Subclasses call `super().__init__(name, settings_sha256)` first."""

    def __init__(self, name: str, settings_sha256: str) -> None:
        self._identity = ActorIdentity(
            name=name,
            pid=os.getpid(),
            started_at=time.time(),
            is_restart=bool(ray.get_runtime_context().was_current_actor_reconstructed),
            code_sha256=code_sha256(),
            settings_sha256=settings_sha256,
        )

    @ray.method(concurrency_group="control")
    def identity(self) -> ActorIdentity:
        """Who answers. Cheap."""
        return self._identity

    @ray.method(concurrency_group="control")
    def snapshot(self) -> None:
        """Bring to disk what would be slow to rebuild. Called before the actor is replaced by newer code."""
