"""Signatures in files: the same pairs as in memory, and a phase reads what it needs and keeps nothing open."""

import io
import random
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from tests.document_tables import documents
from tests.waiting import until
from train.data.dedup import DedupConfig, Deduplicator
from train.data.dedup_edges import SignedDocuments, gather, merge_edges, unit_starts
from train.data.run_folder import RunFolder
from train.data.signed_file import ROWS_PER_BATCH, SignedFile, write_signed

CONFIG = DedupConfig()
VOCABULARY = [f"word{number}" for number in range(2000)]


class CountingStore(pafs.FSSpecHandler):  # type: ignore[misc]
    """An object store that knows how many bytes were read of it."""

    num_bytes = 0

    def open_input_file(self, path: str) -> Any:
        store, file = self, self.fs.open(path, "rb")

        class Counted(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def seekable(self) -> bool:
                return True

            def read(self, size: int = -1) -> bytes:
                data: bytes = file.read(size)
                store.num_bytes += len(data)
                return data

            def seek(self, offset: int, whence: int = 0) -> int:
                return int(file.seek(offset, whence))

            def tell(self) -> int:
                return int(file.tell())

        return pa.PythonFile(Counted(), mode="r")


def texts_of(seed: int, count: int) -> list[str]:
    """Two of five are like another one, or equal to it."""
    generator = random.Random(seed)
    texts = [" ".join(generator.choices(VOCABULARY, k=100)) for _ in range(count)]
    return [texts[i // 2] + " end" * (i % 3) if i % 5 < 2 else text for i, text in enumerate(texts)]


def stored(folder: RunFolder, units: list[SignedDocuments]) -> list[SignedFile]:
    for number, unit in enumerate(units):
        write_signed(folder, f"work/signed/{number}.arrow", [unit])
    return [
        SignedFile(folder, f"work/signed/{number}.arrow", num_documents=len(unit)) for number, unit in enumerate(units)
    ]


def made_up(num_documents: int) -> SignedDocuments:
    generator = np.random.default_rng(1)
    signatures = generator.integers(0, 1 << 32, (num_documents, 128), dtype=np.uint32)
    exact = generator.integers(0, 1 << 60, (num_documents, 2), dtype=np.uint64)
    bands = [exact[:, 0].copy() for _ in range(16)]
    length = np.arange(num_documents)
    return SignedDocuments(signatures, bands, exact, length, np.zeros(num_documents, np.float32))


@pytest.mark.parametrize("location", ["local", "memory://signed/run"])
def test_files_give_the_duplicates_that_memory_gives(location: str, tmp_path: Path) -> None:
    texts = texts_of(1, 120)
    deduplicator = Deduplicator(CONFIG)
    units = [deduplicator.sign(documents(texts[a:b], first=a)) for a, b in ((0, 50), (50, 50), (50, 120))]
    column = pa.chunked_array([pa.array(texts, pa.large_string())])
    folder = RunFolder(str(tmp_path) if location == "local" else location)
    found = []
    for source in (units, stored(folder, units)):
        exact = deduplicator.find_exact(source)
        candidates = merge_edges([deduplicator.find_candidates(source, band, exact=exact) for band in range(16)])
        near = deduplicator.verify(source, candidates, column.take)
        duplicates = deduplicator.decide(source, exact, near)
        found.append([getattr(duplicates, name).tolist() for name in ("document", "kept", "similarity", "is_exact")])
    assert len(found[0][0]) > 20
    assert found[0] == found[1]


def test_a_band_and_a_few_signatures_are_read_without_the_rest_of_an_object_store() -> None:
    unit = made_up(3 * ROWS_PER_BATCH + 5)
    folder = RunFolder("memory://signed/counted")
    (file,) = stored(folder, [unit])
    store = CountingStore(fsspec.filesystem("memory"))
    folder.filesystem = pafs.PyFileSystem(store)
    size_bytes = folder.filesystem.get_file_info(folder.path("work/signed/0.arrow")).size
    assert (file.column("band_3") == unit.bands[3]).all()
    assert store.num_bytes < 8 * len(unit) + size_bytes / 50
    store.num_bytes = 0
    rows = np.array([3, ROWS_PER_BATCH - 1, 3 * ROWS_PER_BATCH + 4])
    assert (file.rows("signatures", rows) == unit.signatures[rows]).all()
    assert store.num_bytes < 512 * (ROWS_PER_BATCH + 5) + size_bytes / 50


def mapped(folder: Path) -> set[str]:
    """Files of a folder in the memory of this process."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return {line.split()[-1] for line in lines if str(folder) in line}


def test_no_file_stays_mapped(tmp_path: Path) -> None:
    units = [made_up(3) for _ in range(40)]
    files = stored(RunFolder(str(tmp_path)), units)
    numbers = np.arange(120)
    signatures = gather(files, numbers, unit_starts(files), "signatures")
    loaded = files[7].load()
    assert (signatures[21:24] == loaded.signatures).all()
    until(lambda: len(mapped(tmp_path)) <= 1)  # what `loaded` holds; Arrow's own threads let go some milliseconds later
    assert (loaded.signatures == units[7].signatures).all()
