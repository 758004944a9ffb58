"""Where data lies: a local path or a URI becomes a pyarrow filesystem and a path in it.

In: "out/tokens", "s3://bucket/web", "gs://...", "hdfs://..." (pyarrow's own), or any other scheme that fsspec knows, such as
"memory://" or "abfs://". Out: readers and writers. A file appears under its name only when it is whole.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from train.files import sync_path

PARTIAL = ".partial-"
"""Mark of a file that is being written; `remove_partials` clears what a killed process left."""


def resolve(location: str | Path) -> tuple[pafs.FileSystem, str]:
    """(filesystem, path in it). Raises ValueError if no library here knows the URI's scheme."""
    text = os.fspath(location)
    if "://" not in text:
        return pafs.LocalFileSystem(), str(Path(text).expanduser().resolve())
    try:
        filesystem, path = pafs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, ValueError):
        import fsspec

        try:
            other, path = fsspec.url_to_fs(text)
        except (ValueError, ImportError) as error:
            raise ValueError(
                f"{text}: no file system for its scheme ({error}); give a local path or a URI such as s3://bucket/folder"
            ) from error
        filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(other))
    return filesystem, path


@contextlib.contextmanager
def open_atomically(filesystem: pafs.FileSystem, path: str) -> Iterator[Any]:
    """A binary output file that gets its name when the block ends well, and leaves nothing when it does not.

    Local files are forced to disk first. Elsewhere the file is moved: an object store, whose streams give even a broken-off
    upload its name, copies it.
    """
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    partial = f"{path}{PARTIAL}{uuid.uuid4().hex[:8]}"
    try:
        with filesystem.open_output_stream(partial, compression=None) as file:  # else by the suffix
            yield file
    except BaseException:
        with contextlib.suppress(OSError):
            filesystem.delete_file(partial)
        raise
    if isinstance(filesystem, pafs.LocalFileSystem):
        sync_path(Path(partial))
        os.replace(partial, path)
        sync_path(Path(path).parent)
    else:
        filesystem.move(partial, path)


def remove_partials(filesystem: pafs.FileSystem, folder: str) -> int:
    """Delete what killed processes left in this folder; the number of files. Nobody else may be writing there."""
    found = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True, recursive=True))
    partials = [info.path for info in found if info.is_file and PARTIAL in info.base_name]
    for path in partials:
        filesystem.delete_file(path)
    return len(partials)
