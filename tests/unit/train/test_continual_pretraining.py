"""ContinualPretraining: the size of a shift, the share of old data, and what a file may say."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from train.continual.pretraining import (
    STRONG,
    WEAK,
    ContinualPretraining,
    load_continual_config,
    replay_share_of,
    token_shift,
)

TOML = """
run = "old"
output = "new"
tokens = 1000
[[sources]]
location = "tokens"
name = "fresh"
"""


def test_the_shift_is_scipy_s_jensen_shannon_divergence_in_bits() -> None:
    rng = np.random.default_rng(0)
    old, new = rng.integers(0, 50, 200), rng.integers(0, 9, 200)
    assert token_shift(old, new) == pytest.approx(jensenshannon(old, new, base=2) ** 2)
    assert token_shift(old, 3 * old) == pytest.approx(0, abs=1e-12)
    assert token_shift(np.array([5, 0]), np.array([0, 2])) == pytest.approx(1)


def test_the_share_of_old_data_grows_with_the_shift_between_two_ends() -> None:
    assert replay_share_of(0.0) == WEAK[1]
    assert replay_share_of(1.0) == STRONG[1]
    middle = (WEAK[0] + STRONG[0]) / 2
    assert replay_share_of(middle) == pytest.approx((WEAK[1] + STRONG[1]) / 2)


def test_paths_are_from_the_file_s_folder_and_changes_are_added(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(TOML + "[changes]\nmicro_batch = 2\n")
    config = load_continual_config(tmp_path / "x.toml", overrides={"optimizer.lr": 1e-4})
    assert (config.run, config.output) == (tmp_path / "old", tmp_path / "new")
    assert config.sources[0].location == str(tmp_path / "tokens")
    assert config.changes == {"micro_batch": 2, "optimizer.lr": 1e-4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TOML.replace('"new"', '"old"'), "is the run that goes on: choose another folder"),
        (TOML.replace("tokens = 1000", "tokens = 0"), "x.toml: tokens: Input should be greater than 0"),
        ("replay_share = 1.0\n" + TOML, "replay_share"),
        ("replay = 0.2\n" + TOML, "replay: Extra inputs are not permitted"),
        ("=", "no valid TOML"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_continual_config(tmp_path / "x.toml")


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(TOML)
    with pytest.raises(ValueError, match=r"old holds no config\.json"):
        ContinualPretraining(load_continual_config(tmp_path / "x.toml"))
