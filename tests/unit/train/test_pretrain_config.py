"""PretrainingConfig: the specification's defaults, TOML with presets and changes, and sentences for what cannot be."""

from pathlib import Path
from typing import Any

import pytest

from cluster.cli_train import parse_changes
from tests.pretrain_runs import tiny_run, write_shards
from train.model.plan import ParallelPlan
from train.model.presets import preset
from train.model.transformer import MoETransformer
from train.pretrain.config import PretrainingConfig, PretrainingConfigError, load_pretraining_config
from train.pretrain.parallel import check_run, resolve_plan

MINIMAL = """
output = "run"
tokens = 1_000_000
global_batch_size = 8
accumulation = 2
micro_batch = 4

[model]
preset = "tiny"

[data]
sequence_length = 64

[[data.sources]]
location = "tokens"

[schedule]
warmup_steps = 10
"""


def _write(folder: Path, text: str = MINIMAL) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def _load(folder: Path, **overrides: Any) -> PretrainingConfig:
    return load_pretraining_config(_write(folder), overrides=overrides)


def test_defaults_are_those_of_the_specification() -> None:
    fields = PretrainingConfig.model_fields
    assert (fields["micro_batch"].default, fields["accumulation"].default, fields["global_batch_size"].default) == (
        1,
        32,
        4096,
    )
    optimizer = fields["optimizer"].default
    assert (optimizer.kind, optimizer.lr, optimizer.betas, optimizer.weight_decay) == ("adamw", 3e-4, (0.9, 0.95), 0.1)
    assert fields["schedule"].default.kind == "cosine"
    assert fields["schedule"].default.warmup_steps > 0
    assert fields["parallel"].default.engine == "deepspeed"
    assert fields["workers"].default.max_failures == 0


