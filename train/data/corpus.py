"""The default corpus: documentation that every installation has, written as files.

In: the standard library's `pydoc_data.topics` and the metadata of the installed packages (Name, Version, Summary and
License first, then the README). Out: a folder `language/<topic>.txt`, `packages/<name>.md` and MANIFEST.json with name,
version and sha256 of each file. The same installation gives the same bytes; a file that did not change is not touched.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any, NamedTuple

from train.data.document import MANIFEST_NAME

MAX_README_BYTES = 6_000
OWN_NAME = "autonomous-learning"
MANIFEST_VERSION = 1


class _Page(NamedTuple):
    path: str
    name: str
    version: str
    text: str


def write_default_corpus(folder: Path) -> Path:
    """Write or refresh the corpus and return its folder. Pages of packages that are gone are removed.

    Raises: ValueError if the installation has no documentation at all.
    """
    folder = Path(folder)
    pages = [*_python_topics(), *_package_pages()]
    if not pages:
        raise ValueError(f"no documentation was found to write to {folder}: give a folder of documents with --source")
    files = []
    for page in sorted(pages):
        data = page.text.encode()
        _write_if_changed(folder / page.path, data)
        files.append(
            {"path": page.path, "name": page.name, "version": page.version, "sha256": hashlib.sha256(data).hexdigest()}
        )
    for path in _pages_of(folder / MANIFEST_NAME) - {page.path for page in pages}:
        (folder / path).unlink(missing_ok=True)
    manifest = {"manifest_version": MANIFEST_VERSION, "files": files}
    _write_if_changed(folder / MANIFEST_NAME, (json.dumps(manifest, indent=1) + "\n").encode())
    return folder


def _python_topics() -> Iterator[_Page]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions split it off
        return
    for topic, text in sorted(topics.items()):
        yield _Page(f"language/{_file_name(topic)}.txt", topic, platform.python_version(), text.strip() + "\n")


def _package_pages() -> Iterator[_Page]:
    """One page for each installed package that says something about itself; the first on the path counts."""
    seen = {OWN_NAME}
    for distribution in importlib.metadata.distributions():
        metadata: Any = distribution.metadata
        name = metadata.get("Name") or ""
        key = re.sub(r"[-_.]+", "-", name).lower()
        if not name or key in seen:
            continue
        seen.add(key)
        text = _describe(distribution)
        if text:
            yield _Page(f"packages/{_file_name(key)}.md", name, distribution.version, text)


def _describe(distribution: Distribution) -> str:
    metadata: Any = distribution.metadata
    # Once the package importlib-metadata was imported, [] raises KeyError; .get does not.
    summary = (metadata.get("Summary") or "").strip()
    payload = metadata.get_payload()
    readme = str(payload or metadata.get("Description") or "").strip()
    if not summary and not readme:
        return ""
    licence = metadata.get("License-Expression") or (metadata.get("License") or "").strip().partition("\n")[0]
    if not licence:
        classifiers = metadata.get_all("Classifier") or []
        licence = next((text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License ::")), "")
    headers = {"Name": metadata["Name"], "Version": distribution.version, "Summary": summary, "License": licence}
    head = "\n".join(f"{key}: {value}" for key, value in headers.items() if value)
    title = f"# {metadata['Name']}"  # README headings such as "Introduction" would name the page badly
    text = f"{title}\n\n{head}\n\n{_cut(readme.replace(chr(13), ''), max_bytes=MAX_README_BYTES)}".strip() + "\n"
    return text.encode("utf-8", "replace").decode()


def _cut(text: str, *, max_bytes: int) -> str:
    """At most so many bytes of UTF-8, ending with a paragraph if there is one, else with a line."""
    data = text.encode("utf-8", "replace")
    if len(data) <= max_bytes:
        return text
    cut = data[:max_bytes].decode("utf-8", "ignore")
    end = max(cut.rfind("\n\n"), 0) or max(cut.rfind("\n"), 0) or len(cut)
    return cut[:end]


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "_"


def _pages_of(manifest: Path) -> set[str]:
    """Pages of an earlier run: only names that this module writes, whatever the file says."""
    try:
        rows = json.loads(manifest.read_text("utf-8"))["files"]
        paths = {str(row["path"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {path for path in paths if re.fullmatch(r"(?:python|packages)/[A-Za-z0-9_-][A-Za-z0-9._-]*", path)}


def _write_if_changed(path: Path, data: bytes) -> None:
    if path.exists() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)
