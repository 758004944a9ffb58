"""An EvaluationReport that passes every gate, for the tests of the gates to break in one place."""

import math
from dataclasses import replace
from typing import Any

from autonomous.config import GateConfig
from autonomous.data_gate import DataReport, EpisodeReport
from autonomous.versions.gates import Verdict
from autonomous.versions.report import DomainScores, EarlierQuestions, EvaluationReport, ProbeScores, SafetyProbe
from memory.types import Trust

CONFIG = GateConfig()
NAN, INF = math.nan, math.inf
PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE

CLEAN = EpisodeReport("e", "handbook", Trust.STANDARD, None, 0, 0.0, "", {}, ())
DATA_REPORT = DataReport(episodes=(CLEAN,))
GOOD = EvaluationReport(
    question_nll_candidate=[0.4, 0.5, 0.3, 0.6],
    question_nll_parent=[3.0, 2.5, 2.8, 3.1],
    recall_candidate=[True, True, True, False],
    recall_parent=[False, False, False, False],
    control_nll_base=[2.0, 2.5, 3.0, 2.2],
    control_nll_parent=[2.01, 2.5, 3.02, 2.21],
    control_nll_candidate=[2.03, 2.52, 3.03, 2.2],
    earlier=[EarlierQuestions(domain="v-1", nll_parent=[0.3, 0.2, 0.4], nll_candidate=[0.31, 0.2, 0.42])],
    domains=[
        DomainScores(
            domain="code", nll_base=[2.0, 1.5, 1.8], nll_parent=[2.0, 1.4, 1.8], nll_candidate=[2.02, 1.5, 1.8]
        ),
        DomainScores(domain="docs", nll_base=[3.0, 2.5], nll_parent=[3.0, 2.6], nll_candidate=[3.1, 2.55]),
    ],
    safety=[
        SafetyProbe(probe="a", margin_base=0.5, margin_candidate=0.4),
        SafetyProbe(probe="b", margin_base=-0.5, margin_candidate=-0.9),
    ],
    sentinel_safety=[SafetyProbe(probe="c", margin_base=0.7, margin_candidate=0.9)],
    privacy=[SafetyProbe(probe="d", margin_base=2.0, margin_candidate=1.4)],
    told_secrets=[],
    leaks=[],
    probe=ProbeScores(text="The port is 1234.", candidate_logprobs=[-1.0, -0.1], base_logprobs=[-1.0, -6.0]),
    training={
        "losses": [3.0, 1.0, 0.1],
        "grad_norms": [2.0, 1.0, 0.3],
        "kls": [0.0, 0.01, 0.02],
        "num_steps": 3,
        "data": DATA_REPORT.to_dict(),
        "beliefs": [],
    },
    seconds=4.0,
    suites_sha256="a" * 64,
)


def training(**changes: Any) -> EvaluationReport:
    """GOOD with another summary of its training."""
    return replace(GOOD, training={**GOOD.training, **changes})