def test_paths_are_relative_to_the_file_and_a_preset_is_changed_by_its_other_fields(tmp_path: Path) -> None:
    config = _load(tmp_path, **{"model.num_experts": 4})
    assert config.output == tmp_path / "run"
    assert config.data.sources[0].location == str(tmp_path / "tokens")
    assert config.model == preset("tiny").replace(num_experts=4)
    assert config.total_steps == -(-1_000_000 // (8 * 64))
    assert PretrainingConfig.model_validate_json(config.model_dump_json()) == config


def test_paths_of_the_command_line_are_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    changes = parse_changes(["output=~/run", "data.tokenizer=words", "accumulation=auto"])
    config = _load(tmp_path, **changes)
    assert (config.output, config.data.tokenizer) == (tmp_path / "home" / "run", tmp_path / "here" / "words")
    assert config.accumulation == "auto"


def test_a_preset_may_be_a_model_folder_beside_the_file(tmp_path: Path) -> None:
    MoETransformer(preset("tiny")).save_pretrained(tmp_path / "model")
    config = load_pretraining_config(_write(tmp_path, MINIMAL.replace('"tiny"', '"model"')))
    assert config.model.hidden_size == preset("tiny").hidden_size


def test_every_number_of_workers_that_ray_may_choose_is_checked(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        **{"accumulation": "auto", "global_batch_size": 16, "workers.num_workers": 4, "workers.min_workers": 2},
    )
    with pytest.raises(PretrainingConfigError, match=r"with 3 of workers\.min_workers .* no multiple of dp 3"):
        check_run(config)


def test_a_tokenizer_that_did_not_make_the_shards_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "tokens")
    words = tmp_path / "words"
    words.mkdir()
    with pytest.raises(ValueError, match=r"words.* cannot be read"):
        check_run(tiny_run(tmp_path, data__tokenizer=words))
    (words / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    with pytest.raises(
        PretrainingConfigError, match=r"data\.tokenizer = .*words is another one \(SHA-256 .*\(abababababab"
    ):
        check_run(tiny_run(tmp_path, data__tokenizer=words))


def test_the_tokenizer_is_the_one_beside_the_shards_unless_named(tmp_path: Path) -> None:
    assert _load(tmp_path).tokenizer_folder is None
    (tmp_path / "tokenizer").mkdir()
    assert _load(tmp_path).tokenizer_folder == tmp_path / "tokenizer"
    assert _load(tmp_path, **{"data.tokenizer": "/elsewhere"}).tokenizer_folder == Path("/elsewhere")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer.lr": -1.0}, r"optimizer\.lr: Input should be greater than 0"),
        ({"optimizer.rate": 1.0}, r"optimizer\.rate: Extra inputs are not permitted"),
        ({"model.preset": "huge"}, "model = 'huge' is no preset and no folder"),
        ({"data.sequence_length": 10**6}, "sequence_length = 1000000 is beyond model.max_position_embeddings"),
        ({"schedule.warmup_steps": 10**6}, "warmup_steps = 1000000, .* do not fit into a run of"),
        ({"workers.min_workers": 3}, "min_workers = 3 is more than workers.num_workers = 1"),
        (
            {"parallel.tp": 2, "evaluation.prompts": ["a"]},
            "a model that is divided by tp, pp or cp writes no samples",
        ),
        ({"tokens.x": 1}, "tokens is no section"),
        ({"optimizer.kind": "muon"}, "use 'adamw', or the engine native"),
        ({"evaluation.temperature": 1e-4}, "temperature = 0.0001: use 0 for the most probable token"),
        ({"accumulation": 0}, "accumulation"),
    ],
)
def test_what_cannot_be_is_refused_with_the_field_and_the_fix(
    tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(PretrainingConfigError, match=message):
        _load(tmp_path, **overrides)


def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(PretrainingConfigError, match=r"missing\.toml cannot be read"):
        load_pretraining_config(tmp_path / "missing.toml")
    with pytest.raises(PretrainingConfigError, match=r"run\.toml is no valid TOML"):
        load_pretraining_config(_write(tmp_path, "output = "))


def test_changes_are_toml_values_or_text() -> None:
    found = parse_changes(["a.b=1e-3", "c=true", "d=text here", 'e=["x", "y"]'])
    assert found == {"a.b": 1e-3, "c": True, "d": "text here", "e": ["x", "y"]}
    with pytest.raises(ValueError, match="write it as FIELD=VALUE"):
        parse_changes(["a"])


def test_data_parallel_ranks_and_accumulation_follow_from_the_workers(tmp_path: Path) -> None:
    config = _load(tmp_path, **{"parallel.engine": "native", "accumulation": 1, "global_batch_size": 8})
    assert resolve_plan(config, world_size=2) == ParallelPlan(dp=2, micro_batch=4, num_micro_batches=1)
    elastic = config.model_copy(update={"accumulation": "auto", "global_batch_size": 24})
    plans = [resolve_plan(elastic, world_size=world) for world in (1, 2, 3)]
    assert [(plan.dp, plan.num_micro_batches) for plan in plans] == [(1, 6), (2, 3), (3, 2)]


@pytest.mark.parametrize(
    ("overrides", "world", "message"),
    [
        ({"parallel.tp": 2}, 3, "dp 1 x tp 2 x pp 1 x cp 1 = 2, but there are 3 workers"),
        ({}, 2, "global_batch_size = 8, but dp 2 x micro_batch 4 x accumulation 2 = 16"),
        (
            {"accumulation": "auto", "parallel.engine": "native"},
            3,
            "global_batch_size = 8 is no multiple of dp 3 x micro_batch 4",
        ),
        ({"parallel.ep": 3}, 1, "ep = 3 does not divide dp x cp x tp = 1"),
        ({"parallel.tp": 64, "parallel.engine": "native"}, 64, "tp = 64 leaves the node of 8 GPUs"),
        (
            {"parallel.pp": 2, "parallel.zero_stage": 3},
            2,
            "deepspeed refuses it: zero_stage = 3 with pp = 2: ZeRO-2 and ZeRO-3 are incompatible with pipeline parallelism",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, overrides: dict[str, Any], world: int, message: str
) -> None:
    fields = {name: None if value is None else value for name, value in overrides.items()}
    config = _load(tmp_path, **fields)
    with pytest.raises(PretrainingConfigError, match=message):
        resolve_plan(config, world_size=world)


def test_a_configuration_without_clipping_goes_through_json(tmp_path: Path) -> None:
    config = _load(tmp_path, **{"optimizer.clip_norm": float("inf")})
    assert PretrainingConfig.model_validate_json(config.model_dump_json()) == config


def test_fp8_needs_a_multiple_of_16_positions(tmp_path: Path) -> None:
    config = _load(
        tmp_path, **{"precision.kind": "fp8", "data.sequence_length": 34, "parallel.cp": 2, "workers.num_workers": 2}
    )
    with pytest.raises(PretrainingConfigError, match=r"micro_batch 4 x data\.sequence_length 34 / cp 2 = 68"):
        resolve_plan(config, world_size=2)


def test_fp16_that_deepspeed_refuses_on_this_cpu_is_refused_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "tokens")
    config = tiny_run(tmp_path, precision={"kind": "fp16"}, parallel__engine="deepspeed", workers__device="cpu")
    for has_float16 in (True, False):
        monkeypatch.setattr("train.pretrain.parallel.has_float16", lambda has=has_float16: has)
        if has_float16:
            check_run(config)
        else:
            with pytest.raises(PretrainingConfigError, match=r"fp16.*take parallel\.engine = 'native'"):
                check_run(config)


@pytest.mark.slow
def test_the_planner_makes_the_plan_for_a_named_gpu(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        **{"parallel.planned_for": "h100-80gb", "parallel.engine": "native", "model.preset": "mixtral-8x7b",
           "data.sequence_length": 4096, "global_batch_size": 512, "tokens": 10**10},
    )  # fmt: skip
    plan = resolve_plan(config, world_size=64)
    assert plan.world_size == 64
    assert plan.sequences == 512
    assert plan.tp > 1
    uncut = config.model.replace(
        qk_norm="projection"
    )  # a norm over all heads, which tensor parallel ranks cannot divide
    undivided = resolve_plan(config.model_copy(update={"model": uncut}), world_size=64)
    assert undivided.tp == undivided.cp == 1
