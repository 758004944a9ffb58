"""The memory allocator of training processes on a CPU.

A training step frees and asks again for the same large buffers. glibc's default gives each back to the system and takes
it as new pages, which costs more than the arithmetic between: tuned, a step of MoE layers was measured 1.1 to 1.6 times as
fast; with jemalloc, which Ray brings along, a step of configs/models/small.toml was 1.35 times as fast as that, in two thirds
of the memory. The variables are read when a process starts, so they are set in its environment before.

Sources: mallopt(3), M_MMAP_MAX and M_TRIM_THRESHOLD; jemalloc(3), decay and oversize_threshold.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

TUNED_MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30)}
"""glibc keeps freed memory, up to 16 GiB at the top of the heap, and takes large buffers from there."""
TUNED_JEMALLOC = "dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0"
"""Freed memory stays, and large buffers come from the same place as small ones."""


def training_environment() -> dict[str, str]:
    """Variables for a process that trains on a CPU: jemalloc where Ray has it, tuned glibc elsewhere."""
    ray = importlib.util.find_spec("ray")  # finds it without importing it
    if ray is not None and ray.origin is not None:
        library = Path(ray.origin).parent / "core" / "libjemalloc.so"
        if library.is_file():
            return {"LD_PRELOAD": str(library), "MALLOC_CONF": TUNED_JEMALLOC}
    return TUNED_MALLOC


def restart_for_training(command: Sequence[str]) -> None:
    """Become `command`, this process's own, in that environment; returns if this is it already."""
    wanted = training_environment()
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        sys.stdout.flush()
        os.execve(command[0], list(command), os.environ | wanted)
