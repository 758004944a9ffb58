"""Rows of memory by address, for compiled kernels: an array over memory that an array of Python owns.

A kernel that is given addresses reads rows of many files in one call. Nothing checks an address: who computes it checks the
bounds and keeps the owner of the memory alive until the kernel has returned.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba.core import types
from numba.extending import intrinsic

from train.data.jit import jit


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(_: Any, address: Any, like: Any) -> Any:
    signature = types.CPointer(like.dtype)(types.uint64, like)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@jit
def array_at(address: np.uint64, length: int, like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`length` elements from this address on, of the type of `like`'s."""
    view: npt.NDArray[Any] = numba.carray(_pointer(address, like), (length,))
    return view


def address_of(array: npt.NDArray[Any]) -> int:
    """Where an array's first element lies."""
    return int(array.__array_interface__["data"][0])
