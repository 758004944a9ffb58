"""What an agent of one process does by itself: it reads its sources, learns a batch that is due, does its scheduled jobs."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autonomous import batching
from autonomous.agent import AutonomousLearningAgent
from autonomous.agent_home import AgentHome
from autonomous.config import AutonomousConfig
from autonomous.feedback_config import FeedbackConfig
from autonomous.jobs import SchedulesConfig
from autonomous.schedule_rows import RunRecord
from autonomous.sources.config import FolderSource
from autonomous.versions.states import State
from tests.tiny_model import write_tiny_llama
from tests.unit.autonomous.tiny_agent import CONFIG, DOCUMENTS, LEARNING, make_agent
from tests.waiting import until

AT_ONCE = SchedulesConfig(poll_s=0.05, settle_s=0.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for number, document in enumerate(DOCUMENTS):
        (folder / f"{number}.md").write_text(f"# {document['title']}\n\n{document['text']}\n")
    return folder


def reading(notes: Path, **changes: Any) -> AutonomousConfig:
    source = FolderSource(id="notes", kind="folder", path=notes, interval_s=0.1)
    return CONFIG.model_copy(update={"sources": (source,), "schedules": AT_ONCE, **changes})


async def soon(look: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(until, look, timeout_s=60)


def source_of(agent: AutonomousLearningAgent) -> dict[str, Any]:
    (source,) = agent.status()["sources"]["sources"]
    return dict(source)


STARTED = """
import asyncio, sys
from pathlib import Path
from tests.unit.autonomous.tiny_agent import make_agent

async def start():
    async with make_agent(Path(sys.argv[1]), Path(sys.argv[2])):
        print({"transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"} <= sys.modules.keys())

asyncio.run(start())
"""


@pytest.mark.slow
def test_what_loads_models_is_imported_before_two_threads_could_import_it_at_once(base: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTED, str(base), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout.strip() == "True"


async def test_a_folder_is_read_recalled_and_learned_and_what_is_gone_from_it_leaves(
    base: Path, tmp_path: Path, notes: Path
) -> None:
    async with make_agent(base, tmp_path / "home", reading(notes)) as agent:
        await soon(lambda: source_of(agent)["num_documents"] == len(DOCUMENTS))  # the last to follow
        assert (agent.status()["pending_episodes"], source_of(agent)["error"]) == (3, "")
        assert (await agent.ask("What is the Vostrek valve rated for?", max_tokens=2)).episodes
        assert (await agent.learn()).state == State.AWAITING_APPROVAL.value
        (notes / "1.md").unlink()
        await soon(lambda: source_of(agent)["num_removed"] == 1)
        assert agent.status()["memory"]["num_learnable"] == 2


async def test_a_restarted_agent_goes_on_from_its_cursors(base: Path, tmp_path: Path, notes: Path) -> None:
    async with make_agent(base, tmp_path / "home", reading(notes)) as agent:
        await soon(lambda: source_of(agent)["num_documents"] == 3)
    (notes / "3.md").write_text("The capital of Quorra is Tellin.")
    async with make_agent(base, tmp_path / "home", reading(notes)) as agent:
        await soon(lambda: source_of(agent)["num_documents"] == 4)
        assert source_of(agent)["num_repeated"] == 0


async def test_while_learning_is_stopped_no_source_is_read(base: Path, tmp_path: Path, notes: Path) -> None:
    async with make_agent(base, tmp_path / "home", reading(notes)) as agent:
        await soon(lambda: source_of(agent)["num_documents"] == 3)
        agent.emergency_stop(reason="drill", by="Ada")
        (notes / "3.md").write_text("The capital of Quorra is Tellin.")
        assert "stop" in await soon(lambda: agent.status()["sources"]["waits_for"])
        await asyncio.sleep(0.5)  # five intervals
        assert source_of(agent)["num_documents"] == 3


@pytest.mark.slow
async def test_a_batch_that_is_due_by_its_size_is_learned_unattended(
    base: Path, tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "LOOK_S", 0.0)
    learning = LEARNING.model_copy(update={"interval_s": 86_400.0, "min_batch_episodes": len(DOCUMENTS)})
    config = reading(notes, learning=learning, human_oversight_required=False)
    async with make_agent(base, tmp_path / "home", config) as agent:
        original = agent.ledger.pointers().v2
        await soon(lambda: agent.ledger.pointers().v2 != original)
        assert agent.ledger.get(agent.ledger.pointers().v2).state is State.PRODUCTION


async def test_consolidation_is_done_on_demand(base: Path, tmp_path: Path) -> None:
    async with make_agent(base, tmp_path / "home", CONFIG.model_copy(update={"schedules": AT_ONCE})) as agent:
        await agent.add(DOCUMENTS)
        scheduler = parts_of(agent).scheduler
        scheduler.ask("consolidate", by="Ada", reason="now")

        def ended() -> RunRecord | None:
            (run,) = scheduler.book.runs("consolidate", limit=1)
            return run if run.outcome else None

        assert ((run := await soon(ended)).outcome, run.detail) == ("done", "consolidated")


async def test_settings_of_what_serves_users_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"feedback": FeedbackConfig(retention_days=7)})
    with pytest.raises(ValueError, match=r"feedback.retention_days = 7.0 .* use `autonomous up`"):
        await make_agent(base, tmp_path / "home", config).start()


def parts_of(agent: AutonomousLearningAgent) -> AgentHome:
    parts = agent._parts
    assert parts is not None
    return parts
