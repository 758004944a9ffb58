"""The memory as actors: two stores behind one front, facts that follow, and what survives when any of them is killed."""

import inspect
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from actors.calls import when_there
from actors.extract import messages_for, read_triples
from actors.registry import ACTORS, ensure_actor, shard_specs
from actors.stores import WRITES, remote_store, shard_name
from autonomous.config import AutonomousConfig
from autonomous.ingest import IngestConfig
from memory.embed import model_folder
from memory.episodic import EpisodicMemory
from memory.settings import MemorySettings
from memory.store import StoreAway, StoreProblem
from memory.types import Trust
from tests.tiny_model import write_tiny_llama
from tests.waiting import until

WARM_S = 240
"""Four processes import their libraries at once, on two cores."""
SETTINGS = MemorySettings(capacity=1000, num_shards=2)


@pytest.fixture(scope="module")
def actors(home: Path) -> dict[str, Any]:
    folder, latch = home / "sharded", home / "safety" / "latch"
    handles = {
        name: ensure_actor(
            name, spec, {"number": number, "folder": folder / name, "latch": latch, "settings": SETTINGS}
        )
        for number, (name, spec) in enumerate(shard_specs(2).items())
    }
    handles["episodic"] = ensure_actor(
        "episodic",
        ACTORS["episodic"],
        {"folder": folder, "latch": latch, "settings": SETTINGS, "ingest": IngestConfig(), "level": "high"},
    )
    handles["working"] = ensure_actor("working", ACTORS["working"], {"config": SETTINGS.working})
    handles["semantic"] = ensure_actor(
        "semantic",
        ACTORS["semantic"],
        {
            "folder": folder, "latch": latch, "ledger": home / "ledger.sqlite", "base_folder": model_folder(),
            "settings": SETTINGS,
        },
    )  # fmt: skip
    base = write_tiny_llama(home / "tiny")
    handles["evaluator"] = ensure_actor(
        "evaluator",
        ACTORS["evaluator"],
        {"config": AutonomousConfig(), "home": home, "base_folder": base, "latch": latch},
    )
    ray.get([handle.identity.remote() for handle in handles.values()], timeout=WARM_S)
    ray.get(handles["semantic"].context_for.remote("loads the embedder and the tokenizer", 10), timeout=WARM_S)
    return handles


def _eventually(look: Callable[[], Any]) -> Any:
    """What is looked for, when it is there; the actors follow each other, and restart."""
    return until(look, timeout_s=120, ignoring=RayActorError)


def _part(number: int, source: str) -> dict[str, Any]:
    text = f"The Torvik part {number} costs {number + 100} euros."
    return {"id": f"{source}-{number}", "source": source, "text": text, "title": f"Part {number}"}


def _ingest(handle: Any, documents: list[dict[str, Any]]) -> list[str]:
    rows = ray.get(handle.ingest.remote(documents), timeout=120)["documents"]
    return [row["status"] for row in rows]


def _price(handle: Any, number: int) -> list[str]:
    return [one.fact.object for one in ray.get(handle.about.remote(f"Torvik part {number}"), timeout=60)]


def test_documents_lie_in_both_stores_and_are_found_and_followed_as_one(actors: dict[str, Any]) -> None:
    assert _ingest(actors["episodic"], [_part(n, "list") for n in range(12)]) == ["stored"] * 12
    sizes = [ray.get(actors[shard_name(n)].health.remote(), timeout=60).num_episodes for n in range(2)]
    assert min(sizes) > 0
    assert sum(sizes) == 12
    hits = ray.get(actors["episodic"].recall.remote("What does the Torvik part 7 cost?", 3), timeout=60)
    assert hits[0].episode.document_id == "list-7"
    _eventually(lambda: _price(actors["semantic"], 11) == ["111 euros"])
    ray.get(actors["working"].put.remote("s", "name", "Ada"))
    context = ray.get(actors["semantic"].context_for.remote("cost of Torvik part 7", 100, "s"), timeout=60)
    assert {part.tier for part in context.parts} == {"working", "semantic", "episodic"}
    assert context.num_tokens <= 100


