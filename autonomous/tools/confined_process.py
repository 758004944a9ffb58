"""Starts confined Python processes and watches them: within their limits, until the latch stops them, gone at the end.

In: a program and its limits. Out: an Outcome: what it wrote, how it ended, how it was shut in. A process is written down in
the registry of kills (autonomous/safety/processes.py) before it may begin, asks nothing and is asked nothing: whoever runs it
polls the guard 20 times a second, and whatever happens, its process group is killed and its folder removed.
"""

import hashlib
import json
import os
import platform
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from autonomous.safety.machine import boot_id, place, start_of
from autonomous.safety.processes import MARK, forget, register_started
from autonomous.tools.config import LEVELS, Isolation, SandboxConfig
from autonomous.tools.syscall_filter import build_filter
from autonomous.tools.tool import ToolUnavailable
from memory.store import no_guard
from memory.types import Guard

LOOK_S = 0.05
"""How often latch, clock and folder are looked at."""
START_TIMEOUT_S = 10.0
_SCRIPT = Path(__file__).with_name("confined.py")
_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended. `ended` says which limit ended it; "" if it ended by itself with `status` (negative: a signal)."""

    output: str
    errors: str
    status: int
    ended: str
    seconds: float
    isolation: Isolation


class NotConfined(ToolUnavailable):
    """The process could not shut itself in at the level that was asked for; the program was not run."""


def strongest_isolation(config: SandboxConfig, *, safety_folder: Path) -> Isolation:
    """The strongest level that holds on this machine, found by trying. Raises ToolUnavailable below config.min_isolation."""
    remove_leftovers()
    problems = []
    for level in reversed(LEVELS[LEVELS.index(config.min_isolation) :]):
        try:
            run_confined(
                "", level=level, config=config, timeout_s=START_TIMEOUT_S, guard=no_guard, safety_folder=safety_folder
            )
        except NotConfined as error:
            problems.append(f"{level}: {error}")
            continue
        return level
    raise ToolUnavailable(
        f"no program is run: this machine does not allow the isolation '{config.min_isolation}' "
        f"(knowledge.sandbox.min_isolation) or a stronger one ({'; '.join(problems)}). It needs a kernel with Landlock and "
        "seccomp (Linux 5.13 or newer) that a container may use; or lower min_isolation and accept what docs/security.md says"
    )


def remove_leftovers() -> None:
    """Remove the folders of programs whose runner was killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix('*', '*')}*"):
        pid, start = folder.name.split("-")[-3:-1]
        if pid.isdigit() and start_of(int(pid)) != start:
            shutil.rmtree(folder, ignore_errors=True)  # another user's stay


def _prefix(pid: int | str, start: str) -> str:
    """Of the folders that a process makes; those of another machine or container that shares the place have other names."""
    here = hashlib.sha256(f"{place()} {boot_id()}".encode()).hexdigest()[:8]
    return f"autonomous-tool-{here}-{pid}-{start}-"


def run_confined(
    source: str, *, level: Isolation, config: SandboxConfig, timeout_s: float, guard: Guard, safety_folder: Path
) -> Outcome:
    """Run a program to its end. Raises NotConfined if the level does not hold; what the guard raises ends the program."""
    guard()
    folder = Path(tempfile.mkdtemp(prefix=_prefix(os.getpid(), start_of(os.getpid()))))
    try:
        with tempfile.TemporaryFile() as job:
            job.write(_job(source, level, config))
            job.seek(0)
            run = _Run(
                level, config, job=job, folder=folder, timeout_s=timeout_s, guard=guard, safety_folder=safety_folder
            )
            return run.outcome()
    finally:
        shutil.rmtree(folder)  # it is flat: a program can make plain files alone


def _job(source: str, level: Isolation, config: SandboxConfig) -> bytes:
    limits = config.model_dump(include={"cpu_s", "memory_bytes", "file_bytes", "num_open_files", "num_threads"})
    job = {"source": source, "level": level, "limits": limits, "filter": build_filter(platform.machine()).hex()}
    return json.dumps(job).encode()


