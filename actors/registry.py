"""The long-lived named actors: created once, adopted when they run our code, replaced when they do not.

A detached actor keeps the code and the settings it was started with. Each therefore knows the hash of both; on a
mismatch it is asked for a snapshot, ended, and created anew: its state is on disk.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from actors.agent import AgentShell
from actors.base import NAMESPACE, ActorIdentity, Shell, as_actor
from actors.episodic import EpisodicShell
from actors.evaluator import EvaluatorShell
from actors.feedback import FeedbackShell
from actors.learner import LearnerShell
from actors.safety import SafetyShell
from actors.semantic import SemanticShell
from actors.stores import EpisodeShardShell, shard_name
from actors.stream import StreamShell
from actors.tools import ToolsShell
from actors.working import WorkingShell
from autonomous.code import code_sha256
from autonomous.config import AutonomousConfig
from autonomous.ingest import IngestConfig
from autonomous.safety.latch import Latch
from memory.backends import check_server
from memory.settings import MemorySettings
from memory.store import StoreProblem

logger = logging.getLogger(__name__)

CREATE_TIMEOUT_S = 180.0
IDENTITY_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class ActorSpec:
    """A shell and how Ray runs it. `groups` are threads by concurrency group."""

    shell: type[Shell]
    groups: Mapping[str, int]
    num_cpus: float = 0.0
    max_pending_calls: int = 1000


ACTORS: dict[str, ActorSpec] = {
    "safety": ActorSpec(SafetyShell, {"control": 2}),
    "episodic": ActorSpec(EpisodicShell, {"control": 1, "read": 4}, max_pending_calls=64),
    "semantic": ActorSpec(SemanticShell, {"control": 1, "read": 2, "dream": 1}),
    "working": ActorSpec(WorkingShell, {"control": 1}),
    "tools": ActorSpec(ToolsShell, {"control": 1, "call": 4}, num_cpus=0.1, max_pending_calls=32),
    "stream": ActorSpec(StreamShell, {"control": 2}),
    "learner": ActorSpec(LearnerShell, {"control": 1}, num_cpus=0.1, max_pending_calls=8),
    "evaluator": ActorSpec(EvaluatorShell, {"control": 1, "read": 2}, num_cpus=0.1, max_pending_calls=8),
    "agent": ActorSpec(AgentShell, {"control": 1, "route": 2, "read": 3, "learn": 1}),
    "feedback": ActorSpec(FeedbackShell, {"control": 1, "read": 2, "work": 1}),
}
"""In the order of creation: an actor may call those before it."""


def prepare_home(home: Path, *, model_folder: Path, agent: AutonomousConfig) -> None:
    """Create the folders of a new home and its stop latch. A latch that was deleted later stays a stop."""
    for name in ("memory", "versions", "safety", "logs"):
        (home / name).mkdir(parents=True, exist_ok=True)
    latch = home / "safety" / "latch"
    if not latch.exists() and not (home / "ledger.sqlite").exists():
        Latch.create(latch)
    resolved = {"model_folder": str(model_folder), "agent": agent.model_dump(mode="json")}
    (home / "resolved-config.json").write_text(json.dumps(resolved, indent=2), encoding="utf-8")


def ensure_all(
    home: Path,
    *,
    model_folder: Path,
    agent: AutonomousConfig,
    ingest: IngestConfig,
    memory: MemorySettings,
) -> dict[str, int]:
    """Create, adopt or replace every actor, and wait until all answer. Returns pids by name.

    Raises StoreProblem for a store that an actor cannot open, a database server that does not answer, or another number of
    shards than before.
    """
    latch = home / "safety" / "latch"
    without_sources = agent.model_copy(update={"sources": ()})  # those of the stream actor alone
    arguments: dict[str, dict[str, Any]] = {
        "safety": {"latch": latch, "ledger": home / "ledger.sqlite", "config": agent},
        "episodic": {
            "folder": home / "memory",
            "latch": latch,
            "settings": memory,
            "ingest": ingest,
            "level": agent.safety_level,
        },
        "semantic": {
            "folder": home / "memory",
            "latch": latch,
            "ledger": home / "ledger.sqlite",
            "base_folder": model_folder,
            "settings": memory,
        },
        "working": {"config": memory.working},
        "tools": {
            "config": agent.knowledge,
            "safety": agent.safety,
            "budget": agent.budget,
            "level": agent.safety_level,
            "latch": latch,
            "ledger": home / "ledger.sqlite",
        },
        "stream": {"home": home, "sources": agent.sources, "max_document_bytes": ingest.max_document_bytes},
        "learner": {
            "config": agent.learning,
            "safety": agent.safety,
            "level": agent.safety_level,
            "base_folder": model_folder,
            "latch": latch,
            "ledger": home / "ledger.sqlite",
        },
        "evaluator": {
            "config": without_sources,
            "home": home,
            "base_folder": model_folder,
            "latch": latch,
        },
        "agent": {"config": without_sources, "home": home, "base_folder": model_folder},
        "feedback": {
            "folder": home / "feedback",
            "latch": latch,
            "ledger": home / "ledger.sqlite",
            "config": agent.feedback,
            "level": agent.safety_level,
        },
    }
    specs = {**shard_specs(memory.num_shards), **ACTORS}
    for number in range(memory.num_shards if memory.num_shards > 1 else 0):
        folder = home / "memory" / shard_name(number)
        arguments[shard_name(number)] = {"number": number, "folder": folder, "latch": latch, "settings": memory}
    check_num_shards(home / "memory", num_shards=memory.num_shards)
    check_server(memory.database)
    handles = {name: ensure_actor(name, spec, arguments[name]) for name, spec in specs.items()}
    try:
        identities: list[ActorIdentity] = ray.get(
            [handle.identity.remote() for handle in handles.values()], timeout=CREATE_TIMEOUT_S
        )
    except RayActorError as error:
        if problem := told_store_problem(str(error)):
            raise StoreProblem(problem) from error
        raise
    note_num_shards(home / "memory", num_shards=memory.num_shards)
    return {identity.name: identity.pid for identity in identities}


def told_store_problem(text: str) -> str:
    """What Ray's text of an actor that could not begin says of a store, without the trace; empty if it says nothing of one."""
    _, is_there, told = text.rpartition(f"{StoreProblem.__module__}.{StoreProblem.__name__}: ")
    return told.splitlines()[0] if is_there else ""


