"""Kernels in machine code: the one place that calls numba, so that mypy keeps their types."""

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def jit(function: F) -> F:
    """Compile at the first call and keep the machine code beside the file; runs without the interpreter's lock.

    Integer arithmetic wraps silently, as in C; give every constant its width.
    """
    return cast("F", numba.njit(cache=True, nogil=True)(function))
