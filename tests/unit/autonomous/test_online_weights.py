"""WeightsLearner on a tiny random Llama and a tiny Mixture of Experts: it learns, obeys the stop, writes what it computed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from autonomous.config import LearningConfig
from autonomous.learner_state import DRIFT_NAME, STATE_NAME
from autonomous.online import OnlineLearningModule
from autonomous.online_weights import WeightsLearner, build_learner
from tests.stops import StopAfter, Stopped
from tests.tiny_learning import ITEMS, learn
from tests.tiny_model import write_adapter, write_tiny_llama, write_tiny_moe
from train.adapt.base import weights_sha256
from train.adapt.lora import AdapterError, attach_saved, detach_adapter
from train.adapt.reference import MODEL_FOLDER
from train.adapt.scoring import score_items
from train.adapt.weights import WeightsError, check_weights_folder, hash_weights, load_version, save_weights
from train.continual.items import LearningItem

CONFIG = LearningConfig(
    target="weights",
    max_steps=8,
    items_per_step=2,
    weights_learning_rate=2e-3,
    kl_texts_per_step=2,
    dtype="float32",
    device="cpu",
    target_loss=1e-9,
)
OLD = [LearningItem(id=f"old {n}", prompt="Which?", answer=f"Number {n}.", episode_id="old") for n in range(3)]
IDS = torch.tensor([[0, 40, 41, 42, 43, 44]])


class Watched(WeightsLearner):
    """Remembers what the trained model computes right before it is saved."""

    def _save(self, model: Any, folder: Path) -> dict[str, Any]:
        with torch.no_grad():
            self.logits = model(IDS).logits.clone()
        return super()._save(model, folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def bases(llama: Path) -> dict[str, Path]:
    return {"llama": llama, "moe": write_tiny_moe(llama.with_name("moe"), tokenizer_from=llama)}


@pytest.fixture(scope="module")
def learner(llama: Path) -> OnlineLearningModule:
    return start(CONFIG, llama)


def start(config: LearningConfig, base: Path) -> OnlineLearningModule:
    learner = build_learner(config, base_folder=base)
    learner.start()
    return learner


def loss_of(folder: Path | None, learner: OnlineLearningModule, items: Sequence[LearningItem] = ITEMS) -> float:
    losses = score_items(load_version(folder, base=learner.base), items, base=learner.base)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("family", ["llama", "moe"])
def test_the_written_folder_loads_in_transformers_and_gives_the_trainers_logits(
    family: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    learner = Watched(CONFIG, base_folder=bases[family])
    learner.start()
    run = learn(learner, tmp_path / "one")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one" / MODEL_FOLDER, dtype=torch.float32)
    with torch.no_grad():
        assert (model(IDS).logits - learner.logits).abs().max() <= 1e-4
        assert (learner.base.model(IDS).logits - learner.logits).abs().max() > 0.1
    assert sum(run.losses[-2:]) < 0.7 * sum(run.losses[:2])
    assert run.num_trainable == sum(weight.numel() for weight in model.parameters())
    assert (run.adapter_sha256, run.weights_sha256) == (None, hash_weights(tmp_path / "one"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "one" / MODEL_FOLDER)
    assert tokenizer("a chat").input_ids == learner.base.tokenizer("a chat").input_ids
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [DRIFT_NAME, MODEL_FOLDER]


def test_the_original_is_byte_for_byte_the_same_after_learning(learner: OnlineLearningModule, tmp_path: Path) -> None:
    before = weights_sha256(learner.base.model)
    learn(learner, tmp_path / "one")
    assert weights_sha256(learner.base.model) == before


def test_the_same_batch_gives_the_same_weights_and_another_seed_does_not(
    learner: OnlineLearningModule, llama: Path, tmp_path: Path
) -> None:
    first = learn(learner, tmp_path / "one").weights_sha256
    assert learn(learner, tmp_path / "two").weights_sha256 == first
    other = start(CONFIG.model_copy(update={"seed": 1}), llama)
    assert learn(other, tmp_path / "three").weights_sha256 != first


def test_the_kl_term_holds_the_weights_near_the_original(llama: Path, tmp_path: Path) -> None:
    final_kl = []
    for weight in (0.01, 30.0):
        learner = start(CONFIG.model_copy(update={"kl_weight": weight, "max_steps": 16}), llama)
        final_kl.append(learn(learner, tmp_path / f"{weight}").kls[-1])
    assert 0 < final_kl[1] < 0.5 * final_kl[0]


def test_learning_goes_on_from_the_parents_weights_with_replay_in_every_step(llama: Path, tmp_path: Path) -> None:
    learner = start(CONFIG.model_copy(update={"items_per_step": 4}), llama)
    first = learn(learner, tmp_path / "one")
    second = learn(learner, tmp_path / "two", parent=tmp_path / "one", replay=OLD)
    assert second.losses[0] < 0.5 * first.losses[0]
    assert second.replay_share == pytest.approx(0.2)
    assert loss_of(tmp_path / "two", learner, OLD) < loss_of(tmp_path / "one", learner, OLD)


@pytest.mark.parametrize("limit", [1, 4, 9])
def test_a_stop_before_a_step_or_before_the_save_leaves_nothing_on_disk(
    limit: int, learner: OnlineLearningModule, tmp_path: Path
) -> None:
    guard = StopAfter(limit)
    with pytest.raises(Stopped):
        learn(learner, tmp_path / "one", guard=guard)
    assert guard.num_calls == limit
    assert list(tmp_path.iterdir()) == []


def test_a_stop_while_importance_is_measured_leaves_nothing_on_disk(llama: Path, tmp_path: Path) -> None:
    policy = CONFIG.policy.model_copy(update={"methods": ("ewc",)})
    learner = start(CONFIG.model_copy(update={"policy": policy}), llama)
    guard = StopAfter(8 + len(ITEMS))
    with pytest.raises(Stopped):
        learn(learner, tmp_path / "one", guard=guard)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_not_learned_into(learner: OnlineLearningModule, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="exists already"):
        learn(learner, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_go_on_from_a_parent_with_an_adapter_and_an_adapter_does_not_go_on_from_weights(
    learner: OnlineLearningModule, llama: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", base=llama, seed=1)
    adapted = attach_saved(learner.base.model, {"one": adapter})
    expected = score_items(adapted, ITEMS, base=learner.base)
    detach_adapter(adapted)
    assert score_items(load_version(adapter, base=learner.base), ITEMS, base=learner.base) == pytest.approx(
        expected, abs=1e-3
    )
    run = learn(learner, tmp_path / "one", parent=adapter)
    assert run.losses[0] > 0
    assert loss_of(tmp_path / "one", learner) < sum(expected) / len(expected)
    adapters = start(CONFIG.model_copy(update={"target": "adapter"}), llama)
    with pytest.raises(AdapterError, match=r"set learning\.target to 'weights'"):
        learn(adapters, tmp_path / "two", parent=tmp_path / "one")


def test_weights_that_are_not_finite_are_not_written(
    learner: OnlineLearningModule, llama: Path, tmp_path: Path
) -> None:
    model = load_version(None, base=learner.base)
    with torch.no_grad():
        next(model.parameters())[0, 0] = torch.nan
    with pytest.raises(WeightsError, match="nothing was written"):
        save_weights(model, folder=tmp_path / "one", base_folder=llama)
    assert not (tmp_path / "one").exists()


def test_a_folder_of_another_architecture_tokenizer_or_shape_is_refused_naming_both(
    learner: OnlineLearningModule, bases: dict[str, Path], tmp_path: Path
) -> None:
    save_weights(load_version(None, base=learner.base), folder=tmp_path / "one", base_folder=bases["llama"])
    check_weights_folder(tmp_path / "one", base_folder=bases["llama"])
    with pytest.raises(WeightsError, match=r"architectures = \['LlamaForCausalLM'\].*moe has \['MixtralForCausalLM'\]"):
        check_weights_folder(tmp_path / "one", base_folder=bases["moe"])
    with (tmp_path / "one" / MODEL_FOLDER / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(WeightsError, match=rf"tokenizer\.json is not .*{bases['llama']}/tokenizer\.json"):
        load_version(tmp_path / "one", base=learner.base)


def test_a_model_in_our_own_layout_is_refused_with_the_reason(llama: Path, tmp_path: Path) -> None:
    from train.model.config import MoEConfig
    from train.model.transformer import MoETransformer

    config = MoEConfig(
        vocab_size=384, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        moe_intermediate_size=64, intermediate_size=64, num_experts=4, num_shared_experts=1, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    MoETransformer(config).save_pretrained(tmp_path / "own", tokenizer_from=llama)
    with pytest.raises(WeightsError, match="our own layout"):
        start(CONFIG, tmp_path / "own")


def test_a_version_without_a_policy_has_no_state_of_methods(learner: OnlineLearningModule, tmp_path: Path) -> None:
    learn(learner, tmp_path / "one")
    assert not (tmp_path / "one" / STATE_NAME).exists()
