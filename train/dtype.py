"""The precision of weights: bfloat16 where the hardware multiplies in it, float32 elsewhere.

A CPU without AVX-512 or AMX computes bfloat16 matrix products one element at a time: 9 to 300 times slower than float32
(measured on a Zen 3). torch asks oneDNN the same question before it chooses its kernel.
"""

from typing import Literal, cast

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
TrainingDtype = Literal["auto", "bfloat16", "float32"]
FixedDtype = Literal["bfloat16", "float16", "float32"]


def pick_dtype(kind: Dtype, *, device_type: str) -> FixedDtype:
    """The dtype that `kind` names; auto takes bfloat16, or float32 on a CPU ("cpu") that is slow in it."""
    if kind != "auto":
        return kind
    return "float32" if device_type == "cpu" and not has_fast_bfloat16() else "bfloat16"


def has_fast_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 matrices on this CPU."""
    import torch

    return cast(bool, torch.ops.mkldnn._is_mkldnn_bf16_supported())
