"""RunFolder: what a run has finished, so that a killed one goes on where it stood.

A run is a set of jobs in phases. A job writes its files under names that only it uses, each atomically, and then its commit
record: a JSON file with the facts of the job and the size and SHA-256 of its files. What has a record is done; what has none
is done again and gives the same bytes. `plan.json`, written first, says what the jobs are; a folder whose plan is another one
is refused. The layout is the same on every file system.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs

from train.data.filesystem import PARTIAL, open_atomically, remove_partials, resolve
from train.data.stored_file import FileSummary, open_hashed

PLAN_NAME = "plan.json"
PLAN_VERSION = 2
WORK = "work"


class RunMismatch(ValueError):
    """The folder holds another run, or a damaged one."""


class RunFolder:
    """The files of one run."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.filesystem, self.root = resolve(location)
        self.run_id = ""
        """Of the plan; records of another run, which a late worker may write, do not count."""

    def path(self, name: str) -> str:
        """Where a file of the run lies in its file system."""
        return f"{self.root}/{name}"

    def begin(self, plan: Mapping[str, Any], *, restart: bool = False) -> bool:
        """Write the plan, or find it there (True: the run goes on). Raises RunMismatch if another one is there."""
        self.run_id = str(plan["run_id"])
        known = self.read_plan()
        if known is not None and not restart:
            different = differences(known, plan)
            if different:
                raise RunMismatch(
                    f"{self.location} holds a run that differs in {', '.join(different[:5])}: give another output, or "
                    "--restart to delete it and begin anew"
                )
            remove_partials(self.filesystem, self.root)
            return True
        if self.filesystem.get_file_info(self.root).is_file:
            raise RunMismatch(f"{self.location} is a file: give a folder")
        found = self.filesystem.get_file_info(pafs.FileSelector(self.root, allow_not_found=True))
        strangers = [info.base_name for info in found if PARTIAL not in info.base_name]
        if known is None and strangers:
            raise RunMismatch(
                f"{self.location} is not empty and holds no run ({strangers[0]}, ...): give a new or an empty folder"
            )
        for info in found:  # the old plan goes last: with it the folder is a run's at any moment
            if info.type == pafs.FileType.Directory:
                self.filesystem.delete_dir(info.path)
            elif info.base_name != PLAN_NAME:
                self.filesystem.delete_file(info.path)
        self.write_json(PLAN_NAME, plan)
        return False

    def read_plan(self) -> dict[str, Any] | None:
        """The plan of the run that is here, None if there is none. Raises RunMismatch for another version's."""
        plan = self.read_json(PLAN_NAME, fix="remove the folder, or give another output")
        if plan is not None and plan.get("version") != PLAN_VERSION:
            raise RunMismatch(
                f"{self.location}/{PLAN_NAME} has version {plan.get('version')}, this program reads {PLAN_VERSION}: "
                "finish the run with the program that began it, or give another output"
            )
        return plan

    def read_json(self, name: str, *, fix: str = "delete the file, its job runs again") -> dict[str, Any] | None:
        """A JSON object, None if the file is not there. Raises RunMismatch if it is none."""
        try:
            with self.filesystem.open_input_stream(self.path(name)) as file:
                value = json.loads(file.read())
        except FileNotFoundError:
            return None
        except (ValueError, pa.ArrowInvalid) as error:
            raise RunMismatch(f"{self.location}/{name} is damaged ({error}): {fix}") from error
        if not isinstance(value, dict):
            raise RunMismatch(f"{self.location}/{name} holds no JSON object: {fix}")
        return value

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """The same value gives the same bytes."""
        with open_atomically(self.filesystem, self.path(name)) as file:
            file.write(dump_json(value))

    def commit(self, phase: str, index: int, *, facts: Mapping[str, Any], files: Iterable[FileSummary] = ()) -> None:
        """Say that a job is done. Its files are whole by now."""
        rows = [[one.path.removeprefix(f"{self.root}/"), one.size_bytes, one.sha256] for one in files]
        self.write_json(_record_name(phase, index), {"run_id": self.run_id, "facts": dict(facts), "files": rows})

    def record(self, phase: str, index: int) -> dict[str, Any] | None:
        """The facts of a finished job, None if it is not done, or if one of its files is gone or has another size."""
        record = self.read_json(_record_name(phase, index))
        if record is None or record["run_id"] != self.run_id:
            return None
        files = record["files"]
        found = self.filesystem.get_file_info([self.path(path) for path, _, _ in files]) if files else []
        is_whole = all(info.is_file and info.size == size for info, (_, size, _) in zip(found, files, strict=True))
        return dict(record["facts"]) if is_whole else None

    def files_of(self, phase: str, index: int) -> list[tuple[str, int, str]]:
        """(path in the run's folder, bytes, SHA-256) of the files of a finished job."""
        record = self.read_json(_record_name(phase, index)) or {"files": []}
        return [tuple(row) for row in record["files"]]

    def delete(self, name: str) -> None:
        """Remove a folder of the run and what is in it; nothing if it is not there."""
        if self.filesystem.get_file_info(self.path(name)).type == pafs.FileType.Directory:
            self.filesystem.delete_dir(self.path(name))

    def write_arrays(
        self, name: str, arrays: Mapping[str, npt.NDArray[Any]], *, rows_per_batch: int | None = None
    ) -> FileSummary:
        """Arrays of one length as a file that can be memory-mapped; those of two dimensions become lists of a fixed size.

        In one batch, or in batches of so many rows, which can be read alone.
        """
        table = pa.table({key: _to_arrow(value) for key, value in arrays.items()})
        with open_hashed(self.filesystem, self.path(name)) as output:
            with pa.ipc.new_file(pa.PythonFile(output, mode="w"), table.schema) as writer:
                writer.write_table(table, rows_per_batch)
            return output.summary(self.path(name), num_items=len(table))

    def read_arrays(self, name: str, *names: str) -> dict[str, npt.NDArray[Any]]:
        """Arrays of a file, all or some; on a local file system without a copy if they are in one batch."""
        with self._open_arrays(name, names) as reader:
            table = reader.read_all()
            return {key: _to_numpy(table[key]) for key in names or table.column_names}

    def read_batch(self, name: str, index: int) -> dict[str, npt.NDArray[Any]]:
        """The rows of one batch of a file; none behind the last."""
        with self._open_arrays(name) as reader:
            batches = [reader.get_batch(index)] if index < reader.num_record_batches else []
            table = pa.Table.from_batches(batches, reader.schema)
            return {key: _to_numpy(table[key]) for key in table.column_names}

    def read_rows(self, name: str, key: str, rows: npt.NDArray[np.int64], *, rows_per_batch: int) -> npt.NDArray[Any]:
        """Rows of one array, in ascending order and at least one; only the batches in which they lie are read."""
        with self._open_arrays(name, (key,)) as reader:
            chosen, starts = np.unique(rows // rows_per_batch, return_index=True)
            parts = [
                _to_numpy(pa.chunked_array([reader.get_batch(batch).column(key)]))[part - batch * rows_per_batch]
                for batch, part in zip(chosen.tolist(), np.split(rows, starts[1:]), strict=True)
            ]
            return np.concatenate(parts)

    @contextlib.contextmanager
    def _open_arrays(self, name: str, names: Sequence[str] = ()) -> Iterator[Any]:
        """A reader of record batches, of some fields if they are named. What was read lives on without it."""
        path = self.path(name)
        is_local = isinstance(self.filesystem, pafs.LocalFileSystem)
        with pa.memory_map(path) if is_local else self.filesystem.open_input_file(path) as source:
            reader = pa.ipc.open_file(source)
            if names:
                fields = [reader.schema.get_field_index(key) for key in names]
                reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=fields))
            yield reader


def differences(one: Any, other: Any, *, prefix: str = "") -> list[str]:
    """Dotted names of what differs between two JSON values."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other})
        return [name for key in keys for name in differences(one.get(key), other.get(key), prefix=f"{prefix}{key}.")]
    return [] if one == other else [prefix.removesuffix(".")]


def dump_json(value: Mapping[str, Any]) -> bytes:
    """Sorted and indented, with a line end."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _record_name(phase: str, index: int) -> str:
    return f"{WORK}/{phase}/{index:06d}.json"


def _to_arrow(array: npt.NDArray[Any]) -> pa.Array:
    if array.ndim == 1:
        return pa.array(array)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(array).reshape(-1)), array.shape[1])


def _to_numpy(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        flat: npt.NDArray[Any] = array.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(-1, array.type.list_size)
    values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values
