"""The agent with real parts on a tiny random Llama, in one process: cycles, decisions, stop, crash, rollback."""

from contextlib import closing
from pathlib import Path

import pytest

from autonomous.budget import BudgetConfig, BudgetLimits
from autonomous.cycle_watch import open_budget
from autonomous.data_gate import DataGateConfig
from autonomous.loop import NothingToLearn
from autonomous.run_board import AlreadyLearning
from autonomous.safety.latch import LearningStopped
from autonomous.versions.data_gates import gate_data
from autonomous.versions.gates import RECALL, REQUIRED_GATES
from autonomous.versions.ledger import PromotionRefused, PromotionsFrozen
from autonomous.versions.report import EvaluationReport
from autonomous.versions.states import State
from tests.tiny_learning import FACTS, LENIENT
from tests.tiny_model import write_tiny_llama
from tests.unit.autonomous.loop_world import LEARNING, STRICT, UNLIMITED, World
from train.continual.items import LearningItem


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def world(tmp_path: Path, base: Path) -> World:
    world = World(tmp_path, base, gates=LENIENT)
    world.memory.add(*FACTS)
    return world


@pytest.mark.slow
def test_cycle_promotes_a_better_version_that_names_exactly_what_it_learned(world: World) -> None:
    genesis = world.agent.ledger.pointers().v2
    status = world.learn()
    assert status.phase == "done", status.error
    assert [gate.verdict for gate in status.gates] == ["pass"] * len(REQUIRED_GATES), status.gates
    pointers = world.agent.ledger.pointers()
    assert pointers.v2 == status.version
    assert pointers.v2 in world.engine.loaded
    assert world.agent.ledger.learned_episodes(pointers.v2) == {episode.id for episode in world.memory.episodes}
    assert world.agent.ledger.lineage(pointers.v2)[0].name == genesis
    report = EvaluationReport.from_dict(world.agent.ledger.get(pointers.v2).report or {})
    assert gate_data(report, DataGateConfig()).verdict == "pass"
    with pytest.raises(NothingToLearn):
        world.agent.start_cycle()


@pytest.mark.slow
def test_second_batch_replays_the_first(world: World) -> None:
    assert world.learn().phase == "done"
    world.memory.add("The Harrow reactor was built in 1987.", "The Ibis relay opens at 9 volts.")
    status = world.learn()
    assert status.training["replay_share"] > 0.1
    assert status.version is not None
    manifest = world.agent.ledger.get(status.version).manifest
    assert manifest is not None
    assert manifest["data"]["num_replay"] > 0
    assert manifest["parent"] == world.agent.ledger.lineage(status.version)[1].name


@pytest.mark.slow
def test_version_that_fails_a_gate_is_quarantined_and_its_passages_are_held_back(tmp_path: Path, base: Path) -> None:
    world = World(tmp_path, base, gates=STRICT)
    world.memory.add(*FACTS)
    before = world.agent.ledger.pointers().v2
    status = world.learn()
    assert status.state == State.QUARANTINED.value
    pointers = world.agent.ledger.pointers()
    assert pointers.v2 == before
    assert pointers.v3 == status.version
    assert world.agent.curriculum.next_batch().episodes == ()


@pytest.mark.slow
def test_stop_in_the_middle_of_training_ends_the_run_and_leaves_nothing_behind(world: World, tmp_path: Path) -> None:
    world.learner.hold.clear()
    run_id = world.agent.start_cycle()
    assert world.learner.is_training.wait(timeout=60)
    with pytest.raises(AlreadyLearning):
        world.agent.start_cycle()
    world.latch.stop(reason="drill", by="tester")
    world.learner.hold.set()
    status = world.wait(run_id)
    assert status.phase == "failed"
    assert "drill" in str(status.error)
    assert status.state == State.FAILED.value
    assert [path.name for path in (tmp_path / "versions").iterdir() if path.name.startswith(".run")] == []
    with pytest.raises(LearningStopped):
        world.agent.start_cycle()
    world.latch.reset(reason="over", by="tester")
    assert world.learn().phase == "done"


def test_what_a_crash_left_and_cannot_be_removed_does_not_keep_the_agent_from_starting(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "versions" / ".run-1").mkdir()
    (tmp_path / "versions" / ".run-2").write_text("not a folder: it cannot be removed as one")
    world.start()
    assert [path.name for path in (tmp_path / "versions").glob(".run-*")] == [".run-2"]


