"""The configuration file: what a person edits, checked with sentences."""

from pathlib import Path

import pytest

from cluster.config import DEFAULT_CONFIG, REPOSITORY, ConfigError, load_config


def write(folder: Path, text: str) -> Path:
    path = folder / "system.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert load_config(path).home.is_absolute()


def test_laptop_asks_for_nothing_that_a_machine_without_a_gpu_lacks() -> None:
    config = load_config(DEFAULT_CONFIG)
    assert config.engine.num_gpus_per_replica == 0
    assert config.http.host == "127.0.0.1"
    assert config.ray.dashboard_host == "127.0.0.1"


def test_an_override_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'home = "/a"\n[http]\nport = 1\n')
    assert load_config(path, overrides={"http.port": 2, "agent.learning.max_steps": 3}).http.port == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('home = "relative"', ("home", "absolute")),
        ("hom = 1", ("hom", "not a known setting")),
        ("[engine]\nkind = 'fast'", ("engine.kind", "fast")),
        ("[http]\nport = 99999", ("http.port", "99999")),
        ("[agent.learning]\nlora_r = 16", ("lora_r = 16", "engine.max_lora_rank")),
        ("[agent.schedules.jobs.learn]\nschedule = { kind = 'daily' }", ("interval_s = 3600", "set interval_s = 0")),
        ("[agent.schedules.jobs.drill]\nschedule = { kind = 'daily', weekday = 'sunday' }", ("weekday = sunday",)),
        ("home = [", ("TOML",)),
    ],
)
def test_a_bad_setting_is_named_with_its_value_and_the_fix(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, text))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_missing_file_names_the_default(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"laptop\.toml"):
        load_config(tmp_path / "none.toml")
