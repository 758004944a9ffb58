"""One batch of raw documents through all that can be decided about a document alone.

In: RawDocuments of one source. Out: a document table of the same length, whose rows carry every reason against them. Order:
clean, language, quality (C4's rules edit the text), evaluation sets. Personal data is gone after the first step, so nothing
later ever holds it. The rules of quality are made for running text: code and annotations, which their readers judge, get
quality 1.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from train.data.clean import CleanDocument, DataCleaner, NotText
from train.data.config import PipelineConfig
from train.data.decontaminate import Contamination, mark_contaminated
from train.data.document import RawDocument
from train.data.language import detect_languages
from train.data.pii import ALL_KINDS, mask_sensitive_all
from train.data.quality import score_table
from train.data.schema import DOCUMENT_SCHEMA, set_column
from train.data.source_config import SourceKind

UNJUDGED_KINDS: tuple[SourceKind, ...] = ("code", "annotations")
NOT_TEXT_RULE = "clean.not_text"
_MADE_METADATA = frozenset({"offset", "kind"})
"""Metadata that readers make; every other value repeats what an author wrote."""


def prepare_batch(
    documents: Sequence[RawDocument],
    config: PipelineConfig,
    *,
    kind: SourceKind,
    cleaner: DataCleaner,
    contamination: Contamination | None,
) -> pa.Table:
    """A table of DOCUMENT_SCHEMA, rows in the order of the documents."""
    table = clean_documents(documents, cleaner)
    if kind in UNJUDGED_KINDS:
        table = set_column(table, "quality", pa.array(np.ones(len(table), np.float32)))
    else:
        table = detect_languages(table, config.language)
        table = _masked_again(score_table(table, config.quality), before=table)
    if contamination is not None:
        table = mark_contaminated(table, contamination, config.decontamination)
    return table


def _masked_again(table: pa.Table, *, before: pa.Table) -> pa.Table:
    """C4 takes citations such as [1] out, which may have parted what is an address without them."""
    changed = pc.not_equal(table["text"], before["text"]).to_numpy()
    rows = np.flatnonzero(changed).tolist()
    if not rows:
        return table
    texts, counts = table["text"].to_pylist(), table["counts"].to_pylist()
    for row, (text, found) in zip(rows, mask_sensitive_all([texts[row] for row in rows], kinds=ALL_KINDS), strict=True):
        texts[row] = text
        counts[row] = list((Counter(dict(counts[row])) + Counter(found)).items())
    table = set_column(table, "text", pa.array(texts, pa.large_string()))
    return set_column(table, "counts", pa.array(counts, table.schema.field("counts").type))


def clean_documents(documents: Sequence[RawDocument], cleaner: DataCleaner) -> pa.Table:
    """A document table, row by row; what is no text becomes an empty text with a reason."""
    found = cleaner.clean_all(documents)
    rows = [_row(document, clean) for document, clean in zip(documents, found, strict=True)]
    places = [(row, key) for row in rows for key in row["metadata"] if key not in _MADE_METADATA]
    masked = mask_sensitive_all([row["metadata"][key] for row, key in places], kinds=ALL_KINDS)
    for (row, key), (value, _) in zip(places, masked, strict=True):
        row["metadata"][key] = value
    for row in rows:
        row["metadata"] = list(row["metadata"].items())
    return pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA)


def _row(document: RawDocument, clean: CleanDocument | NotText) -> dict[str, Any]:
    row = {
        "id": document.id,
        "source_id": document.source_id,
        "title": "",
        "text": "",
        "happened_at": document.happened_at,
        "metadata": dict(document.metadata),
        "counts": [],
        "language": "",
        "language_score": 0.0,
        "quality": 0.0,
        "reasons": [],
    }
    if isinstance(clean, NotText):
        return row | {"reasons": [{"rule": NOT_TEXT_RULE, "value": float(len(document.content))}]}
    return row | {"title": clean.title, "text": clean.text, "counts": list(clean.counts.items())}
