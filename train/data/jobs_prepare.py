"""The job that reads: one work unit to documents that pass, with their signatures, and documents and bytes that do not.

In: a unit of the plan. Out, under the unit's number: prepare/*.parquet and signed/*.arrow of the documents that pass every
rule, audit/*.parquet of the others with all reasons, losses/*.jsonl of what could not be read. A document that an earlier run
has already is dropped here.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from train.data.decontaminate import Contamination, read_items
from train.data.dedup import DUPLICATE_OF, EXACT_RULE, NEAR_RULE
from train.data.dedup_edges import SignedDocuments
from train.data.document import RawDocument, Rejected
from train.data.pii import mask_sensitive_all
from train.data.prepare import prepare_batch
from train.data.run import Run
from train.data.schema import DOCUMENT_SCHEMA, is_kept, set_column, with_reasons
from train.data.signed_file import write_signed
from train.data.stored_file import open_hashed
from train.data.units import read_unit

BATCH_BYTES = 32 << 20
"""Raw bytes that are worked on at once, besides one document."""
KNOWN_SUFFIX = "_in_index"


def prepare_unit(run: Run, index: int) -> None:
    """Run the job and commit it."""
    unit = run.units[index]
    kind, cleaner = run.source_of(index).kind, run.cleaner_of(index)
    facts: Counter[str] = Counter()
    responses: Counter[str] = Counter()
    signed: list[SignedDocuments] = []
    with (
        run.work.writer(run.path("prepare", index, "parquet"), schema=DOCUMENT_SCHEMA) as kept_file,
        run.work.writer(run.path("audit", index, "parquet"), schema=DOCUMENT_SCHEMA) as audit_file,
        open_hashed(run.folder.filesystem, run.path("losses", index, "jsonl")) as losses_file,
    ):
        items = read_unit(unit, run.config, counts=responses)
        for documents, losses in batches(items, num_documents=run.config.batch_documents):
            for loss in losses:
                path, reason = (text for text, _ in mask_sensitive_all([loss.path, loss.reason]))
                row = asdict(loss) | {"source": unit.source, "path": path, "reason": reason}
                losses_file.write((json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n").encode())
                facts.update({"losses": 1, "lost_bytes": loss.lost_bytes})
            if not documents:
                continue
            table = prepare_batch(documents, run.config, kind=kind, cleaner=cleaner, contamination=run.contamination)
            facts["bytes_read"] += sum(len(document.content) for document in documents)
            _count_table(table, facts, "read")
            kept = table.filter(is_kept(table))
            audit_file.write(table.filter(pc.invert(is_kept(table))))
            kept, batch = _without_known(run, kept, audit_file, facts)
            kept_file.write(kept)
            signed.append(batch)
        losses_summary = losses_file.summary(run.path("losses", index, "jsonl"), num_items=facts["losses"])
    signed = signed or [run.deduplicator.sign(DOCUMENT_SCHEMA.empty_table())]
    signed_file = write_signed(run.folder, run.name("signed", index, "arrow"), signed)
    facts.update({f"responses:{name}": count for name, count in responses.items()})
    facts["signed"] = signed_file.num_items
    files = [kept_file.summary, audit_file.summary, losses_summary, signed_file]
    run.folder.commit("prepare", index, facts=dict(facts), files=files)


def hash_evaluation_sets(run: Run, index: int) -> None:
    """Hash what no training document may contain."""
    texts = {one.name: read_items(one.path, fields=one.fields) for one in run.config.evaluation_sets}
    contamination = Contamination.build(texts, run.config.decontamination)
    contamination.save(run.folder.filesystem, run.path("evaluation", index, "arrow"))
    run.folder.commit("evaluation", index, facts={"items": sum(contamination.num_items)})


def batches(
    items: Iterable[RawDocument | Rejected], *, num_documents: int
) -> Iterator[tuple[list[RawDocument], list[Rejected]]]:
    """Documents in batches of bounded number and size, with the losses that lay between them."""
    documents: list[RawDocument] = []
    losses: list[Rejected] = []
    size_bytes = 0
    for item in items:
        if isinstance(item, Rejected):
            losses.append(item)
        else:
            documents.append(item)
            size_bytes += len(item.content)
        if len(documents) >= num_documents or size_bytes >= BATCH_BYTES or len(losses) >= num_documents:
            yield documents, losses
            documents, losses, size_bytes = [], [], 0
    yield documents, losses


def count_reasons(table: pa.Table, facts: Counter[str]) -> None:
    """Every rule of every document as "rule:<name>"; of the rule that a document broke first "first:<name>" and the
    document's characters as "first_chars:<name>"."""
    lengths = pc.utf8_length(table["text"]).to_pylist()
    for reasons, num_chars in zip(table["reasons"].to_pylist(), lengths, strict=True):
        facts.update(f"rule:{rule}" for rule in {reason["rule"] for reason in reasons})
        if reasons:
            facts[f"first:{reasons[0]['rule']}"] += 1
            facts[f"first_chars:{reasons[0]['rule']}"] += num_chars


def _count_table(table: pa.Table, facts: Counter[str], stage: str) -> None:
    facts[f"documents_{stage}"] += len(table)
    facts[f"chars_{stage}"] += pc.sum(pc.utf8_length(table["text"])).as_py() or 0
    for counts in table["counts"].to_pylist():
        facts.update({f"count:{name}": number for name, number in counts})
    count_reasons(table, facts)


def _without_known(run: Run, kept: pa.Table, audit_file: Any, facts: Counter[str]) -> tuple[pa.Table, SignedDocuments]:
    """The documents that the index has not, and what deduplication knows of them."""
    signed = run.deduplicator.sign(kept)
    matches, num_capped = run.index.match(signed) if run.index is not None and len(kept) else ([], 0)
    facts["capped_in_index"] += num_capped
    is_known = np.array([match is not None for match in matches] or np.zeros(len(kept)), np.bool_)
    if not is_known.any():
        return kept, signed
    found = [match for match in matches if match is not None]
    known = kept.filter(pa.array(is_known))
    metadata = [
        [*pairs, (DUPLICATE_OF, match.id)] for pairs, match in zip(known["metadata"].to_pylist(), found, strict=True)
    ]
    known = set_column(known, "metadata", pa.array(metadata, known.schema.field("metadata").type))
    rules = [(EXACT_RULE if match.is_exact else NEAR_RULE) + KNOWN_SUFFIX for match in found]
    reasons = [[{"rule": rule, "value": match.similarity}] for rule, match in zip(rules, found, strict=True)]
    known = with_reasons(known, reasons)
    count_reasons(known, facts)
    audit_file.write(known)
    return kept.filter(pa.array(~is_known)), signed.select(~is_known)
