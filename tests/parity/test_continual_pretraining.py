"""A run that goes on from another one's model: the same weights under every division, old and new data in their shares."""

from pathlib import Path

import pytest
import torch

from tests.pretrain_runs import STEPS, read_log, run_rank, tiny_run, write_shards
from tests.ranks import run_ranks
from train.continual.pretraining import ContinualPretraining, ContinualPretrainingConfig, continued_run
from train.data.token_sources import SourceSpec
from train.model.checkpoint_hf import load_model
from train.model.stored_weights import WeightProblem
from train.pretrain.alone import run_alone
from train.pretrain.checkpoint_files import CheckpointError
from train.pretrain.checkpoint_store import CHECKPOINTS_NAME, CheckpointStore
from train.pretrain.config import PretrainingConfig
from train.pretrain.parallel import check_run
from train.pretrain.schedule import ScheduleConfig


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> PretrainingConfig:
    """A finished run on one source of two."""
    folder = tmp_path_factory.mktemp("previous")
    write_shards(folder / "tokens")
    write_shards(folder / "fresh", seed=1)
    config = tiny_run(folder)
    run_alone(config)
    return config


def continuation(previous: PretrainingConfig, output: Path, **changes: object) -> ContinualPretrainingConfig:
    fields = {
        "run": previous.output, "output": output, "tokens": previous.tokens, "sample_sequences": 64,
        "sources": [
            {"location": str(previous.output.parent / "fresh"), "name": "fresh", "held_out_every": 4, "weight": 3.0}
        ],
        "schedule": {"kind": "infinite", "warmup_steps": 0, "decay_steps": 3},
    }  # fmt: skip
    return ContinualPretrainingConfig.model_validate(fields | changes)


def test_a_continued_run_begins_with_the_model_and_reads_old_and_new(
    previous: PretrainingConfig, tmp_path: Path
) -> None:
    config, told = continued_run(continuation(previous, tmp_path / "run"))
    weights = {source.name: source.weight for source in config.data.sources}
    assert weights == {"fresh": pytest.approx(0.95), "walks": pytest.approx(0.05)}  # both are of one kind
    assert "5%" in told
    assert run_alone(config).step == STEPS
    log, before = read_log(config), read_log(previous)
    assert set(log.evaluations[-1].by_source) == {"fresh", "walks"}
    first = log.column("loss")[0]
    assert first < before.column("loss")[:4].mean() - 0.1
    assert first == pytest.approx(before.column("loss")[-3:].mean(), abs=0.15)
    assert log.column("lr")[0] == pytest.approx(previous.optimizer.lr * ScheduleConfig().constant_lr_ratio)


def test_without_old_data_the_old_ones_are_evaluated_and_the_shift_is_not_measured(
    previous: PretrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ContinualPretraining, "shift", None)  # what is called fails
    config, told = continued_run(
        continuation(previous, tmp_path / "run", replay_share=0.0, tokens=2 * 8 * 16, schedule={"warmup_steps": 0})
    )
    assert {source.name: source.weight for source in config.data.sources} == {"fresh": 1.0, "walks": 0.0}
    assert "bits" not in told
    run_alone(config)
    assert set(read_log(config).evaluations[-1].by_source) == {"fresh", "walks"}


def test_each_checkpoint_has_its_own_first_weights_and_a_begun_run_keeps_its_own(
    previous: PretrainingConfig, tmp_path: Path
) -> None:
    steps = [info.step for info in CheckpointStore(previous.output / CHECKPOINTS_NAME).committed()]
    earlier, later = (
        continuation(previous, tmp_path / "run", step=step, tokens=2 * 8 * 16, schedule={"warmup_steps": 0})
        for step in (steps[0], steps[-1])
    )
    configs = [continued_run(one)[0] for one in (earlier, later)]
    first, second = (load_model(config.start_from or Path()).state_dict() for config in configs)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    run_alone(configs[1])
    assert continued_run(later)[0] == configs[1]
    with pytest.raises(
        ValueError, match=r"holds a run that began from .*, and this one begins from .*: give another folder"
    ):
        continued_run(earlier)


@pytest.mark.parametrize(
    "division",
    [
        {"workers__num_workers": 2, "parallel__ep": 2, "parallel__zero_stage": 3},
        {"workers__num_workers": 2, "parallel__tp": 2},
        {"workers__num_workers": 2, "parallel__pp": 2},
        {"workers__num_workers": 2, "parallel__ep": 2, "parallel__zero_stage": 2, "parallel__engine": "deepspeed"},
    ],
)
def test_every_division_begins_with_the_same_weights(
    previous: PretrainingConfig, tmp_path: Path, division: dict[str, object]
) -> None:
    one, _ = continued_run(continuation(previous, tmp_path / "one", tokens=3 * 8 * 16, schedule={"warmup_steps": 0}))
    run_alone(one)
    changes = {name.replace("__", "."): value for name, value in division.items()}
    two, _ = continued_run(
        continuation(
            previous, tmp_path / "two", tokens=3 * 8 * 16, schedule={"warmup_steps": 0},
            changes=changes | {"evaluation.prompts": []},
        )
    )  # fmt: skip
    run_ranks(run_rank, 2, two, needs_deepspeed="deepspeed" in division.values())
    assert read_log(two).column("loss") == pytest.approx(read_log(one).column("loss"), rel=1e-5)


def test_the_first_weights_are_exactly_those_of_the_checkpoint(previous: PretrainingConfig, tmp_path: Path) -> None:
    config, _ = continued_run(continuation(previous, tmp_path / "run"))
    assert config.start_from is not None
    start = load_model(config.start_from).state_dict()
    exported = load_model(previous.output / f"model-{STEPS:08}").state_dict()
    for name, weight in start.items():
        if weight.is_floating_point():
            torch.testing.assert_close(weight.to(exported[name].dtype), exported[name], rtol=0, atol=0)


def test_what_does_not_fit_is_refused_before_anything_is_written(previous: PretrainingConfig, tmp_path: Path) -> None:
    taken = continuation(previous, tmp_path / "run", sources=[SourceSpec(location="x", name="walks")])
    with pytest.raises(ValueError, match="has read a source named 'walks' already"):
        ContinualPretraining(taken)
    config, _ = continued_run(continuation(previous, tmp_path / "other"))
    wider = config.model.replace(moe_intermediate_size=2 * config.model.moe_intermediate_size)
    with pytest.raises(WeightProblem, match=r"moe_intermediate_size = \d+ here, and \d+ in"):
        check_run(config.model_copy(update={"model": wider}))
    router = config.model.router.model_copy(update={"scaling_factor": 2.5})
    with pytest.raises(WeightProblem, match=r"router\.scaling_factor = 2\.5 here, and 1\.0 in"):
        check_run(config.model_copy(update={"model": config.model.replace(router=router)}))
    balanced = config.model.router.model_copy(update={"aux_loss_coefficient": 0.5})
    check_run(config.model_copy(update={"model": config.model.replace(router=balanced)}))
    with pytest.raises(CheckpointError, match="holds no checkpoint 7"):
        ContinualPretraining(continuation(previous, tmp_path / "run", step=7))
    with pytest.raises(ValueError, match=r"^the continuation of .*: micro_batch: Input should be greater than 0$"):
        continued_run(continuation(previous, tmp_path / "run", changes={"micro_batch": 0}))
    assert not (tmp_path / "run").exists()
