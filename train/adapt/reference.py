"""How a version's weights on disk are named between the ledger, the learner and the engine."""

from dataclasses import dataclass
from typing import Literal

MODEL_FOLDER = "model"
"""In the folder of a version of full weights: the complete Hugging Face folder. Beside it lies what is not the model's."""


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """A version's weights: `name` is the version id, `folder` holds PEFT's files, or full weights in MODEL_FOLDER.

    `number` comes from the version ledger, once per version, and is never reused: an engine silently keeps the old
    weights of a number that it knows.
    """

    name: str
    number: int
    folder: str
    kind: Literal["adapter", "weights"] = "adapter"
