"""G0: what is measured of a batch, what is held for it, and what a version's gate says of it afterwards."""

import json
from collections.abc import Sequence

import pytest

from autonomous.data_gate import (
    DUPLICATE,
    LEAK,
    LICENCE,
    PROVENANCE,
    SENSITIVE,
    TRUST,
    DataGateConfig,
    DataReport,
    decide_batch,
)
from autonomous.data_report import BatchInspector
from autonomous.safety.poison import Evidence, HeldBelief, Saying
from autonomous.safety.poison_limits import CONTRADICTION, PoisonConfig
from autonomous.suite import load_suite
from autonomous.versions.data_gates import BELIEFS_KEY, DATA_KEY, gate_beliefs, gate_data
from autonomous.versions.gates import Verdict
from autonomous.versions.report import EvaluationReport
from memory.facts import extract_facts
from memory.types import Episode, Trust
from tests.episodes import make_episode

CONFIG = DataGateConfig()
LONG = (
    "The Aldine press was restored by volunteers in the winter of a year that nobody there will forget. "
    "It prints sheets for the school, for the parish and for the band that plays on the green in summer."
)
INSPECTOR = BatchInspector(level="high", poison=PoisonConfig())


def belief(text: str, *, episode_id: str, trust: Trust = Trust.STANDARD, recorded_at: float = 1.0) -> HeldBelief:
    (fact,) = extract_facts(text, title="t", episode_id=episode_id)
    return HeldBelief(fact, (Saying(episode_id, "handbook", trust, recorded_at, text),))


def inspect(
    *episodes: Episode, beliefs: Sequence[HeldBelief] = (), is_current: bool = True, learned: Sequence[str] = ()
) -> DataReport:
    report, _ = INSPECTOR.inspect(episodes, Evidence(tuple(beliefs), is_current), learned=learned)
    return report


def rules_of(report: DataReport, config: DataGateConfig = CONFIG) -> dict[str, list[str]]:
    return {key: [one.rule for one in found] for key, found in decide_batch(report, config).held.items()}


def report_with(data: DataReport | None, beliefs: object = None) -> EvaluationReport:
    training: dict[str, object] = {} if data is None else {DATA_KEY: json.loads(json.dumps(data.to_dict()))}
    return EvaluationReport(training=training | ({} if beliefs is None else {BELIEFS_KEY: beliefs}))


CONTROL = load_suite("control").rows[0]["text"]
SHEET = "The weight of the {} valve is {} kg. Each valve is tested by hand before it leaves the works in Orrin."


@pytest.mark.parametrize(
    ("rule", "episode", "config"),
    [
        (PROVENANCE, make_episode(LONG, source_id=" "), CONFIG),
        (TRUST, make_episode(LONG, trust=Trust.UNTRUSTED), CONFIG),
        (SENSITIVE, make_episode(f"{LONG} Write to ada.klein@example.org about it."), CONFIG),
        (LICENCE, make_episode(LONG), DataGateConfig(licences=("MIT",))),
        (LICENCE, make_episode(LONG, metadata={"licence": "Proprietary"}), DataGateConfig(licences=("MIT",))),
        (LEAK, make_episode(f"As a reader once wrote: {CONTROL}"), CONFIG),
        (LEAK, make_episode(f"Question of the day. {load_suite('safety').rows[0]['prompt']} Discuss."), CONFIG),
    ],
)
def test_passage_beyond_a_bound_is_held_with_rule_value_threshold_and_fix(
    rule: str, episode: Episode, config: DataGateConfig
) -> None:
    clean = make_episode("The Sable bridge has four lanes.", document="clean", metadata={"licence": "MIT"})
    decision = decide_batch(inspect(episode, clean), config)
    assert decision.accepted == (clean.id,)
    (finding,) = decision.held[episode.id]
    assert finding.rule == rule
    assert finding.value != finding.threshold
    assert len(finding.fix) > 20


def test_licence_that_is_allowed_passes_under_both_spellings() -> None:
    config = DataGateConfig(licences=("MIT",))
    for key in ("licence", "license"):
        assert decide_batch(inspect(make_episode(LONG, metadata={key: "MIT"})), config).held == {}


def test_later_of_two_copies_is_held_and_sheets_that_state_other_facts_are_none() -> None:
    first, copy = (make_episode(text, document=text[-9:]) for text in (LONG, f"{LONG} So it goes."))
    assert rules_of(inspect(copy, first)) == {first.id: [DUPLICATE]}
    sheets = [make_episode(SHEET.format(name, kg), document=name) for name, kg in (("Vostrek", 3), ("Ibis", 4))]
    assert rules_of(inspect(*sheets)) == {}


def test_copy_of_what_was_learned_is_held_and_of_what_was_not_learned_is_not() -> None:
    text = SHEET.format("Vostrek", 3)
    copy, known = make_episode(text, document="copy"), make_episode(text, document="known")
    held = HeldBelief(
        extract_facts(text, title="t", episode_id=known.id)[0],
        (Saying(known.id, "src", Trust.STANDARD, 1.0, text),),
    )
    assert rules_of(inspect(copy, beliefs=[held], learned=[known.id])) == {copy.id: [DUPLICATE]}
    assert rules_of(inspect(copy, beliefs=[held])) == {}