def shard_specs(num_shards: int) -> dict[str, ActorSpec]:
    """The actors that hold episodes apart from the episodic actor; none for one store."""
    spec = ActorSpec(EpisodeShardShell, {"control": 1, "read": 4}, max_pending_calls=256)
    return {shard_name(number): spec for number in range(num_shards)} if num_shards > 1 else {}


def check_num_shards(folder: Path, *, num_shards: int) -> None:
    """Episodes lie where their number of stores put them. Raises StoreProblem for another number than `note_num_shards`
    wrote.
    """
    path = folder / "num_shards"
    if path.exists() and (written := int(path.read_text(encoding="utf-8"))) != num_shards:
        raise StoreProblem(
            f"memory.num_shards = {num_shards}, but the episodes in {folder} were written with {written}: set it back, or "
            "give the system another home and add the documents there"
        )


def note_num_shards(folder: Path, *, num_shards: int) -> None:
    """From now on episodes are written with so many stores."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "num_shards").write_text(f"{num_shards}\n", encoding="utf-8")


def ensure_actor(name: str, spec: ActorSpec, arguments: Mapping[str, Any]) -> Any:
    """The actor of this name with our code and these settings; created, adopted or replaced. Does not wait for it."""
    settings = settings_sha256(arguments)
    try:
        running: Any = ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return _create(name, spec, settings, arguments)
    try:
        identity: ActorIdentity = ray.get(running.identity.remote(), timeout=IDENTITY_TIMEOUT_S)
        if identity.code_sha256 == code_sha256() and identity.settings_sha256 == settings:
            return running
        logger.info("actor %s runs other code or settings: snapshot, then replaced", name)
        ray.get(running.snapshot.remote(), timeout=CREATE_TIMEOUT_S)
    except RayActorError as error:
        logger.warning("actor %s did not answer (%s) and is replaced; its state is on disk", name, error)
    except RayError as error:
        logger.warning("actor %s could not write its snapshot (%s) and is replaced; its state is on disk", name, error)
    ray.kill(running, no_restart=True)
    _wait_until_free(name)
    return _create(name, spec, settings, arguments)


def _wait_until_free(name: str) -> None:
    """Ray frees the name of a killed actor some milliseconds later."""
    deadline = time.monotonic() + IDENTITY_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return
        time.sleep(0.02)
    raise RuntimeError(f"actor '{name}' was killed but its name is not free after {IDENTITY_TIMEOUT_S:.0f} s")


def settings_sha256(arguments: Mapping[str, Any]) -> str:
    """Hash of an actor's constructor arguments (paths, numbers, pydantic configurations)."""
    plain = {
        key: value.model_dump_json() if hasattr(value, "model_dump_json") else str(value)
        for key, value in arguments.items()
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _create(name: str, spec: ActorSpec, settings: str, arguments: Mapping[str, Any]) -> Any:
    actor_class = as_actor(
        spec.shell,
        concurrency_groups=dict(spec.groups),
        num_cpus=spec.num_cpus,
        max_restarts=-1,
        max_pending_calls=spec.max_pending_calls,
    )
    options = {"name": name, "namespace": NAMESPACE, "lifetime": "detached"}
    return actor_class.options(**options).remote(settings, **arguments)
