"""What a finished run leaves: manifest.json, report.json, report.html, losses.jsonl.

In: the commit records of a run whose jobs are all done. Out: the results; the manifest comes last and says that the run is
finished. Its rows name every file with size and SHA-256, and the token shards with their sequences and their source, which is
what StreamingDataLoader reads.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from train.data.dedup_edges import SignedDocuments
from train.data.dedup_index import DedupIndex
from train.data.report import HTML_NAME, JSON_NAME, PipelineReport, build_report, render_html
from train.data.run import Run
from train.data.run_folder import WORK, RunFolder, RunMismatch
from train.data.stored_file import open_hashed

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1
LOSSES_NAME = "losses.jsonl"


def read_manifest(folder: RunFolder) -> PipelineReport | None:
    """The report of a finished run, None if it is not finished. Raises RunMismatch if a file is gone or has another size."""
    manifest = folder.read_json(MANIFEST_NAME)
    if manifest is None:
        return None
    rows = manifest["files"]
    found = folder.filesystem.get_file_info([folder.path(row["path"]) for row in rows])
    for info, row in zip(found, rows, strict=True):
        if not info.is_file or info.size != row["size_bytes"]:
            raise RunMismatch(
                f"{folder.location}: {row['path']} is missing or has another size than the manifest says: delete "
                f"{MANIFEST_NAME} and run again, or --restart"
            )
    return PipelineReport.model_validate(folder.read_json(JSON_NAME))


def write_results(run: Run) -> PipelineReport:
    """Write what is missing, remember the run's documents in its index, and last write the manifest."""
    folder = run.folder
    records = {phase: [run.facts(phase, unit.index) for unit in run.units] for phase in ("prepare", "finish")}
    layout = run.facts("layout", 0)
    duplicates = run.facts("duplicates", 0) | {
        "candidates": run.facts("candidates", 0)["pairs"],
        "capped": sum(run.facts("band", band)["capped"] for band in range(run.config.dedup.minhash.num_bands)),
        "capped_in_index": sum(facts.get("capped_in_index", 0) for facts in records["prepare"]),
    }
    report = build_report(
        config_sha256=run.config.sha256(),
        sources=[(source.name, source.kind) for source in run.config.sources],
        units=[
            (unit.source, unit.size_bytes, records["prepare"][unit.index], records["finish"][unit.index])
            for unit in run.units
        ],
        duplicates=duplicates,
        packing=layout,
    )
    files = [
        row for unit in run.units for row in folder.files_of("finish", unit.index) if not row[0].startswith(f"{WORK}/")
    ]
    shards = [folder.files_of("pack", shard)[0] for shard in range(layout["shards"])]
    files += [*folder.files_of("tokenizer", 0), *shards, *_write_pages(run, report)]
    sequences = [run.facts("pack", shard)["sequences"] for shard in range(layout["shards"])]
    manifest = {
        "version": MANIFEST_VERSION,
        "config": run.config.written(),
        "config_sha256": run.config.sha256(),
        "inputs": [
            {"source": unit.source, "paths": list(unit.paths), "start": unit.start, "stop": unit.stop,
             "size_bytes": unit.size_bytes, "fingerprint": unit.fingerprint} for unit in run.units
        ],
        "files": [_row(file) for file in sorted(files)],
        "token_shards": [
            {"path": path.removeprefix("tokens/"), "num_sequences": number, "sha256": sha256, "source": source}
            for (path, _, sha256), number, source in zip(shards, sequences, _sources_of(run), strict=True)
        ],
    }  # fmt: skip
    _remember(run)
    folder.write_json(f"tokens/{MANIFEST_NAME}", {"token_shards": manifest["token_shards"]})
    folder.write_json(MANIFEST_NAME, manifest)
    return report


def _sources_of(run: Run) -> list[str]:
    """The source that most tokens of each shard come from."""
    found = []
    for plan in run.shard_plans:
        tokens: Counter[str] = Counter()
        for piece in plan.pieces:
            tokens[run.units[piece.unit].source] += piece.stop - piece.start
        found.append(tokens.most_common(1)[0][0])
    return found


def _write_pages(run: Run, report: PipelineReport) -> list[tuple[str, int, str]]:
    written = []
    pages = {
        JSON_NAME: report.model_dump_json(indent=1).encode() + b"\n",
        HTML_NAME: render_html(report).encode(),
    }
    for name, data in pages.items():
        with open_hashed(run.folder.filesystem, run.folder.path(name)) as file:
            file.write(data)
        summary = file.summary(name, num_items=1)
        written.append((name, summary.size_bytes, summary.sha256))
    with open_hashed(run.folder.filesystem, run.folder.path(LOSSES_NAME)) as file:
        for unit in run.units:
            with run.folder.filesystem.open_input_stream(run.path("losses", unit.index, "jsonl")) as part:
                while chunk := part.read(1 << 20):
                    file.write(chunk)
    summary = file.summary(LOSSES_NAME, num_items=report.losses)
    return [*written, (LOSSES_NAME, summary.size_bytes, summary.sha256)]


def _remember(run: Run) -> None:
    """Later runs with the same index find this run's documents."""
    if run.index is None:
        return
    assert run.config.index.path is not None
    index = DedupIndex.open(run.config.index.path, run.config.dedup)
    index.add_run(run.id, (_kept_documents(run, unit.index) for unit in run.units))


def _kept_documents(run: Run, unit: int) -> tuple[SignedDocuments, list[str]]:
    """What deduplication knows of a unit's documents that stayed, and their ids."""
    marked = list(run.read_marked(unit))
    names = [name for table in marked for name in table["id"].to_pylist()]
    stays = [not reasons for table in marked for reasons in table["reasons"].to_pylist()]
    audit = run.output.read(run.folder.path(f"audit/part-{unit:06d}.parquet"), columns=["id"])
    dropped = {name for table in audit for name in table["id"].to_pylist()}  # by line deduplication too
    rows = [row for row, is_kept in enumerate(stays) if is_kept and names[row] not in dropped]
    return run.signed[unit].load().select(np.array(rows, np.int64)), [names[row] for row in rows]


def _row(file: tuple[str, int, str]) -> Mapping[str, Any]:
    path, size_bytes, sha256 = file
    return {"path": path, "size_bytes": size_bytes, "sha256": sha256}