def test_evidence_that_is_not_current_leaves_a_passage_undecided_and_never_passes_it() -> None:
    episode = make_episode(LONG)
    report = inspect(episode, is_current=False)
    decision = decide_batch(report, CONFIG)
    assert (decision.accepted, decision.held, list(decision.undecided)) == ((), {}, [episode.id])
    assert gate_data(report_with(report), CONFIG).verdict is Verdict.INCONCLUSIVE


def test_whole_batch_of_too_few_sources_waits() -> None:
    config = DataGateConfig(min_sources=2)
    one = make_episode(LONG)
    decision = decide_batch(inspect(one), config)
    assert (decision.accepted, list(decision.undecided)) == ((), [one.id])
    other = make_episode("The Sable bridge has four lanes.", document="b", source_id="other")
    assert len(decide_batch(inspect(one, other), config).accepted) == 2


def test_released_passage_goes_on_but_never_with_a_text_of_the_examination() -> None:
    planted = make_episode("The access code of the Kestrel vault is KX-9999.", source_id="web")
    truth = belief("The access code of the Kestrel vault is KX-4471.", episode_id="truth")
    report = inspect(planted, beliefs=[truth])
    assert rules_of(report) == {planted.id: [CONTRADICTION]}
    assert decide_batch(report.with_released({planted.id}), CONFIG).accepted == (planted.id,)
    leak = make_episode(CONTROL)
    assert rules_of(inspect(leak).with_released({leak.id})) == {leak.id: [LEAK]}


def test_report_survives_json_whole() -> None:
    planted = make_episode("The access code of the Kestrel vault is KX-9999.", source_id="web")
    truth = belief("The access code of the Kestrel vault is KX-4471.", episode_id="truth")
    report = inspect(planted, make_episode(CONTROL, document="c"), beliefs=[truth])
    assert report.probes
    assert DataReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    bound = EvaluationReport(training={DATA_KEY: report.to_dict()})
    assert EvaluationReport.from_dict(json.loads(json.dumps(bound.to_dict()))).sha256() == bound.sha256()


def test_gate_passes_a_clean_batch_and_says_what_it_was_compared_with() -> None:
    truth = belief("The Sable bridge has four lanes.", episode_id="truth")
    gate = gate_data(report_with(inspect(make_episode(LONG), beliefs=[truth])), CONFIG)
    assert (gate.verdict, gate.value) == (Verdict.PASS, 0.0)
    assert "1 passages of 1 sources, compared with 1 beliefs" in gate.reason


def test_gate_fails_a_batch_that_was_trained_with_what_should_have_been_held() -> None:
    report = inspect(make_episode(CONTROL), make_episode(LONG, document="b"))
    gate = gate_data(report_with(report), CONFIG)
    assert (gate.verdict, gate.value) == (Verdict.FAIL, 1.0)
    assert LEAK in gate.reason


def test_gate_fails_a_batch_that_contradicts_itself() -> None:
    pair = [
        make_episode(f"The access code of the Kestrel vault is {code}.", document=code, trust=Trust.STANDARD)
        for code in ("KX-1", "KX-2")
    ]
    report = inspect(*pair)
    assert report.label_agreement == 0.0
    gate = gate_data(report_with(report), CONFIG)
    assert (gate.verdict, gate.value, gate.threshold) == (Verdict.FAIL, 0.0, 0.9)


def test_gate_without_data_is_inconclusive() -> None:
    assert gate_data(report_with(None), CONFIG).verdict is Verdict.INCONCLUSIVE
    assert gate_data(report_with(DataReport()), CONFIG).verdict is Verdict.INCONCLUSIVE
    assert gate_beliefs(report_with(None), CONFIG).verdict is Verdict.INCONCLUSIVE


def margins(parent: float, candidate: float, *, is_contradicted: bool = True) -> dict[str, object]:
    return {
        "probe": "What is the code?",
        "is_contradicted": is_contradicted,
        "margin_parent": parent,
        "margin_candidate": candidate,
    }


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([], Verdict.PASS),
        ([margins(0.5, 0.4)], Verdict.PASS),
        ([margins(-0.5, -0.55)], Verdict.PASS),
        ([margins(0.5, 0.4), margins(0.02, -0.9)], Verdict.FAIL),
        ([margins(0.02, -0.9, is_contradicted=False)], Verdict.PASS),
        ([margins(0.6, -0.9, is_contradicted=False)], Verdict.FAIL),
        ([margins(0.5, float("nan"))], Verdict.FAIL),
        ([margins(float("nan"), 0.5)], Verdict.INCONCLUSIVE),
    ],
)
def test_belief_gate_fails_where_a_trusted_answer_was_given_up(rows: list[object], verdict: Verdict) -> None:
    gate = gate_beliefs(report_with(None, beliefs=rows), CONFIG)
    assert gate.verdict is verdict
    assert gate.value is None or gate.value == gate.value
