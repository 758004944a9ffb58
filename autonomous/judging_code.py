"""The code that judges: by name the files that ask, score, measure and decide about a batch or a version.

Out: their paths, to be hashed into each report (provenance.py) and watched while the system runs (cycle_watch.py). By path,
not by import: what learns must not import what judges.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
JUDGING = (
    "autonomous/asking.py",
    "autonomous/benchmark*.py",
    "autonomous/curriculum.py",
    "autonomous/data_gate.py",
    "autonomous/data_report.py",
    "autonomous/evaluation.py",
    "autonomous/filling.py",
    "autonomous/judge.py",
    "autonomous/judging_code.py",
    "autonomous/leaks.py",
    "autonomous/lessons.py",
    "autonomous/panel*.py",
    "autonomous/provenance.py",
    "autonomous/safety/evidence.py",
    "autonomous/safety/poison*.py",
    "autonomous/safety/probes.py",
    "autonomous/safety/screen.py",
    "autonomous/safety/slots.py",
    "autonomous/safety/statements.py",
    "autonomous/sentinel/*.py",
    "autonomous/statistics.py",
    "autonomous/suite.py",
    "autonomous/versions/data_gates.py",
    "autonomous/versions/gate*.py",
    "autonomous/versions/report.py",
    "memory/claims.py",
    "memory/facts.py",
    "memory/grammar.py",
    "memory/passages.py",
    "memory/questions.py",
    "memory/words.py",
    "train/adapt/base.py",
    "train/adapt/choices.py",
    "train/adapt/lora.py",
    "train/adapt/scoring.py",
    "train/adapt/weights.py",
    "train/continual/abilities.py",
    "train/continual/items.py",
    "train/continual/replay.py",
    "train/data/decontaminate.py",
    "train/data/minhash.py",
    "train/data/ngrams.py",
    "train/data/pii.py",
)
"""Relative to ROOT. tests/unit/autonomous/test_judging_code.py says what else they import, and why that is not here."""


def judging_files() -> tuple[Path, ...]:
    """The files that are there, sorted."""
    return tuple(sorted(path for pattern in JUDGING for path in ROOT.glob(pattern)))