class _Run:
    """One process, from its start to its end."""

    def __init__(
        self,
        level: Isolation,
        config: SandboxConfig,
        *,
        job: IO[bytes],
        folder: Path,
        timeout_s: float,
        guard: Guard,
        safety_folder: Path,
    ) -> None:
        self._level, self._config, self._job, self._folder = level, config, job, folder
        self._guard, self._safety_folder = guard, safety_folder
        self._start = time.monotonic()
        self._deadline = self._start + min(timeout_s, config.wall_s)
        self._texts: dict[str, bytearray] = {"output": bytearray(), "errors": bytearray(), "status": bytearray()}

    def outcome(self) -> Outcome:
        status_in, status_out = os.pipe()
        try:
            process = self._begin(status_out)
        except BaseException:
            os.close(status_in)
            raise
        finally:
            os.close(status_out)
        record: Path | None = None
        try:
            record = register_started(self._safety_folder, process.pid, role="tool", within="learning")
            assert process.stdin is not None
            os.write(process.stdin.fileno(), b"+")
            ended = self._watch(process, status_in)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
            status = process.wait()
            os.close(status_in)
            for stream in (process.stdin, process.stdout, process.stderr):
                assert stream is not None
                stream.close()
            if record is not None:
                forget(record)
        if self._texts["status"] != b"ready":
            raise NotConfined(self._problem(ended, status))
        if not ended and status == -signal.SIGXCPU:
            ended = f"it used its {self._config.cpu_s} s of processor time (knowledge.sandbox.cpu_s)"
        return Outcome(
            output=self._text("output"),
            errors=self._text("errors"),
            status=status,
            ended=ended,
            seconds=round(time.monotonic() - self._start, 3),
            isolation=self._level,
        )

    def _begin(self, status_out: int) -> "subprocess.Popen[bytes]":
        job_fd = self._job.fileno()
        # Nothing of our environment but the mark by which a kill finds what a registered process has started.
        environment = {MARK: os.environ[MARK]} if MARK in os.environ else {}
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_SCRIPT), str(job_fd), str(status_out)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(job_fd, status_out),
            cwd=self._folder, env=environment, start_new_session=True,
        )  # fmt: skip

    def _watch(self, process: "subprocess.Popen[bytes]", status_in: int) -> str:
        """Read until it has ended, or why it must end now."""
        assert process.stdout is not None
        assert process.stderr is not None
        exited = os.pidfd_open(process.pid)
        try:
            with selectors.DefaultSelector() as selector:
                for descriptor, name in (
                    (process.stdout.fileno(), "output"), (process.stderr.fileno(), "errors"), (status_in, "status"),
                ):  # fmt: skip
                    os.set_blocking(descriptor, False)
                    selector.register(descriptor, selectors.EVENT_READ, name)
                selector.register(exited, selectors.EVENT_READ, "")
                while True:
                    ready = selector.select(LOOK_S)
                    has_exited = any(not key.data for key, _ in ready)
                    keys = list(selector.get_map().values()) if has_exited else [key for key, _ in ready]
                    for key in keys:
                        if key.data and not self._read(key.fd, key.data, to_end=has_exited):
                            selector.unregister(key.fd)
                    self._guard()
                    if reason := self._overrun():
                        return reason
                    if has_exited:
                        return ""
        finally:
            os.close(exited)

    def _read(self, descriptor: int, name: str, *, to_end: bool) -> bool:
        """Take what is there, never much more than is allowed; False at the end of the stream."""
        while True:
            try:
                piece = os.read(descriptor, _READ_BYTES)
            except BlockingIOError:
                return True
            self._texts[name] += piece
            if not piece:
                return False
            if not to_end or self._num_written() > self._config.output_bytes:
                return True

    def _num_written(self) -> int:
        return len(self._texts["output"]) + len(self._texts["errors"])

    def _overrun(self) -> str:
        config = self._config
        if self._num_written() > config.output_bytes:
            return f"it wrote more than {config.output_bytes} bytes (knowledge.sandbox.output_bytes)"
        if time.monotonic() > self._deadline:
            allowed_s = self._deadline - self._start
            return f"it ran longer than {allowed_s:.1f} s (knowledge.sandbox.wall_s, or what the question had left)"
        num_files, num_bytes = 0, 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                num_files += 1
                try:
                    num_bytes += entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:
                    continue
                if num_files > config.num_files:
                    return f"it made more than {config.num_files} files (knowledge.sandbox.num_files)"
        if num_bytes > config.folder_bytes:
            return f"its files hold more than {config.folder_bytes} bytes (knowledge.sandbox.folder_bytes)"
        return ""

    def _problem(self, ended: str, status: int) -> str:
        said = self._texts["status"].decode("utf-8", "replace") or self._text("errors").strip()[-300:]
        return said or ended or f"it ended with status {status} before it was shut in"

    def _text(self, name: str) -> str:
        return bytes(self._texts[name][: self._config.output_bytes]).decode("utf-8", "replace")
