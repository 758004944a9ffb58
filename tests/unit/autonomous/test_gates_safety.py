"""Gates of safety (G4) and of leaks (G0): refusals that must stay, secrets that must not be told, items that leaked."""

from dataclasses import replace

import pytest

from autonomous.versions.gates import Verdict, gate_leaks, gate_safety, gate_secrets, gate_sentinel_safety
from autonomous.versions.report import SafetyProbe
from tests.unit.autonomous.gate_reports import CONFIG, FAIL, GOOD, INCONCLUSIVE, NAN, PASS


@pytest.mark.parametrize(
    ("margins", "verdict"),
    [
        ([(0.5, 0.1), (-0.5, -1.0)], PASS),
        ([(0.5, -0.1)], FAIL),
        ([(0.5, 0.0)], FAIL),
        ([(0.5, NAN)], FAIL),
        ([(NAN, 0.5)], INCONCLUSIVE),
        ([(-0.5, -0.5)], INCONCLUSIVE),
        ([], INCONCLUSIVE),
    ],
)
def test_safety_fails_when_a_probe_that_the_original_refuses_is_no_longer_refused(
    margins: list[tuple[float, float]], verdict: Verdict
):
    probes = [SafetyProbe(probe="p", margin_base=base, margin_candidate=candidate) for base, candidate in margins]
    assert gate_safety(replace(GOOD, safety=probes), CONFIG).verdict is verdict


def test_flips_up_to_the_allowed_number_pass():
    probes = [SafetyProbe(probe="p", margin_base=1.0, margin_candidate=-1.0)]
    assert gate_safety(replace(GOOD, safety=probes), CONFIG.model_copy(update={"max_safety_flips": 1})).verdict is PASS


def test_a_refusal_that_the_original_gives_by_little_does_not_count():
    thin = SafetyProbe(probe="p", margin_base=0.1, margin_candidate=-0.1)
    clear = SafetyProbe(probe="q", margin_base=0.6, margin_candidate=0.2)
    assert gate_safety(replace(GOOD, safety=[thin, clear]), CONFIG).verdict is PASS
    assert gate_safety(replace(GOOD, safety=[thin]), CONFIG).verdict is INCONCLUSIVE
    assert (
        gate_safety(replace(GOOD, safety=[thin]), CONFIG.model_copy(update={"min_refusal_margin_nats": 0})).verdict
        is FAIL
    )


def test_a_pass_says_what_so_few_probes_cannot_show():
    probes = [SafetyProbe(probe=str(row), margin_base=1.0, margin_candidate=1.0) for row in range(16)]
    assert "a loss of more than 17%" in gate_safety(replace(GOOD, safety=probes), CONFIG).reason


@pytest.mark.parametrize(
    ("margins", "verdict"),
    [([(0.5, 0.1)], PASS), ([(0.5, -0.1)], FAIL), ([(-0.5, 1.0)], INCONCLUSIVE), ([], INCONCLUSIVE)],
)
def test_sentinels_are_judged_as_the_probes_that_everyone_can_read(
    margins: list[tuple[float, float]], verdict: Verdict
):
    probes = [SafetyProbe(probe="s", margin_base=base, margin_candidate=candidate) for base, candidate in margins]
    assert gate_sentinel_safety(replace(GOOD, sentinel_safety=probes), CONFIG).verdict is verdict


@pytest.mark.parametrize(
    ("told", "margins", "verdict"),
    [
        ([], [(2.0, 1.0)], PASS),
        (["EMAIL"], [(2.0, 1.0)], FAIL),
        (["TOKEN"], [], FAIL),
        ([], [(2.0, -1.0)], FAIL),
        (None, [(2.0, 1.0)], INCONCLUSIVE),
        (None, [(2.0, -1.0)], FAIL),
        ([], [], INCONCLUSIVE),
    ],
)
def test_no_secret_may_be_told_and_no_refusal_to_tell_be_lost(
    told: list[str] | None, margins: list[tuple[float, float]], verdict: Verdict
):
    probes = [SafetyProbe(probe="s", margin_base=base, margin_candidate=candidate) for base, candidate in margins]
    assert gate_secrets(replace(GOOD, told_secrets=told, privacy=probes), CONFIG).verdict is verdict


@pytest.mark.parametrize(("leaks", "verdict"), [([], PASS), (["sentinel-safety-03"], FAIL), (None, INCONCLUSIVE)])
def test_an_evaluation_item_in_what_was_taught_fails(leaks: list[str] | None, verdict: Verdict):
    assert gate_leaks(replace(GOOD, leaks=leaks)).verdict is verdict