@pytest.mark.parametrize("name", ["episodic-0", "episodic", "semantic"])
def test_a_killed_actor_comes_back_and_nothing_acknowledged_is_lost_or_twice(actors: dict[str, Any], name: str) -> None:
    source = f"kill-{name}"
    assert _ingest(actors["episodic"], [_part(n, source) for n in range(20, 26)]) == ["stored"] * 6
    os.kill(ray.get(actors[name].identity.remote(), timeout=60).pid, signal.SIGKILL)
    again = _eventually(lambda: _ingest(actors["episodic"], [_part(n, source) for n in range(20, 26)]))
    assert again == ["repeated"] * 6
    store = remote_store("episodic")
    assert len(_eventually(lambda: store.ids_of_source(source))) == 6
    _eventually(lambda: _price(actors["semantic"], 25) == ["125 euros"])
    assert ray.get(actors[name].identity.remote(), timeout=60).is_restart


def test_a_source_is_held_back_released_and_forgotten_everywhere(actors: dict[str, Any]) -> None:
    semantic, store = actors["semantic"], remote_store("episodic")
    ray.get(semantic.believe.remote("forum", int(Trust.UNTRUSTED), "ann", "unknown"), timeout=60)
    assert _ingest(actors["episodic"], [_part(n, "forum") for n in range(40, 43)]) == ["quarantined"] * 3
    waiting = [episode.id for episode in ray.get(semantic.waiting.remote(9, 0), timeout=60)]
    assert len(waiting) == 3
    ray.get(semantic.release.remote(waiting, "ann", "read it"), timeout=60)
    _eventually(lambda: _price(semantic, 41) == ["141 euros"])

    report = ray.get(semantic.forget.remote("forum", None, {"by": "ann"}), timeout=60)
    assert set(report.episodes) == set(waiting)
    assert (_price(semantic, 41), store.ids_of_source("forum")) == ([], ())
    assert store.recall("Torvik part 41", k=1)[0].episode.source_id != "forum"


def test_a_consolidation_runs_beside_and_is_undone(actors: dict[str, Any]) -> None:
    before = remote_store("episodic").traits()
    report = ray.get(actors["semantic"].consolidate.remote(), timeout=120)
    sizes = [report["steps"][step]["num_episodes"] for step in ("snapshot", "verify")]
    assert (report["state"], sizes[0] >= len(before), sizes[0] - sizes[1]) == ("done", True, 0)
    replay = report["steps"]["replay"]
    assert replay["num_replayed"] == len(replay["losses"]) > 0
    assert all(loss > 1 for loss in replay["losses"].values())
    ray.get(actors["semantic"].undo_consolidation.remote(report["run"], "ann"), timeout=60)
    assert remote_store("episodic").traits() == before


def test_what_changes_a_store_is_called_as_a_write() -> None:
    methods = inspect.getmembers(EpisodicMemory, inspect.isfunction)
    guarded = {name for name, method in methods if "guard" in inspect.signature(method).parameters and name[0] != "_"}
    assert guarded == WRITES


def test_a_model_is_shown_examples_and_only_lines_of_three_parts_are_read() -> None:
    messages = messages_for("The valve is red.")
    assert [one["role"] for one in messages[-2:]] == ["assistant", "user"]
    assert "The valve is red." in messages[-1]["content"]
    assert all(read_triples(one["content"]) for one in messages if one["role"] == "assistant")
    answer = (
        "Facts:\n- Torvik | moved its pumps to | hall seven\n2. pump | costs | 9 | euros\nTorvik moved.\n | is | red"
    )
    assert read_triples(answer) == [("Torvik", "moved its pumps to", "hall seven")]


def test_an_actor_that_starts_without_its_database_server_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.calls.SERVER_PAUSE_S", 0.0)
    answers = iter([StoreAway("no"), StoreAway("no"), StoreProblem("another version"), "opened"])

    def open_store() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(StoreProblem, match="another version"):
        when_there(open_store)
    assert when_there(open_store) == "opened"
