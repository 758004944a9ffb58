"""ContinualFineTuning: an adapter per task on a base that stays, O-LoRA, folders that others load."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from tests.continual import TEXTS, adamw, writer, written_batch
from train.adapt.base import weights_sha256
from train.adapt.lora import LoRAConfig
from train.continual.finetune import ContinualFineTuning, FineTuningConfig, overlap
from train.continual.method import Task
from train.continual.mixing import BatchReplay
from train.continual.rows import Batch, evaluating
from train.continual.trainer import ContinualTrainer

FIRST, SECOND, THIRD = TEXTS
SUMMED = FineTuningConfig(composition="summed", orthogonality=2.0)
PROBE = written_batch(seed=9)["input_ids"]


def build(config: FineTuningConfig | None = None, *, seed: int = 0) -> tuple[ContinualFineTuning, ContinualTrainer]:
    """A method on a fresh base, and the trainer that trains it."""
    method = ContinualFineTuning(writer(seed=seed), config)
    return method, ContinualTrainer(method.model, "causal", methods=[method, BatchReplay()], optimizer=adamw)


def source(task: Task, step: int) -> Batch:
    return written_batch(seed=100 * task.index + step, begin=10 * task.index)


def learn(trainer: ContinualTrainer, task: Task, *, steps: int = 8) -> None:
    trainer.learn(
        task,
        lambda step: source(task, step),
        num_steps=steps,
        samples=lambda: [source(task, step) for step in range(2)],
    )


def outputs(method: ContinualFineTuning, task: int | None) -> Tensor:
    with method.serving(task), evaluating(method.model), torch.no_grad():
        logits: Tensor = method.model(PROBE).logits
    return logits


def loss_of(method: ContinualFineTuning, task: Task) -> float:
    batch = source(task, 77)
    with method.serving(task.index), torch.no_grad():
        logits = method.model(batch["input_ids"]).logits.flatten(0, 1)
    return float(nn.functional.cross_entropy(logits, batch["labels"].flatten()))


def test_routed_adapters_learn_and_earlier_tasks_stay_bit_for_bit_as_does_the_base() -> None:
    untouched = writer()
    method, trainer = build()
    before = loss_of(method, FIRST)
    learn(trainer, FIRST, steps=30)
    assert loss_of(method, FIRST) < before - 0.4
    first = outputs(method, 0)
    for task in (SECOND, THIRD):
        learn(trainer, task)
    assert torch.equal(outputs(method, 0), first)
    assert torch.equal(outputs(method, None), untouched(PROBE).logits)
    assert weights_sha256(method.model.unload()) == weights_sha256(untouched)


def test_an_adapter_begins_as_a_copy_of_the_last_one_or_fresh() -> None:
    for start in ("previous", "fresh"):
        method, trainer = build(FineTuningConfig(starts_from=start))
        learn(trainer, FIRST)
        first = outputs(method, 0)
        method.grow(num_tasks=2)
        method.before_task(SECOND)
        expected = first if start == "previous" else outputs(method, None)
        assert torch.equal(outputs(method, 1), expected)
        assert not torch.equal(outputs(method, None), first)


def test_an_adapter_has_the_rank_and_scale_of_the_specification() -> None:
    config = LoRAConfig()
    assert (config.r, config.alpha) == (8, 32)
    method, _ = build()
    module: Any = method.model.base_model.model.model.layers[0].self_attn.q_proj
    assert module.lora_A["task-0"].weight.shape == (8, 32)
    assert module.scaling["task-0"] == 4
    assert module.lora_A["task-0"].weight.dtype == torch.float32


def test_the_overlap_is_the_squared_norm_of_products_of_a_s() -> None:
    method, trainer = build(SUMMED)
    for task in (FIRST, SECOND, THIRD):
        learn(trainer, task, steps=1)
    expected = 0.0
    for module in method.model.modules():
        if isinstance(downs := getattr(module, "lora_A", None), nn.ModuleDict):
            for earlier in range(2):
                product = downs["task-2"].weight @ downs[f"task-{earlier}"].weight.T
                expected += float(torch.linalg.matrix_norm(product.detach()) ** 2)
    assert float(overlap(method.model, task=2).detach()) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="no adapter 'task-5'"):
        overlap(method.model, task=5)


@pytest.mark.slow
def test_o_lora_makes_adapters_orthogonal_and_leaves_earlier_ones_as_they_were() -> None:
    overlaps = {}
    for weight in (0.0, 2.0):
        method, trainer = build(FineTuningConfig(composition="summed", orthogonality=weight))
        learn(trainer, FIRST)
        kept = {name: value.clone() for name, value in method.model.state_dict().items() if "task-0" in name}
        learn(trainer, SECOND, steps=40)
        state = method.model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in kept.items())
        overlaps[weight] = float(overlap(method.model, task=1).detach())
    assert overlaps[2.0] < 0.05 * overlaps[0.0]


def test_a_run_goes_on_exactly_from_the_midst_of_a_task_and_from_between_two() -> None:
    whole, trainer = build(SUMMED)
    for task in (FIRST, SECOND, THIRD):
        learn(trainer, task)
    _, first = build(SUMMED)
    learn(first, FIRST)
    state = first.state_dict()
    _, second = build(SUMMED)
    second.load_state_dict(state)

    class Cut(Exception):
        pass

    def cut(step: int, _: object) -> None:
        if step == 3:
            raise Cut

    with pytest.raises(Cut):
        second.learn(
            SECOND, lambda step: source(SECOND, step), num_steps=8, samples=lambda: [source(SECOND, 0)], on_step=cut
        )
    method, third = build(SUMMED)
    third.load_state_dict(second.state_dict())
    for task in (SECOND, THIRD):
        learn(third, task)
    assert torch.equal(outputs(method, 2), outputs(whole, 2))


def test_serving_the_base_in_the_midst_of_a_task_leaves_earlier_adapters_frozen() -> None:
    method, trainer = build(SUMMED)
    learn(trainer, FIRST)
    learn(trainer, SECOND)
    with method.serving(None):
        pass
    trained = {name.split(".")[-2] for name, one in method.model.named_parameters() if one.requires_grad}
    assert trained == {"task-1"}


def test_saved_adapters_serve_in_peft_as_they_did(tmp_path: Path) -> None:
    for config in (FineTuningConfig(), SUMMED):
        method, trainer = build(config)
        for task in (FIRST, SECOND):
            learn(trainer, task)
        folders = method.save(tmp_path / config.composition, base_name="tiny")
        assert [folder.name for folder in folders] == (
            ["summed"] if config.composition == "summed" else ["task-0", "task-1"]
        )
        for task, folder in enumerate(folders):
            loaded = PeftModel.from_pretrained(writer(), str(folder)).eval()
            with torch.no_grad():
                torch.testing.assert_close(loaded(PROBE).logits, outputs(method, task), rtol=1e-5, atol=1e-5)
        learn(trainer, THIRD)  # saving left the method as it was


def test_the_router_tells_a_task_from_an_input_and_is_saved_with_the_method() -> None:
    method, trainer = build()
    inputs = {task.index: torch.eye(8)[task.index] + 0.05 * torch.randn(20, 8) for task in (FIRST, SECOND)}
    for task in (FIRST, SECOND):
        learn(trainer, task, steps=1)
        method.teach_router(task.index, inputs[task.index])
    other, second = build()
    second.load_state_dict(trainer.state_dict())
    for one in (method, other):
        assert one.route(torch.eye(8)[[1, 0, 5]]) == [1, 0, None]


def test_bad_input_is_refused() -> None:
    method, _ = build()
    with pytest.raises(ValueError, match="task 3 was not learned"), method.serving(3):
        pass
    with pytest.raises(ValueError, match=r"ContinualFineTuning\.model: train that one"):
        ContinualTrainer(writer(), "causal", methods=[method], optimizer=adamw)
