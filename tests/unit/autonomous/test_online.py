"""OnlineLearningModule on a tiny random Llama: it learns, obeys the stop, leaves the base alone and repeats exactly."""

from collections import Counter
from pathlib import Path

import pytest

from autonomous.config import LearningConfig
from autonomous.online import NonFiniteLoss, OnlineLearningModule, StepReport
from autonomous.steps import StepPlan, learning_rate_at, mean_losses
from tests.stops import StopAfter, Stopped
from tests.tiny_learning import learn
from tests.tiny_model import write_adapter, write_tiny_llama
from train.adapt.base import weights_sha256
from train.adapt.lora import adapter_sha256
from train.adapt.trainer import StepMetrics
from train.continual.items import EncodedItem, LearningItem

CONFIG = LearningConfig(
    max_steps=8,
    items_per_step=2,
    learning_rate=5e-3,
    kl_texts_per_step=2,
    dtype="float32",
    device="cpu",
    target_loss=1e-9,
)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def learner(base_folder: Path) -> OnlineLearningModule:
    return start_learner(base_folder, config=CONFIG)


def start_learner(base_folder: Path, *, config: LearningConfig) -> OnlineLearningModule:
    learner = OnlineLearningModule(config, base_folder=base_folder)
    learner.start()
    return learner


def test_the_loss_falls_and_every_step_is_reported(learner: OnlineLearningModule, tmp_path: Path) -> None:
    reports: list[StepReport] = []
    run = learn(learner, tmp_path / "one", on_step=reports.append)
    assert [report.step for report in reports] == list(range(1, 9))
    assert {report.num_steps for report in reports} == {8}
    assert run.losses == tuple(report.loss for report in reports)
    assert sum(run.losses[-2:]) < 0.7 * sum(run.losses[:2])
    assert run.kls[0] == pytest.approx(0, abs=1e-5)
    assert run.kls[-1] > 1e-4
    assert all(norm > 0 for norm in run.grad_norms)
    assert run.num_trainable == 8 * 2 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 128) * 3)
    assert (run.num_steps, run.stopped_early, run.replay_share) == (8, False, 0.0)
    assert run.num_tokens > 0
    assert run.seconds > 0
    assert run.cpu_seconds > 0


def test_the_base_model_is_byte_for_byte_the_same_after_learning(learner: OnlineLearningModule, tmp_path: Path) -> None:
    before = weights_sha256(learner.base.model)
    learn(learner, tmp_path / "one")
    assert weights_sha256(learner.base.model) == before


def test_the_same_batch_gives_the_same_adapter_in_a_used_and_in_a_fresh_learner(
    learner: OnlineLearningModule, base_folder: Path, tmp_path: Path
) -> None:
    first = learn(learner, tmp_path / "one").adapter_sha256
    assert learn(learner, tmp_path / "two").adapter_sha256 == first
    assert learn(start_learner(base_folder, config=CONFIG), tmp_path / "three").adapter_sha256 == first
    assert adapter_sha256(tmp_path / "three") == first
    other_seed = start_learner(base_folder, config=CONFIG.model_copy(update={"seed": 1}))
    assert learn(other_seed, tmp_path / "four").adapter_sha256 != first


def test_a_stop_ends_the_batch_before_the_next_step_and_nothing_is_written(
    learner: OnlineLearningModule, tmp_path: Path
) -> None:
    before = weights_sha256(learner.base.model)
    reports: list[StepReport] = []
    with pytest.raises(Stopped):
        learn(learner, tmp_path / "one", guard=StopAfter(4), on_step=reports.append)
    assert len(reports) == 3
    assert list(tmp_path.iterdir()) == []
    assert weights_sha256(learner.base.model) == before


def test_a_stop_after_the_last_step_still_prevents_the_save(learner: OnlineLearningModule, tmp_path: Path) -> None:
    guard = StopAfter(9)
    with pytest.raises(Stopped):
        learn(learner, tmp_path / "one", guard=guard)
    assert guard.num_calls == 9
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_ends_the_batch_and_nothing_is_written(
    learner: OnlineLearningModule, base_folder: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    parent = write_adapter(tmp_path / "parent", base=base_folder, seed=1).joinpath("adapter_model.safetensors")
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(parent).items()}, parent)
    broken = start_learner(base_folder, config=CONFIG.model_copy(update={"lora_alpha": 16}))
    with pytest.raises(NonFiniteLoss, match="nothing was saved"):
        learn(broken, tmp_path / "one", parent=tmp_path / "parent")
    assert not (tmp_path / "one").exists()