@pytest.mark.slow
def test_candidate_that_a_crash_left_open_is_taken_up_by_the_next_cycle_without_training_again(world: World) -> None:
    world.evaluator.fails = True
    failed = world.learn()
    assert failed.phase == "failed"
    assert failed.state == State.EVALUATING.value
    assert world.agent.curriculum.next_batch().episodes == ()
    world.evaluator.fails = False
    world.agent = world.start()
    world.learner.is_training.clear()
    status = world.learn()
    assert not world.learner.is_training.is_set()
    assert status.run_id == failed.run_id
    assert status.version == failed.version == world.agent.ledger.pointers().v2


def tokens_today(home: Path, world: World) -> tuple[float, float]:
    """Tokens that are spent and reserved."""
    with closing(open_budget(home, UNLIMITED, clock=world.clock)) as books:
        return next((one.spent, one.reserved) for one in books.usage() if one.kind == "training_tokens")


@pytest.mark.slow
def test_a_stopped_training_counts_its_tokens_and_a_version_that_is_only_judged_needs_none(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = BudgetConfig(day=BudgetLimits(training_tokens=LEARNING.most_tokens))
    world = World(tmp_path, base, gates=LENIENT, budget=budget)
    world.memory.add(*FACTS)
    world.evaluator.fails = True
    opened = world.learn()
    assert opened.state == State.EVALUATING.value
    assert tokens_today(tmp_path, world) == (sum(step.num_tokens for step in world.learner.steps), 0)
    world.evaluator.fails = False
    assert world.learn().phase == "done"  # a whole batch would no longer fit

    world.late_s = 86_400.0
    world.memory.add("The Ibis relay opens at 9 volts.", "The captain of the Meridel is Orla Vantis.")
    world.learner.steps.clear()
    world.learner.is_training.clear()
    world.learner.hold.clear()
    run_id = world.agent.start_cycle()
    assert world.learner.is_training.wait(timeout=60)
    world.latch.stop(reason="drill", by="tester")
    world.learner.hold.set()
    assert world.wait(run_id).phase == "failed"
    (step,) = world.learner.steps
    assert tokens_today(tmp_path, world) == (step.num_tokens, 0)

    world.latch.reset(reason="over", by="tester")
    world.late_s += 86_400.0
    monkeypatch.setattr(world.agent.curriculum, "replay_for", _no_memory)
    assert world.learn().phase == "failed"  # before it trained
    assert tokens_today(tmp_path, world) == (0, 0)


def _no_memory(_: str) -> list[LearningItem]:
    raise OSError("the memory is gone")


@pytest.mark.slow
def test_with_oversight_a_version_waits_for_a_person_and_serves_after_the_approval(tmp_path: Path, base: Path) -> None:
    world = World(tmp_path, base, gates=LENIENT, oversight=True)
    world.memory.add(*FACTS)
    status = world.learn()
    assert status.state == State.AWAITING_APPROVAL.value
    assert status.version is not None
    assert world.agent.ledger.pointers().v2 != status.version
    world.agent.approve(status.version, by="ada", reason="looked at the report")
    assert world.agent.ledger.pointers().v2 == status.version


@pytest.mark.slow
def test_an_approval_that_comes_too_late_is_refused_and_the_version_is_evaluated_again(
    tmp_path: Path, base: Path
) -> None:
    world = World(tmp_path, base, gates=LENIENT, oversight=True)
    world.memory.add(*FACTS)
    version = world.learn().version
    assert version is not None
    world.late_s = 86_401.0
    with pytest.raises(PromotionRefused, match="waited for longer than 24 hours"):
        world.agent.approve(version, by="ada", reason="at last")
    assert world.agent.ledger.get(version).state is State.AWAITING_APPROVAL

    world.learner.is_training.clear()
    again = world.learn()
    assert (again.version, again.state) == (version, State.AWAITING_APPROVAL.value)
    assert not world.learner.is_training.is_set()
    world.agent.approve(version, by="ada", reason="in time")
    assert world.agent.ledger.pointers().v2 == version


@pytest.mark.slow
def test_rollback_restores_the_parent_and_the_next_cycle_builds_on_it(world: World) -> None:
    genesis = world.agent.ledger.pointers().v2
    bad = world.learn().version
    assert world.agent.rollback(by="ada", reason="drill") == (bad, genesis)
    world.memory.add("The Ibis relay opens at 9 volts.", "The captain of the Meridel is Orla Vantis.")
    status = world.learn()
    assert status.version is not None
    record = world.agent.ledger.get(status.version)
    assert record.parent == genesis
    assert world.agent.ledger.pointers().v2 == status.version, status.gates
    assert not world.agent.ledger.learned_episodes(status.version) & world.agent.ledger.held_back()


@pytest.mark.slow
def test_after_two_rollbacks_nothing_is_learned_or_approved_until_a_person_unlocks_it(
    tmp_path: Path, base: Path
) -> None:
    world = World(tmp_path, base, gates=LENIENT, oversight=True)
    for texts in (FACTS, ("The Ibis relay opens at 9 volts.", "The Harrow reactor was built in 1987.")):
        world.memory.add(*texts)
        version = world.learn().version
        assert version is not None
        world.agent.approve(version, by="ada", reason="fine")
        if texts is FACTS:
            world.agent.rollback(by="ada", reason="bad")
    world.memory.add("The captain of the Meridel is Orla Vantis.", "The capital of Quorra is Tellin.")
    waiting = world.learn().version
    assert waiting is not None
    world.agent.rollback(by="ada", reason="bad too")

    with pytest.raises(PromotionRefused):  # its parent has left
        world.agent.approve(waiting, by="ada", reason="fine")
    with pytest.raises(PromotionsFrozen, match="autonomous unlock"):
        world.agent.start_cycle()
    assert world.agent.ledger.get(waiting).state is State.QUARANTINED  # its parent is gone; its passages are free
    world.agent.ledger.unlock_promotions(by="ada", reason="found out why")
    assert world.learn().state == State.AWAITING_APPROVAL.value


def test_batch_that_no_gate_could_judge_is_refused_and_stays_free(world: World) -> None:
    world.memory.episodes.clear()
    world.memory.add("Nothing that could be asked stands here, only a few words.")
    with pytest.raises(NothingToLearn, match="facts that can be asked"):
        world.agent.start_cycle()
    assert world.agent.ledger.held_back() == set()


def test_passages_are_taken_only_as_far_as_all_that_they_teach_fits(world: World) -> None:
    world.memory.add(*(f"The pump P{i} weighs {i} kg. The valve V{i} is rated for {i} bar." for i in range(20)))
    batch = world.agent.curriculum.next_batch()
    assert len(batch.lessons.items) <= LEARNING.max_batch_items
    assert {question.episode_id for question in batch.lessons.questions} == {episode.id for episode in batch.episodes}
    assert len(batch.lessons.questions) == 2 * len(batch.episodes)


@pytest.mark.slow
def test_what_the_system_wrote_itself_is_learned_only_beside_what_others_wrote(tmp_path: Path, base: Path) -> None:
    world = World(tmp_path, base, gates=LENIENT)
    world.memory.add(*FACTS[:2], metadata={"origin": "generated"})
    reason = "the system wrote it itself, and so much of a batch at most may be such: data.max_generated_share = 0.5"
    for by in ("agent:schedule", "agent:api", "Ada"):
        with pytest.raises(NothingToLearn, match=f"undecided: {reason}"):
            world.agent.start_cycle(by=by)
    batch = world.agent.curriculum.next_batch()
    assert (batch.episodes, batch.lessons.items) == ((), [])
    assert all(told.startswith(reason) for told in batch.undecided.values())
    assert batch.undecided.keys() == {episode.id for episode in world.memory.episodes}
    world.memory.add(FACTS[2], "The Harrow reactor was built in 1987.")
    assert {episode.text for episode in world.agent.curriculum.next_batch().episodes} >= set(FACTS)
    assert world.learn().phase == "done"


@pytest.mark.slow
def test_waiting_version_whose_parent_was_replaced_is_refused_and_its_passages_are_free_again(
    tmp_path: Path, base: Path
) -> None:
    world = World(tmp_path, base, gates=LENIENT, oversight=True)
    world.memory.add(*FACTS)
    first = world.learn().version
    world.memory.add("The Ibis relay opens at 9 volts.", "The Harrow reactor was built in 1987.")
    with pytest.raises(NothingToLearn, match=f"{first} waits for a person"):
        world.agent.start_cycle()
    second = world.wait(world.agent.start_cycle(by="ada")).version
    assert first is not None
    assert second is not None
    world.agent.approve(first, by="ada", reason="fine")
    with pytest.raises(PromotionRefused, match=first):
        world.agent.approve(second, by="ada", reason="fine too")
    status = world.learn()
    assert world.agent.ledger.get(second).state is State.QUARANTINED
    assert status.version is not None
    assert set(world.agent.ledger.episodes_of(second)) == set(world.agent.ledger.episodes_of(status.version))
    assert world.agent.ledger.get(status.version).parent == first


@pytest.mark.slow
def test_document_that_is_erased_while_it_is_learned_ends_the_run_and_leaves_no_adapter(
    world: World, tmp_path: Path
) -> None:
    world.learner.hold.clear()
    run_id = world.agent.start_cycle()
    assert world.learner.is_training.wait(timeout=60)
    world.memory.episodes.pop(0)
    world.learner.hold.set()
    status = world.wait(run_id)
    assert status.state == State.FAILED.value
    assert "erased" in str(status.error)
    assert [path.name for path in (tmp_path / "versions").iterdir()] == [world.agent.ledger.pointers().v2]


@pytest.mark.slow
def test_a_version_whose_gates_stay_open_is_asked_more_and_then_put_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    earlier = world.agent.curriculum.earlier_questions
    monkeypatch.setattr(
        world.agent.curriculum,
        "earlier_questions",
        lambda parent, *, most: asked.append(most) or earlier(parent, most=most),
    )
    world.evaluator.sees_nothing = True
    assert [world.learn().state for _ in range(2)] == [State.EVALUATING.value, State.QUARANTINED.value]
    assert asked == [24, 96]


@pytest.fixture
def demanding(tmp_path: Path, base: Path) -> World:
    """Where every fact must be answered: the tiny model learns too little."""
    world = World(tmp_path, base, gates=LENIENT.model_copy(update={"min_recall": 1.0}))
    world.memory.add(*FACTS)
    return world


def test_what_a_version_learned_too_little_of_is_learned_once_more_from_another_seed_and_then_held_back(
    demanding: World,
) -> None:
    first, ledger = demanding.learn(), demanding.agent.ledger
    assert (first.state, ledger.held_back()) == (State.QUARANTINED.value, set())
    assert {gate.name for gate in first.gates if gate.verdict != "pass"} == {RECALL}
    assert first.version is not None
    taken = set(ledger.episodes_of(first.version))
    assert {episode.id for episode in demanding.agent.curriculum.next_batch().episodes} == taken
    second = demanding.learn()
    assert second.version not in (None, first.version)
    manifest = ledger.get(str(second.version)).manifest
    assert manifest is not None
    assert (second.state, manifest["config"]["attempt"]) == (State.QUARANTINED.value, 2)
    assert ledger.held_back() == taken
    with pytest.raises(NothingToLearn):
        demanding.learn()


@pytest.mark.slow
def test_of_a_batch_that_was_learned_too_little_only_what_was_trained_often_enough_is_held_back(
    demanding: World,
) -> None:
    first, ledger = demanding.learn(), demanding.agent.ledger
    demanding.memory.add("The Harrow reactor was built in 1987.", "The Ibis relay opens at 9 volts.")
    second = demanding.learn()
    assert len(ledger.episodes_of(str(second.version))) == len(FACTS) + 2
    assert ledger.held_back() == set(ledger.episodes_of(str(first.version)))
    assert {episode.id for episode in demanding.agent.curriculum.next_batch().episodes} == {
        episode.id for episode in demanding.memory.episodes[-2:]
    }


@pytest.mark.slow
def test_candidate_that_fails_twice_is_quarantined_so_that_learning_goes_on(world: World) -> None:
    world.evaluator.fails = True
    first, second = world.learn(), world.learn()
    assert first.state == State.EVALUATING.value
    assert second.state == State.QUARANTINED.value
    world.evaluator.fails = False
    world.memory.add("The Ibis relay opens at 9 volts.", "The Harrow reactor was built in 1987.")
    assert world.learn().phase == "done"
