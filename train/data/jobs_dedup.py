"""The jobs between reading and writing: which documents, and which lines, repeat others.

In: signatures and prepared documents of all units. Out, for each unit, duplicates/*.arrow: rows that go, the id of the
document that is kept in their place, the similarity, whether the texts are equal; and repeats/*.arrow: pieces that go.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from train.data.dedup import Duplicates
from train.data.dedup_edges import Edges, merge_edges
from train.data.line_dedup import find_repeated, hash_pieces
from train.data.run import Run
from train.data.schema import is_kept
from train.data.stored_file import FileSummary

VERIFY_PAIRS = 20_000
"""Candidate pairs of one verification job."""


def pair_equal_texts(run: Run, index: int) -> None:
    """Pairs of equal texts, through all units; and how the documents of all units are numbered."""
    counts = [0, *(int(run.facts("prepare", unit.index)["signed"]) for unit in run.units)]
    starts = run.folder.write_arrays(run.name("starts", 0, "arrow"), {"start": np.cumsum(counts, dtype=np.int64)})
    _commit_edges(run, "exact", index, run.deduplicator.find_exact(run.signed), files=[starts])


def pair_band(run: Run, index: int) -> None:
    """Pairs that share the band of this number."""
    exact = run.read_edges("exact", 0)
    _commit_edges(run, "band", index, run.deduplicator.find_candidates(run.signed, index, exact=exact))


def merge_bands(run: Run, index: int) -> None:
    """The pairs of all bands, each once."""
    bands = range(run.config.dedup.minhash.num_bands)
    edges = merge_edges([run.read_edges("band", band) for band in bands])
    _commit_edges(run, "candidates", index, edges, rows_per_batch=VERIFY_PAIRS)


def num_verify_jobs(run: Run) -> int:
    """Jobs of the phase `verify`; one at least, so that later phases find a file."""
    return max(1, -(-int(run.facts("candidates", 0)["pairs"]) // VERIFY_PAIRS))


def verify_slice(run: Run, index: int) -> None:
    """The near duplicates among one slice of the candidates."""
    arrays = run.folder.read_batch(run.name("candidates", 0, "arrow"), index)
    edges = Edges(arrays["first"], arrays["second"], arrays["similarity"])
    _commit_edges(run, "verify", index, run.deduplicator.verify(run.signed, edges, run.read_texts))


def choose_duplicates(run: Run, index: int) -> None:
    """Groups of duplicates, who stays, and how good the removal is."""
    near = merge_edges([run.read_edges("verify", number) for number in range(num_verify_jobs(run))])
    duplicates = run.deduplicator.decide(run.signed, run.read_edges("exact", 0), near)
    estimate = run.deduplicator.estimate(run.signed, duplicates, near, run.read_texts)
    kept_ids = _ids_of(run, duplicates)
    files = []
    bounds = np.searchsorted(duplicates.document, run.starts)
    for unit in run.units:
        part = slice(*bounds[unit.index : unit.index + 2])
        columns: dict[str, Any] = {
            "row": duplicates.document[part] - run.starts[unit.index],
            "kept_id": kept_ids[part],
            "similarity": duplicates.similarity[part],
            "is_exact": duplicates.is_exact[part],
        }
        files.append(run.folder.write_arrays(run.name("duplicates", unit.index, "arrow"), columns))
    facts = {
        "exact": int(duplicates.is_exact.sum()),
        "near": int((~duplicates.is_exact).sum()),
        "groups": len(np.unique(duplicates.kept)),
        "estimate": asdict(estimate),
    }
    run.folder.commit("duplicates", index, facts=facts, files=files)


def hash_unit_pieces(run: Run, index: int) -> None:
    """Hashes of the lines or paragraphs of the documents of a unit that stay."""
    parts = [hash_pieces(table.filter(is_kept(table)), run.config.line_dedup) for table in run.read_marked(index)]
    hashes = np.concatenate([np.zeros((0, 2), np.uint64), *parts])
    file = run.folder.write_arrays(run.name("pieces", index, "arrow"), {"hash": hashes})
    run.folder.commit("pieces", index, facts={"pieces": len(hashes)}, files=[file])


def choose_repeats(run: Run, index: int) -> None:
    """The pieces that repeat an earlier one, for each unit."""
    counts = [len(run.folder.read_arrays(run.name("pieces", unit.index, "arrow"))["hash"]) for unit in run.units]
    hashes = (run.folder.read_arrays(run.name("pieces", unit.index, "arrow"))["hash"] for unit in run.units)
    memory_bytes = run.config.dedup.memory_bytes
    repeated = find_repeated(hashes, num_pieces=sum(counts), memory_bytes=memory_bytes)
    starts = np.concatenate([[0], np.cumsum(counts)])
    bounds = np.searchsorted(repeated, starts)
    files = []
    for unit in run.units:
        dropped = repeated[bounds[unit.index] : bounds[unit.index + 1]] - starts[unit.index]
        files.append(run.folder.write_arrays(run.name("repeats", unit.index, "arrow"), {"piece": dropped}))
    run.folder.commit("repeats", index, facts={"pieces": sum(counts), "repeated": len(repeated)}, files=files)


def _commit_edges(
    run: Run,
    phase: str,
    index: int,
    edges: Edges,
    *,
    rows_per_batch: int | None = None,
    files: Sequence[FileSummary] = (),
) -> None:
    columns: dict[str, Any] = {"first": edges.first, "second": edges.second, "similarity": edges.similarity}
    file = run.folder.write_arrays(run.name(phase, index, "arrow"), columns, rows_per_batch=rows_per_batch)
    run.folder.commit(phase, index, facts={"pairs": len(edges), "capped": edges.num_capped}, files=[file, *files])


def _ids_of(run: Run, duplicates: Duplicates) -> Any:
    """Id of the kept document of each duplicate, an array of strings."""
    kept, places = np.unique(duplicates.kept, return_inverse=True)
    bounds = np.searchsorted(kept, run.starts)
    ids: list[str] = []
    for unit in np.flatnonzero(np.diff(bounds)).tolist():
        rows = kept[bounds[unit] : bounds[unit + 1]] - run.starts[unit]
        path = run.path("prepare", unit, "parquet")
        column = pa.concat_tables(run.work.read(path, columns=["id"]))["id"]
        ids += column.take(pa.array(rows)).to_pylist()
    return np.array(ids, object)[places] if ids else np.array([], object)
