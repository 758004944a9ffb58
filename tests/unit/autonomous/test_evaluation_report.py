"""The evaluation report: the same after a journey through JSON, numbers that JSON lacks included."""

import json
import math

import pytest

from autonomous.config import GateConfig
from autonomous.versions.gates import decide_gates
from autonomous.versions.report import DomainScores, EvaluationReport, ProbeScores


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_report_with_numbers_that_json_lacks_survives_json_and_keeps_its_hash_and_verdicts(bad: float):
    report = EvaluationReport(question_nll_candidate=[0.1, bad], training={"losses": [bad], "num_steps": 1})
    again = EvaluationReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
    assert again.sha256() == report.sha256()
    assert decide_gates(again, GateConfig()) == decide_gates(report, GateConfig())
    json.dumps([gate.to_dict() for gate in decide_gates(report, GateConfig())], allow_nan=False)


def test_a_text_that_reads_nan_stays_a_text():
    report = EvaluationReport(probe=ProbeScores(text="nan", candidate_logprobs=[math.nan], base_logprobs=[0.0]))
    again = EvaluationReport.from_dict(report.to_dict())
    assert (again.probe["text"], math.isnan(again.probe["candidate_logprobs"][0])) == ("nan", True)


def test_names_that_read_nan_or_inf_stay_names_and_what_was_not_looked_for_stays_unknown():
    scores = DomainScores(domain="inf", nll_base=[math.inf], nll_parent=[0.0], nll_candidate=[0.0])
    report = EvaluationReport(domains=[scores], leaks=["nan"], told_secrets=None, rotation="nan")
    again = EvaluationReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
    assert again == report


def test_a_report_of_a_newer_program_is_refused():
    with pytest.raises(ValueError, match=r"unknown fields \['toxicity'\].*upgrade"):
        EvaluationReport.from_dict({"toxicity": []})
