"""The files of a checkpoint, and what they say.

step-00000200-<attempt>/rank-00000.safetensors   the pieces that rank 0 saved, one tensor each
                        rank-00000.json          which box of which logical tensor each is; rank 0's own state
                        pieces.npz               all these boxes in one table, for those who load
                        manifest.json            all files by size and SHA-256, and the state that ranks share; comes last
                        failed.txt               why this save was given up, by the rank that found out first

A folder is a checkpoint if and only if it holds a manifest that is whole: the manifest carries its own hash, the hashes of
the files, and appears by a rename after all of them are on disk. No pickle is written or read.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from train.files import sync_path
from train.pretrain.pieces import Box

VERSION = 2
MANIFEST_NAME = "manifest.json"
TABLE_NAME = "pieces.npz"
FAILED_NAME = "failed.txt"
FOLDER_PATTERN = re.compile(r"step-(\d{8,})-([A-Za-z0-9]+)(\.\d+)?")
"""Step, attempt, and the number of the save where the attempt saved that step before."""
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""safetensors' names of what can be saved."""


class CheckpointError(RuntimeError):
    """A checkpoint that was not written, or cannot be read: names the file, what is wrong, and the fix."""


class DamagedFile(CheckpointError):
    """A file of a checkpoint that is missing, cut off or altered."""


class TakenOver(CheckpointError):
    """Another attempt of the run has begun in the same folder: this one may neither commit nor delete there."""


class UnknownVersion(CheckpointError):
    """A manifest of another version of this package."""


class PieceEntry(BaseModel):
    """One tensor of a rank's safetensors file: a box of a logical tensor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """Its name in the file."""
    kind: str
    """See TensorPiece."""
    name: str
    """See TensorPiece."""
    shape: tuple[int, ...]
    """Of the whole logical tensor."""
    offsets: tuple[int, ...]
    """Where it begins there."""
    extent: tuple[int, ...]
    """Its own shape."""
    dtype: str
    """safetensors' name."""

    @property
    def box(self) -> Box:
        """Where in the logical tensor."""
        return self.offsets, self.extent


class FileEntry(BaseModel):
    """A file of the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Within the folder."""
    size_bytes: int
    """Its size."""
    sha256: str
    """Of all of it."""


class RankIndex(BaseModel):
    """rank-00000.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int
    """That saved it."""
    tensors: FileEntry
    """Its safetensors file."""
    pieces: tuple[PieceEntry, ...]
    """In that file."""
    own: dict[str, Any]
    """State that no other rank has, such as random states."""


class Manifest(BaseModel):
    """manifest.json, without its hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    """Of this format."""
    sequence: int
    """How many checkpoints were committed before it in this run: the last committed one is the latest, whatever its step."""
    step: int
    """Optimizer steps that it holds."""
    attempt: str
    """The attempt of the run that wrote it."""
    world_size: int
    """Ranks that wrote it."""
    created_at: float
    """Unix seconds."""
    files: tuple[FileEntry, ...]
    """Index and tensors of rank 0, of rank 1, ...; the table."""
    shared: dict[str, Any]
    """State that all ranks have."""


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A committed checkpoint."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.name

    @property
    def step(self) -> int:
        """Optimizer steps that it holds."""
        return self.manifest.step

    @property
    def size_bytes(self) -> int:
        """Of the files that the manifest names."""
        return sum(file.size_bytes for file in self.manifest.files)

    @property
    def is_complete(self) -> bool:
        """Whether all files are there in their size; their bytes are not read."""
        paths = [(self.folder / file.name, file.size_bytes) for file in self.manifest.files]
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def piece_key(kind: str, name: str, offsets: tuple[int, ...]) -> str:
    """Of a piece in its rank's file."""
    return f"{kind}/{name}@{','.join(map(str, offsets))}"


def tensors_name(rank: int) -> str:
    """Of a rank's tensors."""
    return f"rank-{rank:05d}.safetensors"


def index_name(rank: int) -> str:
    """Of the index of them."""
    return f"rank-{rank:05d}.json"


def write_durably(path: Path, data: bytes) -> FileEntry:
    """A file that is whole or absent, also after a power cut."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_path(path.parent)
    return FileEntry(name=path.name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Makes the folder a checkpoint."""
    write_durably(folder / MANIFEST_NAME, _manifest_bytes(manifest.model_dump()))


def _manifest_bytes(values: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return (json.dumps(values | {"sha256": digest}, indent=1, sort_keys=True) + "\n").encode()


def read_manifest(folder: Path) -> Manifest | None:
    """None if the folder has none. Raises UnknownVersion, or DamagedFile for one that is not as it was written."""
    path = folder / MANIFEST_NAME
    altered = f"{path} is not as it was written"
    try:
        data = path.read_bytes()
        values = json.loads(data)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise DamagedFile(altered) from error
    if not isinstance(values, dict):
        raise DamagedFile(altered)
    if values.get("version") != VERSION:
        raise UnknownVersion(
            f"{path} has version {values.get('version')!r}, known here is {VERSION}: install the version of this package that "
            "wrote it, or move the folder away to resume from another checkpoint"
        )
    values.pop("sha256", None)
    if _manifest_bytes(values) != data:
        raise DamagedFile(altered)
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        raise DamagedFile(altered) from error


def read_index(info: CheckpointInfo, rank: int) -> RankIndex:
    """A rank's index, checked against the manifest. Raises DamagedFile."""
    return RankIndex.model_validate_json(read_file(info.folder, info.manifest.files[2 * rank]))


def read_file(folder: Path, entry: FileEntry) -> bytes:
    """All of a file. Raises DamagedFile if it is not as it was written."""
    path = folder / entry.name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read ({error.strerror})") from error
    check_bytes(path, entry, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return data


def check_file(folder: Path, entry: FileEntry) -> None:
    """As `read_file`, for one of any size: nothing of it is kept."""
    path = folder / entry.name
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            is_read = size_bytes == entry.size_bytes
            sha256 = hashlib.file_digest(file, "sha256").hexdigest() if is_read else ""
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read ({error.strerror})") from error
    check_bytes(path, entry, size_bytes=size_bytes, sha256=sha256)


def check_bytes(path: Path, entry: FileEntry, *, size_bytes: int, sha256: str) -> None:
    """Raises DamagedFile naming what was expected."""
    if size_bytes != entry.size_bytes:
        raise DamagedFile(f"{path} has {size_bytes} bytes, expected are {entry.size_bytes}: it is cut off or replaced")
    if sha256 != entry.sha256:
        raise DamagedFile(f"{path} has SHA-256 {sha256}, expected is {entry.sha256}: its bytes were altered")
