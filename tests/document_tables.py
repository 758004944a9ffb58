"""Document tables with the given texts, for tests of kernels."""

from collections.abc import Sequence

import pyarrow as pa

from train.data.schema import DOCUMENT_SCHEMA


def documents(texts: Sequence[str], *, quality: Sequence[float] | None = None, first: int = 0) -> pa.Table:
    rows = [
        {
            "id": f"{first + i:04d}", "source_id": "s", "title": "", "text": text, "happened_at": 0.0, "metadata": [],
            "counts": [], "language": "en", "language_score": 1.0, "quality": quality[i] if quality else 0.5, "reasons": [],
        }
        for i, text in enumerate(texts)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA)
