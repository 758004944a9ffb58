"""`autonomous plan` as a person uses it."""

import json

import pytest

from cluster.cli import run
from cluster.cli_plan import parse_count
from train.model.config import MoEConfig
from train.model.transformer import MoETransformer

Captured = pytest.CaptureFixture[str]


@pytest.mark.slow
def test_a_plan_of_a_trillion_parameters_is_printed_within_the_terminal(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "120")
    assert run(["plan", "--model", "1t", "--gpus", "1024", "--context", "131072", "--top", "3"]) == 0
    shown = capsys.readouterr().out
    assert "1,010.2B parameters, 33.6B active per token (64 layers; 128 experts)" in shown
    for word in ("ZeRO", "bubble", "MFU", "K tok/s", "days", "M USD", "GB sent by a GPU per step"):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_json_holds_every_number_of_the_table(capsys: Captured):
    arguments = [
        "plan",
        "--model",
        "mixtral-8x7b",
        "--gpus",
        "64",
        "--context",
        "4096",
        "--tokens",
        "2T",
        "--price",
        "2",
    ]
    assert run([*arguments, "--json", "--top", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total_params"] == 46_702_792_704
    first, second = found["plans"]
    assert first["tokens_per_s"] >= second["tokens_per_s"]
    assert first["days"] == pytest.approx(2e12 / first["tokens_per_s"] / 86_400)
    assert first["cost_usd"] == pytest.approx(first["days"] * 24 * 64 * 2)
    parts = {name: size for name, size in first["memory_bytes"].items() if name != "total"}
    assert sum(parts.values()) == pytest.approx(first["memory_bytes"]["total"])


def test_a_model_folder_is_planned_for(tmp_path, capsys: Captured):
    config = MoEConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_experts=4,
        moe_intermediate_size=32, max_position_embeddings=2048, qk_norm="head",
    )  # fmt: skip
    model = MoETransformer(config)
    folder = model.save_pretrained(tmp_path / "model")
    assert run(["plan", "--model", str(folder), "--gpus", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total_params"] == sum(p.numel() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "500b", "--gpus", "8"], "gpus = 8 x h100-80gb cannot hold 500b"),
        (["--model", "2t", "--gpus", "8"], "model = '2t' is no preset and no folder; there are tiny"),
        (["--model", "tiny", "--gpus", "8", "--tokens", "many"], "--tokens = 'many' is no positive number"),
        (["--model", "tiny", "--gpus", "8", "--gpu", "tpu"], "gpu = 'tpu' is unknown; there are a100-80gb"),
        (
            ["--model", "tiny", "--gpus", "8", "--context", "4096"],
            "context = 4096 is beyond max_position_embeddings = 2048",
        ),
    ],
)
def test_what_cannot_be_planned_is_said_with_the_fix(arguments: list[str], words: str, capsys: Captured):
    assert run(["plan", *arguments]) == 1
    assert words in capsys.readouterr().err


def test_with_json_a_plan_that_does_not_fit_is_one_object(capsys: Captured):
    assert run(["plan", "--model", "500b", "--gpus", "8", "--json"]) == 1
    assert "cannot hold 500b" in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.parametrize(("text", "value"), [("15T", 15e12), ("2.5b", 2.5e9), ("16777216", 2**24), ("3k", 3000)])
def test_counts_are_read_with_their_unit(text: str, value: float):
    assert parse_count(text, option="--tokens") == value
