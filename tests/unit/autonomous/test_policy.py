"""The continual-learning policy: what goes together, what it holds, what it carries from version to version."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import safe_open

from autonomous.batching import BatchWait, decide_batch_due
from autonomous.config import LearningConfig
from autonomous.learner_state import DRIFT_NAME, METADATA, STATE_NAME, LearnerStateError
from autonomous.online import LearningRun
from autonomous.online_weights import build_learner
from autonomous.panel_weights import version_model
from autonomous.policy import DriftPolicy, PolicyConfig, decide_reaction
from autonomous.runs import training_summary
from tests.tiny_model import write_tiny_llama
from train.adapt.scoring import score_items
from train.continual.drift import DriftConfig
from train.continual.ewc import EWCConfig
from train.continual.items import LearningItem
from train.continual.lwf import LwFConfig
from train.continual.si import SIConfig

FIRST = [
    LearningItem(id=f"a{number}", prompt=prompt, answer=answer, episode_id=f"a{number}")
    for number, (prompt, answer) in enumerate(
        [("Which river?", "The Seine."), ("Which cape?", "The northern cape."), ("Which bird?", "The cuckoo.")]
    )
]
SECOND = [
    LearningItem(id=f"b{number}", prompt=prompt, answer=answer, episode_id=f"b{number}")
    for number, (prompt, answer) in enumerate(
        [("Which lamp?", "A green one."), ("Which pump?", "The Torvik pump."), ("Which port?", "Port 7733.")]
    )
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


class Line:
    """Versions learned one on top of the other, under one policy, with nothing else that holds."""

    def __init__(self, base: Path, folder: Path, *, target: str, policy: PolicyConfig, **changes: Any) -> None:
        config = {
            "target": target, "policy": policy, "max_steps": 12, "items_per_step": 3, "learning_rate": 1e-2,
            "continued_rate": 1.0, "weights_learning_rate": 2e-3, "kl_weight": 0, "dtype": "float32", "device": "cpu",
            "target_loss": 1e-9,
        }  # fmt: skip
        self.learner = build_learner(LearningConfig.model_validate(config | changes), base_folder=base)
        self.learner.start()
        self.folder = folder

    def learn(
        self,
        name: str,
        items: Sequence[LearningItem],
        *,
        parent: str | None = None,
        replay: Sequence[LearningItem] = (),
    ) -> LearningRun:
        return self.learner.learn(
            items,
            replay=replay,
            anchors=(),
            parent_adapter=None if parent is None else self.folder / parent,
            out_folder=self.folder / name,
            guard=lambda: None,
            on_step=lambda _: None,
        )

    def loss(self, name: str, items: Sequence[LearningItem]) -> float:
        with version_model(self.folder / name, base=self.learner.base) as model:
            losses = score_items(model, items, base=self.learner.base)
        return sum(losses) / len(losses)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["weights", "adapter"])
def test_each_method_forgets_less_of_the_first_batch_than_none_and_still_learns_the_second(
    target: str, base: Path, tmp_path: Path
) -> None:
    losses: dict[tuple[str, ...], float] = {}
    for methods in ((), ("ewc",), ("si",), ("lwf",)):
        policy = PolicyConfig(methods=methods, ewc_strength=200, si_strength=10)
        line = Line(base, tmp_path / "-".join(("line", *methods)), target=target, policy=policy)
        line.folder.mkdir()
        line.learn("one", FIRST)
        second = line.learn("two", SECOND, parent="one")
        losses[methods] = line.loss("two", FIRST)
        assert line.loss("two", SECOND) < 0.5 * line.loss("one", SECOND), methods
        assert (max(second.penalties) > 0) is bool(methods)
    assert max(losses["ewc",], losses["si",], losses["lwf",]) < 0.8 * losses[()]


def test_methods_combine_and_a_child_goes_on_from_its_parents_importance(base: Path, tmp_path: Path) -> None:
    line = Line(base, tmp_path, target="adapter", policy=PolicyConfig(methods=("ewc", "si", "lwf")))
    first = line.learn("one", FIRST)
    line.learn("two", SECOND, parent="one")
    assert first.penalties == (0.0,) * first.num_steps, "nothing was learned before the first batch"
    told = []
    for name in ("one", "two"):
        with safe_open(tmp_path / name / STATE_NAME, framework="pt") as file:
            told.append((json.loads(file.metadata()[METADATA]), {key: file.get_tensor(key) for key in file.keys()}))  # noqa: SIM118
    (before, one), (after, two) = told
    assert (before["num_batches"], after["num_batches"]) == (1, 2)
    assert one.keys() == two.keys()
    for method in ("ewc", "si"):
        names = [key for key in one if key.startswith(f"{method}/curvature/")]
        assert len(names) == 2 * 7 * 2
        assert all(bool((two[key] >= one[key]).all()) for key in names), "importance adds up"
        assert any(bool((two[key] > one[key]).any()) for key in names)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["weights", "adapter"])
def test_going_back_to_the_parent_goes_back_to_its_learners_state(target: str, base: Path, tmp_path: Path) -> None:
    """A rollback is no more than learning from the predecessor's folder again: the bad child left no trace."""
    line = Line(base, tmp_path, target=target, policy=PolicyConfig(methods=("ewc", "si")))
    line.learn("one", FIRST)
    good = line.learn("good", SECOND, parent="one")
    line.learn("bad", [LearningItem("x", "Which?", "Wrong, wrong.", "x")], parent="good")
    again = line.learn("again", SECOND, parent="one")
    assert (again.adapter_sha256, again.weights_sha256) == (good.adapter_sha256, good.weights_sha256)
    for name in (STATE_NAME, DRIFT_NAME):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "good" / name).read_bytes()


