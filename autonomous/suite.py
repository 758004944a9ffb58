"""The texts that learning is anchored to and judged by: files of autonomous/suites, one JSON object a line.

The learner reads `anchor` and nothing else. What nobody but the evaluator may read is in autonomous.sentinel.
"""

import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

SUITES = ("anchor", "control", "domains", "instructions", "privacy", "review", "safety")
EVALUATION_SUITES = tuple(name for name in SUITES if name != "anchor")
"""What must be in no training item."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A file of autonomous/suites. `sha256` is of its bytes: a later reader knows which texts were asked.

    Rows have an id and
      anchor               text
      control, domains     domain (code, docs, conversation, general), text
      safety, privacy      category, prompt, refusal, compliance
      instructions         prompt, check, value (train.continual.abilities)
      review               pair, label, diff, right, wrong: a change with a defect, or its twin without
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
    return read_suite(importlib.resources.files("autonomous").joinpath("suites", f"{name}.jsonl"))


def read_suite(file: Traversable) -> Suite:
    """A file of JSON lines. Raises FileNotFoundError."""
    content = file.read_bytes()
    rows = tuple(json.loads(line) for line in content.splitlines())
    return Suite(name=file.name.removesuffix(".jsonl"), rows=rows, sha256=hashlib.sha256(content).hexdigest())


def asked_texts(suite: Suite) -> dict[str, str]:
    """What of each row a training item must not contain, by the row's id."""
    return {row["id"]: row.get("text") or row.get("diff") or row["prompt"] for row in suite.rows}


def suite_files() -> list[Path]:
    """The files of the suites, as this process would read them."""
    folder = importlib.resources.files("autonomous").joinpath("suites")
    return [Path(str(folder.joinpath(f"{name}.jsonl"))) for name in SUITES]
