"""The rollback drill on real files: what it proves, what it finds broken, and that nothing but its audit row changes."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autonomous.config import GateConfig
from autonomous.safety.latch import Latch, LearningStopped
from autonomous.versions.bundle import version_id_of, write_bundle
from autonomous.versions.drill import ACTION, RollbackDrill, copy_database
from autonomous.versions.gates import Verdict
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.report import EvaluationReport, ProbeScores
from autonomous.versions.states import State
from tests.tiny_model import write_tiny_llama
from tests.unit.autonomous.ledger_life import PASSED, make_bundle, make_genesis, quick_folder
from train.adapt.lora import adapter_sha256
from train.adapt.reference import MODEL_FOLDER, AdapterRef
from train.adapt.weights import hash_weights

SCORES = [-1.0, -2.0, -0.5]
PROBE = ProbeScores(text="The lamp of Cape Dorn is red.", candidate_logprobs=SCORES, base_logprobs=[-3.0, -4.0, -2.0])


class Engine:
    """EnginePort: two replicas that read the adapter's folder and give the scores of a test."""

    def __init__(self) -> None:
        self.scores = SCORES
        self.error: Exception | None = None
        self.asked: list[tuple[str, str]] = []

    def prepare(self, adapter: AdapterRef, probe: str) -> list[list[float]]:
        self.asked.append((adapter.name, probe))
        if self.error is not None:
            raise self.error
        files = {"adapter": "adapter_model.safetensors", "weights": f"{MODEL_FOLDER}/model.safetensors"}
        assert (Path(adapter.folder) / files[adapter.kind]).is_file()
        return [self.scores, SCORES]

    def drop(self, adapter: AdapterRef) -> None:
        raise AssertionError("a drill drops nothing")


