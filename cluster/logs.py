"""The log files of a system: its own under home/logs, and those of its Ray session, named by the part that writes them.

Ray calls a worker's files after numbers; the first lines of each name the actor, and that is what a person looks for.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

NAME_BYTES = 4096
"""The actor's name stands in the first lines of a worker's file."""
BLOCK_BYTES = 1 << 16
FOLLOW_POLL_S = 0.25
_ACTOR_NAME = re.compile(rb":actor_name:(.+)")


@dataclass(frozen=True)
class LogFile:
    """One file. `part` is what writes it, for instance "EpisodicShell" or "ray"; times in seconds since the epoch."""

    part: str
    path: Path
    size_bytes: int
    changed_at: float


def find_logs(home: Path, *, session_dir: Path | None) -> list[LogFile]:
    """Every log file that is not empty, the last written first."""
    folders = [home / "logs"] + ([session_dir / "logs"] if session_dir else [])
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                facts = path.stat()
            except OSError:  # rotated away between the two looks
                continue
            if (
                path.is_file()
                and not path.is_symlink()
                and facts.st_size
                and path.suffix in (".log", ".out", ".err", ".txt")
            ):
                found.append(LogFile(part_of(path), path, facts.st_size, facts.st_mtime))
    return sorted(found, key=lambda log: log.changed_at, reverse=True)


def part_of(path: Path) -> str:
    """Who writes a file: the actor that its first lines name, else its own name without the ending."""
    if path.name.startswith("worker-"):
        with path.open("rb") as file:
            if named := _ACTOR_NAME.search(file.read(NAME_BYTES)):
                return named.group(1).decode(errors="replace").strip()
    return path.stem


def matching(logs: Sequence[LogFile], part: str) -> list[LogFile]:
    """The files of one part: those whose part or file name holds `part`, in any case."""
    wanted = part.casefold()
    return [log for log in logs if wanted in log.part.casefold() or wanted in log.path.name.casefold()]


def last_lines(path: Path, num_lines: int) -> list[str]:
    """The end of a file, read from its end."""
    if num_lines <= 0:
        return []
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        tail = b""
        while position and tail.count(b"\n") <= num_lines:
            step = min(BLOCK_BYTES, position)
            position -= step
            file.seek(position)
            tail = file.read(step) + tail
    return tail.decode("utf-8", errors="replace").splitlines()[-num_lines:]


def follow(paths: Sequence[Path], *, is_wanted: Callable[[], bool]) -> Iterator[tuple[Path, str]]:
    """New lines of the files as they are written, until `is_wanted` says no."""
    offsets = {path: path.stat().st_size for path in paths}
    rests = dict.fromkeys(paths, b"")
    while is_wanted():
        was_quiet = True
        for path in paths:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < offsets[path]:  # rotated: begin anew
                    offsets[path], rests[path] = 0, b""
                if size == offsets[path]:
                    continue
                file.seek(offsets[path])
                *whole, rests[path] = (rests[path] + file.read(size - offsets[path])).split(b"\n")
                offsets[path] = size
            for line in whole:
                was_quiet = False
                yield path, line.decode("utf-8", errors="replace")
        if was_quiet:
            time.sleep(FOLLOW_POLL_S)
