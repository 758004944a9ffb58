"""The process that the ranks of tests are forked from: it has imported what they need, so that a rank starts in no time.

In: cases, over a connection to the tests' process (tests/ranks.py, the only user). Out: how each rank ended; its result,
error, output and stack lie in the case's folder. It ends, and its ranks with it, when the other side of the connection is
gone. It only imports: a fork of a process that has computed with torch cannot run autograd, and threads do not survive one.
Linux only (pidfd, /proc).
"""

import faulthandler
import importlib
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

GRACE_S = 3
"""How long the other ranks may take to fail after the first one, seconds."""
DEATH_GRACE_S = 1
"""The same after one that was killed: what others say then follows from that."""
DUMP_S = 5
"""How long a rank may take to write its stack before it is killed, seconds."""
FORK_SAFE_THREADS = {"jemalloc_bg_thd"}
"""Threads that a fork may lose: this one, of pyarrow's allocator, is started again where it is missed."""
LATE_IMPORTS = ("torch._dynamo", "torch.profiler", "torch._subclasses.schema_check_mode")
"""What torch imports in the midst of a first step: half of all modules."""
LATE_IMPORTS_DEEPSPEED = (
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # with transformers
    "deepspeed.runtime.superoffload.superoffload_stage3",
)
"""What deepspeed.initialize imports."""


@dataclass(frozen=True)
class Case:
    """A function to run on `world_size` ranks: pickled with its arguments in `folder`, and defined in `module`."""

    folder: Path
    module: str
    world_size: int
    timeout_s: float

    def file(self, kind: str, rank: int) -> Path:
        """Where a rank leaves its "result", "error", "output" or "stack"."""
        return self.folder / f"{kind}{rank}"

    def has_result(self, rank: int) -> bool:
        return self.file("result", rank).exists()


@dataclass(frozen=True)
class RankEnd:
    """How a rank's process ended: its exit code, a signal's number negated; and whether that was the server's doing."""

    exit_code: int
    was_ended: bool


def serve(descriptor: int, *, has_deepspeed: bool) -> None:
    """Run the cases that come in, one after another, until the other side is gone."""
    for module in LATE_IMPORTS + (LATE_IMPORTS_DEEPSPEED if has_deepspeed else ()):
        importlib.import_module(module)
    if has_deepspeed:
        # Else init_distributed compiles it; a compile that is killed leaves a lock on which all later runs wait for ever.
        importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    with Connection(descriptor) as connection, suppress(EOFError, ConnectionError):
        while True:
            connection.send(_run(connection.recv(), connection))


def _run(case: Case, connection: Connection) -> list[RankEnd]:
    with suppress(Exception):  # the ranks meet the same error, and tell it
        importlib.import_module(case.module)
    if threads := _thread_names() - FORK_SAFE_THREADS:
        raise RuntimeError(
            f"importing {case.module} started the threads {threads}: import what does so in its function"
        )
    sys.stdout.flush()  # else each rank prints it again
    port, running = _free_port(), {}
    for rank in range(case.world_size):
        pid = os.fork()
        if pid == 0:
            connection.close()
            _be_rank(case, rank, port)
        running[os.pidfd_open(pid)] = (rank, pid)
    return _await(case, running, connection)


def _thread_names() -> set[str]:
    """Of all threads but the main one, Python's and others."""
    tasks = [task for task in Path("/proc/self/task").iterdir() if int(task.name) != os.getpid()]
    return {(task / "comm").read_text(encoding="utf-8").strip() for task in tasks}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _await(case: Case, running: dict[int, tuple[int, int]], connection: Connection) -> list[RankEnd]:
    """Wait until all ranks are gone. The first that fails, the time-out and the end of the tests' process end the others.

    A rank in a collective with one that failed is given time to fail as well, in case that its error was the first.
    """
    ends: dict[int, RankEnd] = {}
    deadline, is_ending = time.monotonic() + case.timeout_s, False
    while running:
        watched: list[Any] = list(running) if is_ending else [connection, *running]
        ready = wait(watched, timeout=max(0, deadline - time.monotonic()))
        for handle in [one for one in ready if isinstance(one, int)]:
            rank, pid = running.pop(handle)
            ends[rank] = end = RankEnd(_reap(pid), was_ended=is_ending)
            os.close(handle)
            if not is_ending and (end.exit_code or not case.has_result(rank)):
                grace_s = DEATH_GRACE_S if end.exit_code < 0 else GRACE_S
                deadline = min(deadline, time.monotonic() + grace_s)
        if not ready or connection in ready:
            for _, pid in running.values():
                os.kill(pid, signal.SIGKILL if is_ending else signal.SIGUSR1)  # the second: write your stack and die
            deadline, is_ending = time.monotonic() + DUMP_S, True
    return [ends[rank] for rank in range(case.world_size)]


def _reap(pid: int) -> int:
    """The exit code of a rank that is gone. Processes that it left behind are killed."""
    with suppress(ProcessLookupError):  # it died before it had a group of its own
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _be_rank(case: Case, rank: int, port: int) -> NoReturn:
    """Run the case as one rank, in a process forked for it. Never returns."""
    exit_code = 1
    try:
        os.setsid()
        output = os.open(case.file("output", rank), os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        faulthandler.enable()
        with case.file("stack", rank).open("wb") as stack:
            faulthandler.register(signal.SIGUSR1, file=stack, chain=True)  # chain: it then dies
            _save(_compute(case, rank, port), case.file("result", rank))
            _await_the_others(case)
        exit_code = 0
    except BaseException:
        told = f"{time.monotonic_ns()}\n{traceback.format_exc()}"
        case.file("error", rank).write_text(told, encoding="utf-8")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)  # not through destructors that wait for the others


def _compute(case: Case, rank: int, port: int) -> Any:
    world_size = str(case.world_size)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "LOCAL_SIZE": world_size}
    torch.set_num_threads(1)
    store = dist.FileStore(str(case.folder / "store"), case.world_size)
    longer = timedelta(seconds=case.timeout_s + 60)  # our own time-out tells more than that of a collective
    dist.init_process_group("gloo", store=store, rank=rank, world_size=case.world_size, timeout=longer)
    function, arguments = pickle.loads((case.folder / "call").read_bytes())
    return function(rank, case.world_size, *arguments)


def _save(result: Any, file: Path) -> None:
    partial = file.with_suffix(".partial")
    torch.save(result, partial)
    partial.rename(file)


def _await_the_others(case: Case) -> None:
    """A rank that leaves while another still reads from it can cut off what it had sent."""
    while not all(case.has_result(other) for other in range(case.world_size)):
        time.sleep(0.01)
