"""The named actors under a real Ray: identity, replacement, restart, the control group, back pressure, the latch."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import PendingCallsLimitExceeded, RayActorError, RayTaskError

from actors.base import Shell
from actors.registry import ACTORS, ActorSpec, ensure_actor
from autonomous.code import code_sha256
from autonomous.feedback import Feedback
from autonomous.feedback_config import FeedbackConfig
from autonomous.ingest import IngestConfig
from autonomous.requests import AnsweredRequest
from autonomous.safety.latch import Latch, LearningStopped
from autonomous.sources.config import FolderSource
from autonomous.sources.cursors import UnknownSource
from memory.settings import MemorySettings
from memory.types import EpisodeFilter
from tests.waiting import until


def episodic_arguments(home: Path) -> dict[str, Any]:
    return {
        "folder": home / "memory",
        "latch": home / "safety" / "latch",
        "settings": MemorySettings(capacity=1000),
        "ingest": IngestConfig(),
        "level": "high",
    }


@pytest.fixture(scope="module")
def episodic(home: Path) -> Any:
    handle = ensure_actor("episodic", ACTORS["episodic"], episodic_arguments(home))
    ray.get(handle.identity.remote(), timeout=120)
    return handle


def identity(handle: Any) -> Any:
    return ray.get(handle.identity.remote(), timeout=60)


def test_second_bring_up_adopts_an_actor_of_the_same_code_and_settings(episodic: Any, home: Path) -> None:
    again = ensure_actor("episodic", ACTORS["episodic"], episodic_arguments(home))
    assert identity(again).pid == identity(episodic).pid
    assert identity(again).code_sha256 == code_sha256()


class OlderShell(Shell):
    """An actor that says it runs other code, as one does that outlived an update."""

    def __init__(self, settings_sha256: str, *, proof: Path) -> None:
        super().__init__("older", settings_sha256)
        self._identity = replace(self._identity, code_sha256="0" * 64)
        self._proof = proof

    @ray.method(concurrency_group="control")
    def snapshot(self) -> None:
        """Leave a trace, so that the test sees that it was asked."""
        self._proof.write_text("snapshot")


def test_actor_of_other_code_writes_its_snapshot_and_is_replaced(tmp_path: Path) -> None:
    spec = ActorSpec(OlderShell, {"control": 1})
    proof = tmp_path / "proof"
    old = identity(ensure_actor("older", spec, {"proof": proof}))
    new = ensure_actor("older", spec, {"proof": proof})
    assert proof.read_text() == "snapshot"
    assert identity(new).pid != old.pid
    ray.kill(new, no_restart=True)


def test_killed_episodic_actor_comes_back_with_every_acknowledged_document(episodic: Any) -> None:
    written = ray.get(
        episodic.ingest.remote([{"id": f"d{i}", "text": f"Entry {i} says token t{i}."} for i in range(20)])
    )
    assert [row["status"] for row in written["documents"]] == ["stored"] * 20
    os.kill(identity(episodic).pid, signal.SIGKILL)
    documents = read_after_restart(episodic)
    assert {info.document_id for info in documents} >= {f"d{i}" for i in range(20)}
    assert identity(episodic).is_restart


def test_killed_feedback_actor_comes_back_with_every_acknowledged_vote(home: Path) -> None:
    arguments = {
        "folder": home / "feedback",
        "latch": home / "safety" / "latch",
        "ledger": home / "ledger.sqlite",
        "config": FeedbackConfig(collect_interval_s=0),
        "level": "high",
    }
    handle = ensure_actor("feedback", ACTORS["feedback"], arguments)
    request = AnsweredRequest("chatcmpl-1", "What colour is the gate?", "Red.", "ver-1", time.time())
    assert ray.get(handle.record.remote([request]), timeout=120) == 1
    receipt = ray.get(handle.submit.remote(Feedback("chatcmpl-1", "down", "The gate is green.")), timeout=60)
    assert (receipt.status, receipt.correction) == ("stored", "waits")
    os.kill(identity(handle).pid, signal.SIGKILL)
    health = until(lambda: ray.get(handle.health.remote(), timeout=60), timeout_s=90, ignoring=RayActorError)
    assert (health["num_requests"], health["num_votes"], health["num_corrections_waiting"]) == (1, 1, 1)
    with pytest.raises(RayTaskError, match="is not in the log"):
        ray.get(handle.submit.remote(Feedback("chatcmpl-2", "up")), timeout=60)
    ray.kill(handle, no_restart=True)


def read_after_restart(handle: Any) -> Any:
    return until(lambda: ray.get(handle.documents.remote(100, 0), timeout=60), timeout_s=90, ignoring=RayActorError)


def test_control_call_is_answered_while_a_long_write_holds_the_actor(episodic: Any) -> None:
    big = [{"id": f"big{i}", "text": f"Paragraph {i} of a long text with words. " * 2000} for i in range(12)]
    write = episodic.ingest.remote(big)
    answered_first, _ = ray.wait([episodic.identity.remote(), write], num_returns=1, timeout=60)
    assert answered_first
    assert answered_first[0] != write
    assert ray.get(write, timeout=120)["documents"]


def test_flood_of_writes_is_refused_with_a_typed_error_and_loses_nothing_acknowledged(home: Path) -> None:
    spec = replace(ACTORS["episodic"], max_pending_calls=2)
    arguments = {**episodic_arguments(home), "folder": home / "memory" / "flooded"}
    handle = ensure_actor("flooded", spec, arguments)
    accepted: list[Any] = []

    def flood() -> None:
        for i in range(50):
            accepted.append(handle.ingest.remote([{"id": f"f{i}", "text": f"Flood entry {i}."}]))

    with pytest.raises(PendingCallsLimitExceeded):
        flood()
    rows = [row["id"] for result in ray.get(accepted, timeout=120) for row in result["documents"]]
    stored = {info.document_id for info in ray.get(handle.documents.remote(100, 0))}
    assert set(rows) == stored
    ray.kill(handle, no_restart=True)


def test_stream_actor_reads_a_folder_goes_on_after_a_kill_and_retires_what_was_changed(
    episodic: Any, home: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "wiki"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.md").write_text(f"The shelf {number} of the stream test holds item s{number}.")
    source = FolderSource(id="wiki", kind="folder", path=folder, interval_s=0.5)
    arguments = {"home": home, "sources": (source,), "max_document_bytes": 1 << 20}
    stream = ensure_actor("stream", ACTORS["stream"], arguments)
    os.kill(identity(stream).pid, signal.SIGKILL)
    row = wait_for(stream, lambda row: row["num_documents"] >= 40)
    assert row["error"] == ""
    (folder / "7.md").write_text("The shelf 7 of the stream test is empty.")
    (folder / "8.md").unlink()
    wait_for(stream, lambda row: row["num_removed"] >= 1 and row["num_documents"] >= 41)
    hits = ray.get(episodic.recall.remote("shelf of the stream test", 60, where=EpisodeFilter(source_ids=("wiki",))))
    texts = {hit.episode.text for hit in hits}
    assert "The shelf 7 of the stream test is empty." in texts
    assert not any("item s7." in text or "item s8." in text for text in texts)
    with pytest.raises(RayTaskError) as unknown:
        ray.get(stream.refused.remote("unknown", 1))
    assert isinstance(unknown.value.cause, UnknownSource)
    ray.kill(stream, no_restart=True)


def wait_for(stream: Any, is_reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first row of the stream's status that is as wanted."""

    def look() -> dict[str, Any] | None:
        (row,) = ray.get(stream.status.remote(), timeout=60)["sources"]
        return dict(row) if is_reached(row) else None

    return until(look, timeout_s=120, ignoring=RayActorError)


def test_stop_refuses_the_write_and_the_reset_permits_it_again(episodic: Any, home: Path) -> None:
    latch = Latch.open(home / "safety" / "latch")
    latch.stop(reason="test", by="tester")
    with pytest.raises(RayTaskError) as refused:
        ray.get(episodic.ingest.remote([{"id": "stopped", "text": "Not to be stored."}]))
    assert isinstance(refused.value.cause, LearningStopped)
    assert "stopped" not in {info.document_id for info in ray.get(episodic.documents.remote(500, 0))}
    latch.reset(reason="test over", by="tester")
    assert (
        ray.get(episodic.ingest.remote([{"id": "stopped", "text": "Now stored."}]))["documents"][0]["status"]
        == "stored"
    )
