"""The whole agent in one process on a tiny Llama: the class that the specification shows, from documents to what serves."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from autonomous.agent import AutonomousLearningAgent, VersionNotFixed
from autonomous.home_lock import HomeInUse
from autonomous.local_engine import LocalEngine
from autonomous.safety.latch import LearningStopped
from autonomous.tools.config import KnowledgeConfig
from autonomous.versions.states import State
from tests.episodes import HashingEmbedder
from tests.tiny_model import write_tiny_llama
from tests.unit.autonomous.tiny_agent import CONFIG, DOCUMENTS, LEARNING, approve, make_agent
from train.model.config import MoEConfig
from train.model.transformer import MoETransformer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
async def agent(base: Path, tmp_path: Path) -> AsyncIterator[AutonomousLearningAgent]:
    async with make_agent(base, tmp_path / "home") as agent:
        yield agent


@pytest.mark.slow
async def test_a_document_is_found_at_once_learned_approved_and_kept_over_a_restart(base: Path, tmp_path: Path) -> None:
    agent = make_agent(base, tmp_path / "home")
    await agent.start()
    rows = (await agent.add(DOCUMENTS))["documents"]
    assert [row["status"] for row in rows] == ["stored"] * 3
    found = await agent.ask("What is the Vostrek valve rated for?", max_tokens=4)
    assert found.episodes
    before = agent.ledger.pointers().v2

    status = await agent.learn()
    assert status.state == State.AWAITING_APPROVAL.value, status
    assert status.version is not None
    assert agent.ledger.pointers().v2 == before
    with pytest.raises(ValueError, match="report_sha256 is missing"):
        await agent.approve(status.version, by="Ada", reason="did not read it")
    await approve(agent, status.version)
    assert agent.ledger.pointers().v2 == status.version

    question = "What is the Vostrek valve rated for?"
    learned = await agent.ask(question, retrieval=False, max_tokens=8)
    original = await agent.ask(question, retrieval=False, max_tokens=8, version="base")
    assert (learned.version, original.version) == (status.version, "base")
    assert learned.text != original.text
    assert learned.episodes == ()
    await agent.stop()

    await agent.start()
    again = await agent.ask(question, retrieval=False, max_tokens=8)
    assert (again.version, again.text) == (status.version, learned.text)
    assert (await agent.add(DOCUMENTS))["documents"][0]["status"] == "repeated"
    assert agent.ledger.verify_audit().ok
    await agent.stop()
    await agent.stop()


@pytest.mark.slow
async def test_what_a_rolled_back_version_learned_is_not_recalled_until_it_is_released(
    agent: AutonomousLearningAgent,
) -> None:
    await agent.add(DOCUMENTS)
    version = (await agent.learn()).version
    assert version is not None
    await approve(agent, version)
    bad, _ = await agent.rollback(by="Ada", reason="wrong answers")
    assert bad == version
    async with asyncio.timeout(30):  # passages are held back first, then what was claimed by them
        while (await agent.ask("What is the Vostrek valve rated for?", max_tokens=2)).episodes:
            await asyncio.sleep(0.05)
    status = agent.status()
    assert (status["memory"]["num_learnable"], status["pending_episodes"]) == (0, 0)


async def test_what_leaves_is_screened(agent: AutonomousLearningAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalEngine, "answer", lambda *_, **__: "Write to ada.lovelace@example.com.")
    answers = [await agent.ask("Whom?", retrieval=False), await agent.answer("Who keeps the gate?")]
    assert all("ada.lovelace" not in answer.text and answer.text.startswith("Write to") for answer in answers)


@pytest.mark.slow
async def test_a_stop_forbids_memory_and_learning_and_everything_where_it_says_so(
    agent: AutonomousLearningAgent,
) -> None:
    await agent.add(DOCUMENTS)
    agent.emergency_stop(reason="drill", by="Ada")
    with pytest.raises(LearningStopped):
        await agent.add([{"text": "The capital of Quorra is Tellin."}])
    with pytest.raises(LearningStopped):
        await agent.learn()
    await agent.ask("What is red?", max_tokens=2)
    agent.emergency_stop(reason="drill", by="Ada", scope="all")
    with pytest.raises(LearningStopped):
        await agent.ask("What is red?", max_tokens=2)
    assert agent.reset(reason="over", by="Ada")["waiting"]["by"] == "Ada"
    with pytest.raises(LearningStopped):
        await agent.learn()
    agent.reset(reason="over", by="Grace")
    assert (await agent.learn()).phase == "done"


async def test_a_question_is_answered_with_tools_whose_calls_are_audited_and_a_stop_holds(
    base: Path, tmp_path: Path
) -> None:
    tools = KnowledgeConfig(enabled=("calculator", "documentation"), requested_by_model=(), min_cosine=-1.0)
    async with make_agent(base, tmp_path / "home", CONFIG.model_copy(update={"knowledge": tools})) as agent:
        await agent.add(DOCUMENTS)
        reckoned = await agent.answer("What is 12 * (3 + 4)?")
        assert (reckoned.text, reckoned.answered_by) == ("12 * (3 + 4) = 84", "tool")
        looked_up = await agent.answer("What is the Vostrek valve rated for?", max_tokens=4)
        assert [(step.tool, step.requested_by) for step in looked_up.steps] == [("documentation", "fallback")]
        assert looked_up.citations
        assert [one["function"]["name"] for one in agent.knowledge.describe()] == ["calculator", "documentation"]
        actions = [row.action for row in agent.ledger.audit(9) if row.action.startswith("tool.")]
        assert sorted(actions) == ["tool.call"] * 2 + ["tool.result"] * 2
        agent.emergency_stop(reason="drill", by="Ada")
        with pytest.raises(LearningStopped):
            await agent.answer("What is 12 * (3 + 4)?")


async def test_a_run_answers_nobody_before_its_weights_are_fixed(agent: AutonomousLearningAgent) -> None:
    run = agent.ledger.start_run(parent=agent.ledger.pointers().v2, config={}, by="Ada")
    for ask in (agent.ask, agent.answer):
        with pytest.raises(VersionNotFixed, match=f"version = '{run}' is a learning run in state .* no weights yet"):
            await ask("What is red?", version=run)


async def test_ending_the_agent_ends_its_cycle_at_a_step_and_leaves_nothing_half(base: Path, tmp_path: Path) -> None:
    slow = LEARNING.model_copy(update={"max_steps": 100_000, "target_loss": 1e-9})
    agent = make_agent(base, tmp_path / "home", CONFIG.model_copy(update={"learning": slow}))
    await agent.start()
    await agent.add(DOCUMENTS)
    run = asyncio.create_task(agent.learn())
    async with asyncio.timeout(60):
        while (status := agent.learn_status()) is None or status.step < 2:
            await asyncio.sleep(0.02)
    run.cancel()
    await agent.stop()
    await agent.start()
    states = [record.state for record in agent.ledger.list() if record.run_id]
    assert states == [State.FAILED]
    assert not [path for path in (tmp_path / "home" / "versions").iterdir() if path.name.startswith(".run")]
    await agent.stop()


async def test_a_home_has_one_owner(agent: AutonomousLearningAgent, base: Path, tmp_path: Path) -> None:
    with pytest.raises(HomeInUse, match="give another home"):
        await make_agent(base, tmp_path / "home").start()


async def test_a_model_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model is a dict"):
        await AutonomousLearningAgent({}, home=tmp_path).start()
    with pytest.raises(ValueError, match=str(tmp_path / "nothing")):
        await AutonomousLearningAgent(tmp_path / "nothing", home=tmp_path).start()


async def test_before_its_start_the_agent_says_what_to_do(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"await agent\.start\(\)"):
        await make_agent(base, tmp_path).learn()


@pytest.mark.slow
async def test_a_model_of_experts_of_our_own_learns_in_the_same_way(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MoETransformer(
        MoEConfig(
            vocab_size=384,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_experts=4,
            num_experts_per_token=2,
            moe_intermediate_size=64,
            initializer_range=0.3,
            max_position_embeddings=512,
        )
    )
    with pytest.raises(ValueError, match="tokenizer_from"):
        await AutonomousLearningAgent(model, CONFIG, home=tmp_path / "none").start()
    agent = AutonomousLearningAgent(
        model, CONFIG, home=tmp_path / "home", tokenizer_from=base, embedder=HashingEmbedder()
    )
    async with agent:
        await agent.add(DOCUMENTS)
        status = await agent.learn()
        assert status.version is not None, status.error
        assert status.training["losses"][-1] < status.training["losses"][0]
        gates = {gate.name: gate for gate in status.gates}
        assert gates["G5 probe parity"].verdict == "pass"