def test_learning_goes_on_from_the_parent_adapter(learner: OnlineLearningModule, tmp_path: Path) -> None:
    first = learn(learner, tmp_path / "one")
    parent_hash = adapter_sha256(tmp_path / "one")
    second = learn(learner, tmp_path / "two", parent=tmp_path / "one")
    assert sum(second.losses[:2]) < 0.8 * sum(first.losses[:2])
    assert adapter_sha256(tmp_path / "one") == parent_hash != second.adapter_sha256


def test_a_continued_adapter_learns_at_a_share_of_the_rate(
    learner: OnlineLearningModule, base_folder: Path, tmp_path: Path
) -> None:
    learn(learner, tmp_path / "parent")
    hashes = []
    for share, rate in [(0.5, 4e-3), (1.0, 2e-3), (1.0, 4e-3)]:
        config = CONFIG.model_copy(update={"continued_rate": share, "learning_rate": rate})
        other = start_learner(base_folder, config=config)
        run = learn(other, tmp_path / f"{share}-{rate}", parent=tmp_path / "parent")
        hashes.append(run.adapter_sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_mean_losses_of_a_round_are_those_of_new_and_of_replayed_tokens() -> None:
    steps = [StepMetrics(0.3, 10, 0.45, n, kl=0.0, grad_norm=1.0, num_tokens=50) for n in (5, 10)]
    assert mean_losses(steps) == (pytest.approx(0.03), pytest.approx(0.06))
    assert mean_losses([StepMetrics(0.3, 10, 0.0, 0, kl=0.0, grad_norm=1.0, num_tokens=9)]) == (
        pytest.approx(0.03),
        0.0,
    )


def test_an_epoch_below_the_target_loss_ends_the_batch_early(base_folder: Path, tmp_path: Path) -> None:
    easy = start_learner(base_folder, config=CONFIG.model_copy(update={"target_loss": 100.0}))
    run = learn(easy, tmp_path / "one")
    assert (run.num_steps, run.stopped_early) == (2, True)


def test_the_kl_term_holds_the_adapted_model_near_the_base(base_folder: Path, tmp_path: Path) -> None:
    final_kl = []
    for weight in (0.01, 10.0):
        learner = start_learner(base_folder, config=CONFIG.model_copy(update={"kl_weight": weight, "max_steps": 12}))
        final_kl.append(learn(learner, tmp_path / f"{weight}").kls[-1])
    assert final_kl[1] < 0.5 * final_kl[0]


def test_replayed_items_are_a_fifth_of_the_mixed_batch(base_folder: Path, tmp_path: Path) -> None:
    learner = start_learner(base_folder, config=CONFIG.model_copy(update={"items_per_step": 4, "max_steps": 2}))
    old = [LearningItem(id=f"old {n}", prompt="Which?", answer=f"Number {n}.", episode_id="old") for n in range(3)]
    assert learn(learner, tmp_path / "one", replay=old).replay_share == pytest.approx(0.2)


def test_an_empty_batch_is_refused(learner: OnlineLearningModule, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="items is empty"):
        learn(learner, tmp_path / "one", items=[])


def test_learning_before_start_says_what_to_call(base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"call start\(\) first"):
        learn(OnlineLearningModule(CONFIG, base_folder=base_folder), tmp_path / "one")


def encoded(*numbers: int) -> list[EncodedItem]:
    return [EncodedItem((number, 0), num_prompt=1) for number in numbers]


def test_a_plan_shows_every_item_once_a_round_and_deals_old_items_and_anchors_evenly() -> None:
    config = LearningConfig(items_per_step=8, replay_ratio=0.2, kl_texts_per_step=3)
    items, replay, anchors = encoded(*range(19)), encoded(*range(100, 105)), encoded(*range(200, 206))
    plan = StepPlan(items, replay=replay, anchors=anchors, config=config)
    steps = [plan.draw(consolidates=False) for _ in range(10)]
    assert (plan.num_parts, [len(step.new) for step in steps]) == (3, [6, 6, 7] * 3 + [6])
    for number in range(3):
        seen = [item for step in steps[3 * number : 3 * number + 3] for item in step.new]
        assert sorted(seen, key=lambda item: item.token_ids) == items
    assert [len(step.replayed) for step in steps] == [2] * 10
    dealt = [item for step in steps for item in step.replayed]
    assert {dealt.count(item) for item in replay} == {4}
    assert {[item for step in steps for item in step.anchors].count(anchor) for anchor in anchors} == {5}


def test_a_step_that_consolidates_shows_as_many_old_items_as_others_new_ones() -> None:
    config = LearningConfig(items_per_step=8, replay_ratio=0.2)
    plan = StepPlan(encoded(*range(16)), replay=encoded(*range(100, 140)), anchors=[], config=config)
    steps = [plan.draw(consolidates=True) for _ in range(10)]
    assert {(len(step.new), len(step.replayed)) for step in steps} == {(2, 8)}
    assert {[item for step in steps for item in step.replayed].count(item) for item in encoded(*range(100, 140))} == {2}
    assert not StepPlan(encoded(1), replay=[], anchors=[], config=config).has_replay
    none = config.model_copy(update={"replay_ratio": 0.0})
    assert not StepPlan(encoded(1), replay=encoded(2), anchors=[], config=none).has_replay


def test_a_round_that_learns_shows_every_new_item_once_whatever_came_before_it() -> None:
    config = LearningConfig(items_per_step=8, replay_ratio=0.2)
    items = encoded(*range(18))
    plan = StepPlan(items, replay=encoded(*range(100, 140)), anchors=[], config=config)
    seen = []
    for consolidates in (False, True, False, True, True, False):
        steps = [plan.draw(consolidates=consolidates) for _ in range(plan.num_parts)]
        if not consolidates:
            assert Counter(item for step in steps for item in step.new) == Counter(items)
        else:
            seen += [item for step in steps for item in step.new]
    assert Counter(seen) == Counter(items)  # three rounds of six


def test_where_more_items_are_replayed_than_learned_a_step_that_consolidates_takes_no_fewer() -> None:
    config = LearningConfig(items_per_step=8, replay_ratio=0.8)
    plan = StepPlan(encoded(*range(8)), replay=encoded(*range(100, 140)), anchors=[], config=config)
    assert [len(plan.draw(consolidates=which).replayed) for which in (False, True)] == [32, 32]


@pytest.mark.slow
def test_once_the_new_items_are_learned_the_rest_of_the_steps_consolidates(base_folder: Path, tmp_path: Path) -> None:
    old = [LearningItem(id=f"old {n}", prompt="Which?", answer=f"Number {n}.", episode_id="old") for n in range(8)]
    shares = []
    for target_loss in (
        1e-9,
        100.0,
    ):  # never learned; learned in the first round, and kept in the second, which shows enough
        losses = {"known_loss": target_loss, "target_loss": target_loss}
        config = CONFIG.model_copy(update={"items_per_step": 4, "max_steps": 6, **losses})
        shares.append(learn(start_learner(base_folder, config=config), tmp_path / f"{target_loss}", replay=old))
    assert [run.num_steps for run in shares] == [6, 2]
    assert [run.replay_share for run in shares] == [pytest.approx(0.2), pytest.approx(0.5)]
    easy = [LearningItem(id=f"{n}", prompt="Which river?", answer="The", episode_id="e") for n in range(4)]
    config = CONFIG.model_copy(update={"items_per_step": 4, "max_steps": 30, "known_loss": 0.3})
    run = learn(start_learner(base_folder, config=config), tmp_path / "easy", items=easy, replay=old)
    assert run.replay_share > 0.5


def test_the_learning_rate_warms_up_and_falls_to_a_fifth() -> None:
    rates = [learning_rate_at(step, num_steps=22, peak=1e-3) for step in range(22)]
    assert rates[:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 2e-4 < rates[-1] < 2.2e-4