def test_a_state_of_other_weights_or_a_newer_program_is_refused_with_the_fix(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    line = Line(base, tmp_path, target="adapter", policy=PolicyConfig(methods=("si",)))
    line.learn("one", FIRST)
    state = load_file(tmp_path / "one" / STATE_NAME)
    save_file(state, tmp_path / "one" / STATE_NAME, metadata={METADATA: '{"format": 2}'})
    with pytest.raises(LearnerStateError, match="format 2, this program knows 1"):
        line.learn("two", SECOND, parent="one")
    save_file(
        {f"{name}.other": one for name, one in state.items()},
        tmp_path / "one" / STATE_NAME,
        metadata={METADATA: '{"format": 1}'},
    )
    with pytest.raises(LearnerStateError, match="none of the weights that are trained"):
        line.learn("two", SECOND, parent="one")
    (tmp_path / "one" / STATE_NAME).write_bytes(b"half")
    with pytest.raises(LearnerStateError, match="is damaged"):
        line.learn("two", SECOND, parent="one")
    assert not (tmp_path / "two").exists()


def test_a_parent_of_another_policy_has_nothing_to_hold(base: Path, tmp_path: Path) -> None:
    Line(base, tmp_path, target="adapter", policy=PolicyConfig()).learn("one", FIRST)
    run = Line(base, tmp_path, target="adapter", policy=PolicyConfig(methods=("ewc",))).learn(
        "two", SECOND, parent="one"
    )
    assert run.penalties == (0.0,) * run.num_steps
    assert (tmp_path / "two" / STATE_NAME).is_file()


# Drift.


def episodes(start: int, prompt: str, *answers: str) -> list[LearningItem]:
    return [
        LearningItem(f"{start + n}", f"{prompt} {n}?", f"{answers[n % len(answers)]} {n}.", f"e{start + n}")
        for n in range(8)
    ]


@pytest.mark.parametrize(("reaction", "share"), [("report", 0.2), ("replay", 0.5), ("rate", 0.2)])
def test_a_drift_shows_in_the_run_and_changes_how_the_batch_is_learned(
    reaction: str, share: float, base: Path, tmp_path: Path
) -> None:
    drift = DriftPolicy.model_validate({"window": 8, "reference": 8, "reaction": reaction, "replay_ratio": 0.5})
    line = Line(base, tmp_path, target="adapter", policy=PolicyConfig(drift=drift), max_steps=2, items_per_step=4)
    rivers = ("The river through it is the Seine", "The river is called the Seine", "It is the river")
    codes = ("71 72 73 74", "7 8 9 10 11 12", "99 98 97 96 95")
    assert line.learn("one", episodes(0, "Which river", *rivers)).drift is None
    same = line.learn("two", episodes(10, "Which river", *rivers), parent="one", replay=[*FIRST, *SECOND])
    other = line.learn("three", episodes(20, "Which code", *codes), parent="two", replay=[*FIRST, *SECOND])
    assert (same.drift, other.drift) == (None, "domain")
    assert training_summary(other)["drift"] == "domain"
    assert (same.replay_share, other.replay_share) == (pytest.approx(0.2), pytest.approx(share))
    assert json.loads((tmp_path / "three" / DRIFT_NAME).read_bytes())["num_seen"] == 24


def test_a_reaction_never_replays_less_nor_changes_a_batch_without_drift() -> None:
    policy = DriftPolicy(reaction="replay", replay_ratio=0.1)
    assert decide_reaction("task", policy, replay_ratio=0.2).replay_ratio == 0.2
    slow = DriftPolicy(reaction="rate", rate_share=0.25)
    assert decide_reaction("task", slow, replay_ratio=0.2).rate_share == 0.25
    assert decide_reaction(None, slow, replay_ratio=0.2).rate_share == 1.0


# The configuration.


def test_the_defaults_are_those_of_the_methods_themselves() -> None:
    policy = PolicyConfig()
    assert policy.methods == ()
    ewc, si, lwf = EWCConfig(), SIConfig(), LwFConfig()
    assert (policy.ewc_strength, policy.ewc_is_online, policy.ewc_gamma) == (ewc.strength, ewc.is_online, ewc.gamma)
    assert (policy.si_strength, policy.si_damping) == (si.strength, si.damping)
    assert (policy.lwf_temperature, policy.lwf_alpha) == (lwf.temperature, lwf.alpha)
    assert policy.drift.significance == DriftConfig().significance


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        ({"policy": {"methods": ["ewc", "ewc"]}}, "name each once"),
        ({"policy": {"methods": ["packnet"]}}, "'ewc', 'si' or 'lwf'"),
        ({"policy": {"ewc_strength": 0}}, "greater than 0"),
        ({"policy": {"lwf_alpha": 1}}, "less than 1"),
        ({"policy": {"ewc_fisher": "exact"}}, "'sampled' or 'empirical'"),
        ({"policy": {"ewc_gamma": 0.5}}, "set that to true, or ewc_gamma to 1"),
        ({"policy": {"methods": ["si"]}, "dtype": "bfloat16"}, "set dtype to 'auto' or 'float32'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_fix(settings: dict[str, Any], fix: str) -> None:
    with pytest.raises(ValidationError, match=fix):
        LearningConfig.model_validate(settings)


def test_the_configuration_is_read_without_torch() -> None:
    """The command line reads it at every call."""
    code = "import sys, autonomous.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


# When a batch is due.


@given(num=st.integers(-1, 40), waited=st.floats(-10, 100), least=st.integers(1, 16), longest=st.floats(0.1, 50))
def test_a_batch_is_due_exactly_by_its_size_or_its_wait(num: int, waited: float, least: int, longest: float) -> None:
    config = LearningConfig(min_batch_episodes=least, max_wait_s=longest)
    due = decide_batch_due(num, waited, config)
    assert (due == "size") is (num >= least)
    assert (due == "time") is (1 <= num < least and waited >= longest)
    on_demand = config.model_copy(update={"interval_s": 0.0})
    assert decide_batch_due(num, waited, on_demand) is None


def test_a_batch_is_told_once_for_the_same_episodes_by_its_size_or_its_wait() -> None:
    wait = BatchWait(LearningConfig(min_batch_episodes=10, max_wait_s=100))
    looks = [
        (0, 0),
        (3, 10),
        (3, 109),
        (3, 110),
        (3, 300),
        (13, 301),
        (13, 302),
        (0, 350),
        (1, 400),
        (1, 499),
        (1, 500),
    ]
    told = [wait.look(num, now=now, epoch=1) for num, now in looks]
    assert told == [None, None, None, "time", None, "size", None, None, None, None, "time"]


def test_a_reset_of_the_stop_starts_no_batch_of_what_waited_before_it() -> None:
    wait = BatchWait(LearningConfig(min_batch_episodes=10, max_wait_s=100))
    assert wait.look(9, now=0, epoch=1) is None
    assert [wait.look(50, now=now, epoch=3) for now in (50, 149, 1e6)] == [None] * 3
    assert wait.look(59, now=1e6, epoch=3) is None
    assert wait.look(60, now=1e6 + 1, epoch=3) == "size"
