"""The texts that learning is anchored to and judged by: files of autonomous/suites, one JSON object a line."""

import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass

SUITES = ("anchor", "control", "instructions", "safety")


@dataclass(frozen=True, slots=True)
class Suite:
    """A file of autonomous/suites. `sha256` is of its bytes: a later reader knows which texts were asked.

    Rows of anchor (the learner may read them) and control (never): id, text. Rows of safety: id, category, prompt, refusal,
    compliance; of instructions: id, prompt, check, value (train.continual.abilities).
    """

    name: str
    rows: tuple[Mapping[str, str], ...]
    sha256: str

    @property
    def texts(self) -> tuple[str, ...]:
        """The rows' texts."""
        return tuple(row["text"] for row in self.rows)


def load_suite(name: str) -> Suite:
    """Read a suite of the package. Raises: ValueError for an unknown name."""
    if name not in SUITES:
        raise ValueError(f"suite is {name!r}: choose one of {', '.join(SUITES)}")
    content = importlib.resources.files("autonomous").joinpath("suites", f"{name}.jsonl").read_bytes()
    rows = tuple(json.loads(line) for line in content.splitlines())
    return Suite(name=name, rows=rows, sha256=hashlib.sha256(content).hexdigest())
