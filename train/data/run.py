"""Run: what every job of a run needs, whichever process runs it.

In: the folder that the plan was written to. Out: the configuration, the units, the storages, and the files of earlier phases.
"""

import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from train.data.clean import DataCleaner
from train.data.config import PipelineConfig
from train.data.decontaminate import Contamination
from train.data.dedup import Deduplicator, mark_duplicates
from train.data.dedup_edges import Edges, Numbers
from train.data.dedup_index import DedupIndex
from train.data.packing import ShardPlan, plan_shards
from train.data.pii import ALL_KINDS
from train.data.run_folder import PLAN_NAME, WORK, RunFolder, RunMismatch
from train.data.signed_file import SignedFile
from train.data.source_config import SourceConfig
from train.data.storage import ParquetConfig, ParquetStorage
from train.data.tokenizer import Encoder
from train.data.units import Unit

TOKENIZER_FOLDER = "tokenizer"
WORK_ROWS = 128
"""Rows of a row group of a work file: little is read for the text of one document."""


class Run:
    """What every job of a run needs, made once per process."""

    def __init__(self, location: str) -> None:
        self.folder = RunFolder(location)
        plan = self.folder.read_plan()
        if plan is None:
            raise FileNotFoundError(f"{location} has no {PLAN_NAME}: start the run with `autonomous data run`")
        self.id = self.folder.run_id = str(plan["run_id"])
        self._known_segments = list(plan["index"])
        self.config = PipelineConfig.model_validate(plan["config"] | {"output": location})
        self.units = [Unit.from_json(row) for row in plan["units"]]
        self.deduplicator = Deduplicator(self.config.dedup)
        self.work = ParquetStorage(self.folder.filesystem, config=ParquetConfig(rows_per_group=WORK_ROWS))
        self.output = ParquetStorage(self.folder.filesystem)

    def cleaner_of(self, unit: int) -> DataCleaner:
        """Books are main content from cover to cover: looking for it loses lists and headings."""
        config = self.config.clean
        is_book = self.source_of(unit).kind == "book"
        return DataCleaner(config.model_copy(update={"main_content": False}) if is_book else config, kinds=ALL_KINDS)

    @functools.cached_property
    def contamination(self) -> Contamination | None:
        if not self.config.evaluation_sets:
            return None
        return Contamination.load(self.folder.filesystem, self.path("evaluation", 0, "arrow"))

    @functools.cached_property
    def index(self) -> DedupIndex | None:
        """Documents of earlier runs."""
        path = self.config.index.path
        return DedupIndex.open(path, self.config.dedup, pinned=self._known_segments) if path else None

    @functools.cached_property
    def signed(self) -> list[SignedFile]:
        """What deduplication knows of each unit's documents; nothing of it is loaded."""
        counts = np.diff(self.starts).tolist()
        return [
            SignedFile(self.folder, self.name("signed", unit.index, "arrow"), num_documents=count)
            for unit, count in zip(self.units, counts, strict=True)
        ]

    @functools.cached_property
    def starts(self) -> Numbers:
        """The number of each unit's first document, and at the end the number of documents. The job of `exact` writes them."""
        return self.folder.read_arrays(self.name("starts", 0, "arrow"))["start"]

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The run's tokenizer, checked once per process."""
        with self.folder.filesystem.open_input_file(self.folder.path(f"{TOKENIZER_FOLDER}/tokenizer.json")) as file:
            content = file.read()
        folder = tempfile.mkdtemp(prefix="tokenizer-")
        try:
            Path(folder, "tokenizer.json").write_bytes(content)
            self._copy_config(folder)
            return Encoder.open(Path(folder), backend=self.config.tokenizer.backend)
        finally:
            shutil.rmtree(folder)

    @functools.cached_property
    def shard_plans(self) -> list[ShardPlan]:
        """What each shard holds. Needs all units finished."""
        packing = self.config.packing
        return plan_shards(
            self.stream_lengths, sequence_length=packing.sequence_length,
            sequences_per_shard=packing.sequences_per_shard, tail=packing.tail,
        )  # fmt: skip

    @property
    def num_stream_tokens(self) -> int:
        """Tokens of all units' streams, fill between documents included."""
        return sum(self.stream_lengths)

    @property
    def num_inner_fill(self) -> int:
        """Fill between documents."""
        documents = [int(self.facts("finish", unit.index)["tokens_out"]) for unit in self.units]
        return self.num_stream_tokens - sum(documents)

    @functools.cached_property
    def stream_lengths(self) -> list[int]:
        """Tokens of each unit's stream."""
        return [int(self.facts("finish", unit.index)["stream"]) for unit in self.units]

    def facts(self, phase: str, index: int) -> dict[str, Any]:
        """What a finished job committed. Raises RunMismatch if it is not done."""
        found = self.folder.record(phase, index)
        if found is None:
            raise RunMismatch(
                f"{self.folder.location}: job {index} of {phase} is not done, or its files are gone: run again"
            )
        return found

    def source_of(self, unit: int) -> SourceConfig:
        """The source that a unit belongs to."""
        return next(source for source in self.config.sources if source.name == self.units[unit].source)

    def name(self, phase: str, index: int, suffix: str) -> str:
        """Name of a work file."""
        return f"{WORK}/{phase}/{index:06d}.{suffix}"

    def path(self, phase: str, index: int, suffix: str) -> str:
        """Path of a work file in its file system."""
        return self.folder.path(self.name(phase, index, suffix))

    def read_edges(self, phase: str, index: int) -> Edges:
        """Pairs that a job wrote."""
        arrays = self.folder.read_arrays(self.name(phase, index, "arrow"))
        return Edges(arrays["first"], arrays["second"], arrays["similarity"])

    def read_texts(self, documents: Numbers) -> pa.ChunkedArray:
        """Texts of prepared documents, given by their numbers in ascending order."""
        bounds = np.searchsorted(documents, self.starts)
        found = []
        for unit in np.flatnonzero(np.diff(bounds)).tolist():
            rows = documents[bounds[unit] : bounds[unit + 1]] - self.starts[unit]
            for group in np.unique(rows // WORK_ROWS).tolist():
                path = self.path("prepare", unit, "parquet")
                table = pa.concat_tables(self.work.read(path, columns=["text"], row_groups=[group]))
                found.append(table["text"].take(rows[rows // WORK_ROWS == group] - group * WORK_ROWS).combine_chunks())
        return pa.chunked_array(found, pa.large_string())

    def read_marked(self, unit: int) -> Iterator[pa.Table]:
        """Prepared documents of a unit; duplicates carry their reason."""
        arrays = self.folder.read_arrays(self.name("duplicates", unit, "arrow"))
        start = 0
        for table in self.work.read(self.path("prepare", unit, "parquet")):
            part = slice(*np.searchsorted(arrays["row"], [start, start + len(table)]))
            rows, ids = arrays["row"][part] - start, arrays["kept_id"][part].tolist()
            yield mark_duplicates(table, rows, ids, arrays["similarity"][part], arrays["is_exact"][part])
            start += len(table)

    def _copy_config(self, folder: str) -> None:
        name = "tokenizer_config.json"
        path = self.folder.path(f"{TOKENIZER_FOLDER}/{name}")
        if self.folder.filesystem.get_file_info(path).is_file:
            with self.folder.filesystem.open_input_file(path) as file:
                Path(folder, name).write_bytes(file.read())