class Home:
    """A ledger with versions whose files are there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "ledger.sqlite"
        self.ledger = VersionLedger(self.path)
        bundle = make_bundle(None, mark="base")
        base = folder / version_id_of(bundle)
        base.mkdir()
        write_bundle(base, bundle)
        make_genesis(self.ledger, base)
        self.engine = Engine()
        self.drill = RollbackDrill(self.ledger, path=self.path, engine=self.engine, gates=GateConfig())

    def promote(self, mark: str, *, kind: str = "adapter") -> str:
        """One more version in production, with an adapter or weights on disk and a report."""
        parent = self.ledger.pointers().v2
        making = self.folder / mark
        making.mkdir()
        if kind == "weights":
            write_tiny_llama(making / MODEL_FOLDER)
            weights = {"adapter_sha256": None, "weights_sha256": hash_weights(making)}
        else:
            (making / "adapter_model.safetensors").write_bytes(mark.encode())
            (making / "adapter_config.json").write_text(json.dumps({"mark": mark}))
            weights = {"adapter_sha256": adapter_sha256(making)}
        bundle = make_bundle(parent, mark=mark, episodes=(mark,)).model_copy(update=weights)
        name = write_bundle(making, bundle)
        run = self.ledger.start_run(parent=parent, config={})
        self.ledger.transition(run, expected=State.DRAFT, to=State.TRAINING, by="agent", reason="batch")
        self.ledger.fix_bundle(
            run, version_id=name, folder=making, manifest=bundle.model_dump(mode="json"), episode_ids=[mark],
            stream_offset=1, by="agent",
        )  # fmt: skip
        at = State.CANDIDATE
        for state in (State.EVALUATING, State.GATED, State.SHADOW):
            if state is State.GATED:
                report = EvaluationReport(probe=PROBE).to_dict()
                self.ledger.bind_report(name, report=report, gates=PASSED, by="agent")
            self.ledger.transition(name, expected=at, to=state, by="agent", reason="next")
            at = state
        self.ledger.promote(name, by="agent", reason="all gates passed")
        return name

    def overwrite(self, name: str, file: str) -> None:
        path = self.ledger.get(name).folder / file
        path.chmod(0o644)
        path.write_bytes(b"altered")


@pytest.fixture
def home() -> Iterator["Home"]:
    with quick_folder() as folder:
        yield Home(folder)


def test_a_good_rollback_is_proven_and_nothing_changes_but_the_audit_row(home: Home) -> None:
    first, second = home.promote("one"), home.promote("two")
    records, pointers, rows = home.ledger.list(), home.ledger.pointers(), home.ledger.audit(1000)
    files = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in home.folder.glob("*/*")}
    report = home.drill.run()
    assert (report.verdict, report.serving, report.predecessor) == (Verdict.PASS, second, first), report.reason
    assert [check.name for check in report.checks] == ["ledger", "bundle", "engine"]
    assert home.engine.asked == [(first, PROBE["text"])]
    assert (home.ledger.list(), home.ledger.pointers()) == (records, pointers)
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in home.folder.glob("*/*")} == files
    (row, *before) = home.ledger.audit(1000)
    assert before == rows
    assert (row.action, row.subject, row.seq) == (ACTION, second, report.audit_seq)
    assert row.after == {"verdict": "pass", "reason": report.reason, "predecessor": first}
    assert home.ledger.verify_audit().ok
    assert home.ledger.rollback(by="ann", reason="the real one") == (second, first)  # it told the truth


def test_a_predecessor_of_full_weights_is_loaded_as_such_and_not_taken_for_the_original(home: Home) -> None:
    first = home.promote("one", kind="weights")
    home.promote("two", kind="weights")
    report = home.drill.run()
    assert report.verdict is Verdict.PASS, report.reason
    assert home.engine.asked == [(first, PROBE["text"])]
    assert f"every file of {first}" in report.reason
    home.overwrite(first, f"{MODEL_FOLDER}/model.safetensors")
    assert home.drill.run().verdict is Verdict.FAIL


def test_the_frozen_original_is_a_predecessor_that_needs_no_adapter(home: Home) -> None:
    base = home.ledger.pointers().v2
    home.promote("one")
    report = home.drill.run()
    assert (report.verdict, report.predecessor) == (Verdict.PASS, base)
    assert home.engine.asked == []


def test_without_a_predecessor_nothing_is_proven_and_it_says_so(home: Home) -> None:
    report = home.drill.run()
    assert (report.verdict, report.predecessor) == (Verdict.INCONCLUSIVE, None)
    assert "no version to roll back from" in report.reason
    assert home.ledger.audit(1)[0].action == ACTION


def alter_weights(home: Home, name: str) -> None:
    home.overwrite(name, "adapter_model.safetensors")


def lose_a_file(home: Home, name: str) -> None:
    (home.ledger.get(name).folder / "adapter_config.json").unlink()


def refuse(home: Home, _: str) -> None:
    home.engine.error = ValueError("its rank is too large")


def score_like_the_base(home: Home, _: str) -> None:
    home.engine.scores = PROBE["base_logprobs"]


def be_away(home: Home, _: str) -> None:
    home.engine.error = RuntimeError("the replica restarts")


def score_nothing(home: Home, _: str) -> None:
    home.engine.scores = []


@pytest.mark.parametrize(
    ("breaks", "verdict", "told"),
    [
        (alter_weights, "fail", "bundle: file .* was altered"),
        (lose_a_file, "fail", "bundle: file .* was altered: sha256 is none"),
        (refuse, "fail", "engine: the engine does not load .*: its rank is too large"),
        (score_like_the_base, "fail", "engine: 2 replicas: replica 0 does not compute the adapter"),
        (be_away, "inconclusive", "engine: the engine could not be asked: RuntimeError: the replica restarts"),
        (score_nothing, "inconclusive", "engine: 2 replicas: replica 0 scored 0 tokens"),
    ],
)
def test_what_would_break_a_rollback_is_found(
    home: Home, breaks: Callable[[Home, str], None], verdict: str, told: str
) -> None:
    first = home.promote("one")
    home.promote("two")
    breaks(home, first)
    report = home.drill.run()
    assert report.verdict == verdict
    assert re.search(told, report.reason), report.reason
    assert home.ledger.frozen() == ""  # a finding, no freeze


def test_a_predecessor_that_learned_what_is_held_back_is_skipped_as_a_real_rollback_would(home: Home) -> None:
    base = home.ledger.pointers().v2
    first = home.promote("one")
    home.promote("two")
    home.ledger.rollback(by="ann", reason="bad")
    home.ledger.rollback(by="ann", reason="bad too")
    assert home.ledger.get(first).state is State.QUARANTINED
    report = home.drill.run()
    assert (report.serving, report.verdict) == (base, Verdict.INCONCLUSIVE)


def test_a_stop_ends_a_drill_before_the_engine_is_asked(home: Home, tmp_path: Path) -> None:
    home.promote("one")
    home.promote("two")
    latch = Latch.create(tmp_path / "latch")
    permit = latch.permit("drill", within="learner")
    latch.stop(reason="drill", by="ann")
    with pytest.raises(LearningStopped):
        home.drill.run(guard=permit.check)
    assert home.engine.asked == []
    assert home.ledger.audit(1)[0].action != ACTION


def test_a_copy_holds_what_is_committed_also_when_it_still_lies_in_the_log(home: Home, tmp_path: Path) -> None:
    home.promote("one")
    assert home.path.with_name("ledger.sqlite-wal").stat().st_size > 0
    copy_database(home.path, tmp_path / "copy.sqlite")
    assert VersionLedger(tmp_path / "copy.sqlite").list() == home.ledger.list()
