"""A version's bundle: the manifest whose hash is the version's name, and the folder that holds manifest and adapter.

In: hashes of everything that made the version. Out: `v-` and 16 hex digits, and a folder that never changes again:
the files of its adapter or full weights and manifest.json {format, version_id, bundle, files: {name: sha256}}, all read-only.
The manifest is written last (write, fsync, rename), so a folder without one is not a bundle.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict

from autonomous.versions.audit import canonical_json, sha256_of
from train.files import sync_path

MANIFEST_NAME = "manifest.json"
FORMAT = 1
"""Of manifest.json; a newer one is refused."""
READ_ONLY = 0o444
CACHE_NAME = "autonomous-manifest.json"
"""What train.model.embedded keeps in a model's folder and may write anew: hashes of the other files, so nothing of its own."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""What decides how text becomes tokens in a Hugging Face folder, chat template included."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class BundleProblem(ValueError):
    """The folder is not the bundle that it should be: says which file, what was expected and what was found."""


@with_config(ConfigDict(extra="forbid"))
class DataDigest(TypedDict):
    """What a version was trained on: digests of the ids (`digest_of`) and their counts."""

    episodes_sha256: Sha256
    replay_sha256: Sha256
    num_episodes: int
    num_replay: int


class Bundle(BaseModel):
    """Everything that made a version. Two runs with equal manifests made the same version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_sha256: Sha256
    """Of the frozen base model's folder."""
    adapter_sha256: Sha256 | None
    """Of the adapter's weights and configuration (train.adapt.lora.adapter_sha256); None for the frozen original and for full
    weights."""
    weights_sha256: Sha256 | None = None
    """Of a model of its own in the folder (train.adapt.weights.hash_weights); left out of the manifest, and so of the name, if
    there is none."""
    tokenizer_sha256: Sha256
    code_sha256: Sha256
    """Of the source that trained it."""
    config: dict[str, Any]
    """The resolved learning configuration, seed included."""
    data: DataDigest
    parent: str | None
    """Version id of the version it was trained on top of; None for the frozen original."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if self.adapter_sha256 is not None and self.weights_sha256 is not None:
            raise ValueError(
                "adapter_sha256 and weights_sha256 are both given: a version is an adapter or full weights"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        if self.weights_sha256 is None:
            written.pop("weights_sha256", None)
        return written


def kind_of(manifest: Mapping[str, Any] | None) -> Literal["adapter", "weights"]:
    """What the folder of a version with this manifest holds: AdapterRef.kind."""
    return "adapter" if manifest is None or manifest.get("weights_sha256") is None else "weights"


def digest_of(ids: Iterable[str]) -> str:
    """Hash of a set of ids, whatever their order: hex SHA-256."""
    return sha256_of(sorted(set(ids)))


def version_id_of(bundle: Bundle | dict[str, Any]) -> str:
    """The version's name: `v-` and the first 16 hex digits of the hash of the manifest's canonical JSON."""
    return f"v-{sha256_of(bundle.model_dump(mode='json') if isinstance(bundle, Bundle) else bundle)[:16]}"


def base_bundle(base_folder: Path, *, code_sha256: str) -> Bundle:
    """The manifest of the frozen original. Raises ModelFolderProblem for a folder that is not a whole model."""
    from train.model.embedded import check_model_folder

    return Bundle(
        base_sha256=check_model_folder(base_folder).sha256,
        adapter_sha256=None,
        tokenizer_sha256=hash_tokenizer(base_folder),
        code_sha256=code_sha256,
        config={},
        data={"episodes_sha256": digest_of(()), "replay_sha256": digest_of(()), "num_episodes": 0, "num_replay": 0},
        parent=None,
    )


def hash_tokenizer(folder: Path) -> str:
    """Hash of the tokenizer's files in a Hugging Face folder. Raises BundleProblem if there is none."""
    hashes = {name: _hash_file(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
    if not hashes:
        raise BundleProblem(f"folder {folder} has no tokenizer ({', '.join(TOKENIZER_FILES)}): copy the model's there")
    return sha256_of(hashes)


def write_bundle(folder: Path, bundle: Bundle) -> str:
    """Make the folder, which already holds the version's weights, the bundle of this manifest; returns the version id.

    Every file is fsynced and made read-only; the manifest comes last. Writing the same bundle again changes nothing.
    Raises: BundleProblem if the weights are not those that the manifest names, or if another bundle is there.
    """
    version_id = version_id_of(bundle)
    if (folder / MANIFEST_NAME).exists():
        load_bundle(folder, version_id=version_id)
        return version_id
    _check_weights(folder, bundle)
    for leftover in folder.glob(f".{MANIFEST_NAME}.*"):  # of a writer that was killed before its rename
        leftover.unlink()
    files = _hash_files(folder)
    for name in files:
        sync_path(folder / name)
        (folder / name).chmod(READ_ONLY)
    manifest = {"format": FORMAT, "version_id": version_id, "bundle": bundle.model_dump(mode="json"), "files": files}
    temporary = folder / f".{MANIFEST_NAME}.{os.getpid()}"
    temporary.write_text(canonical_json(manifest) + "\n", encoding="utf-8")
    temporary.chmod(READ_ONLY)
    sync_path(temporary)
    temporary.replace(folder / MANIFEST_NAME)
    sync_path(*(path for path in folder.rglob("*") if path.is_dir()), folder)
    sync_path(folder.parent)
    return version_id


def load_bundle(folder: Path, *, version_id: str | None = None) -> Bundle:
    """Read a bundle and verify every file against the manifest, and the manifest against its name.

    `version_id` is the name that the ledger knows. Raises: BundleProblem.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_text("utf-8"))
        if manifest["format"] > FORMAT:
            raise BundleProblem(
                f"{path} has format {manifest['format']}, this program knows {FORMAT}: upgrade the program"
            )
        bundle = Bundle.model_validate(manifest["bundle"])
        named, files = str(manifest["version_id"]), dict(manifest["files"])
    except BundleProblem:
        raise
    except FileNotFoundError as error:
        raise BundleProblem(
            f"folder {folder} has no {MANIFEST_NAME}: it is not a bundle, train the version again"
        ) from error
    except (ValidationError, ValueError, TypeError, KeyError) as error:
        raise BundleProblem(f"{path} is damaged ({error}): restore it from a copy, or roll back") from error
    found_id = version_id_of(bundle)
    if found_id != named or (version_id is not None and found_id != version_id):
        raise BundleProblem(
            f"{path} was altered: its content names {found_id}, expected {version_id or named}. "
            "Restore it from a copy, or roll back"
        )
    found = _hash_files(folder)
    for name in sorted({*files, *found}):
        if files.get(name) != found.get(name):
            raise BundleProblem(
                f"file {folder / name} of {found_id} was altered: sha256 is {found.get(name, 'none, it is missing')}, "
                f"expected {files.get(name, 'no such file')}. Restore it from a copy, or roll back"
            )
    _check_weights(folder, bundle)
    return bundle


def _check_weights(folder: Path, bundle: Bundle) -> None:
    if bundle.adapter_sha256 is not None:
        from train.adapt.lora import adapter_sha256

        what, found, expected = "adapter", adapter_sha256(folder), bundle.adapter_sha256
    elif bundle.weights_sha256 is not None:
        from train.adapt.weights import hash_weights

        what, found, expected = "model", hash_weights(folder), bundle.weights_sha256
    else:
        return
    if found != expected:
        raise BundleProblem(
            f"the {what} in {folder} has sha256 {found}, the manifest says {expected}: "
            "it was changed after training, train the version again"
        )


def _hash_files(folder: Path) -> dict[str, str]:
    """Relative name -> hash of every file but manifest and caches. Raises BundleProblem for links: their target may change."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise BundleProblem(f"{path} is a link: a bundle holds its files itself, copy the file there")
        if path.is_file() and name != MANIFEST_NAME and path.name != CACHE_NAME:
            hashes[name] = _hash_file(path)
    return hashes


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
