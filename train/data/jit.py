"""Kernels in machine code: the one place that calls numba's compiler, so that mypy keeps their types.

Machine code is kept beside the files, in a folder named by the hash of all files that hold kernels: numba itself notices a
change of the kernel's own file only, and would go on with old code of another file that was inlined into it.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def jit(function: F) -> F:
    """Compile at the first call, once for all processes; runs without the interpreter's lock.

    Unsigned arithmetic wraps silently, as in C; a signed result that overflows is undefined. Give every constant its width.
    """
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = _cache_folder()  # read when the kernel is declared; other users of numba keep theirs
    try:
        return cast("F", numba.njit(cache=True, nogil=True)(function))
    finally:
        numba.config.CACHE_DIR = before


def jit_inner(function: F) -> F:
    """As `jit`, for what only other kernels call: it has no way in from Python, which takes a fifth of the compiler's time."""
    return cast("F", numba.njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function))


@functools.cache
def _cache_folder() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    folder = Path(__file__).parent
    for path in sorted(folder.glob("*.py")):
        content = path.read_bytes()
        if b"@jit" in content or b"numba" in content:
            digest.update(path.name.encode() + b"\x00" + content)
    return str(folder / "__pycache__" / f"kernels-{digest.hexdigest()[:16]}")
