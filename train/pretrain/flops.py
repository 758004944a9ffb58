"""The arithmetic peak of a device, for model FLOPs utilisation (MFU): FLOPs of the model over what the device could do.

In: a device and a dtype. Out: FLOP/s. Of an NVIDIA GPU that plan.GPUS knows the dense peak of its data sheet; of anything
else what a large matmul reaches here and now, in a fraction of a second. Source of MFU: PaLM (arXiv:2204.02311, B).
"""

import time

import torch

from train.model.plan import GPUS

SIZE = 2048
"""Rows and columns of the matmul that is measured."""
MEASURE_S = 0.3


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one device with matmuls in `dtype`."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).lower()
        memory_bytes = torch.cuda.get_device_properties(device).total_memory
        same = [gpu for key, gpu in GPUS.items() if key.partition("-")[0] in name]
        if same and dtype in (torch.bfloat16, torch.float16):
            return min(same, key=lambda gpu: abs(gpu.memory_bytes - memory_bytes)).peak_bf16
    return _measured(device, dtype)


def _measured(device: torch.device, dtype: torch.dtype) -> float:
    """The best of repeated products: other work on the machine only ever makes them slower."""
    first = torch.randn(SIZE, SIZE, device=device).to(dtype)
    best_s, until = float("inf"), time.perf_counter() + MEASURE_S
    while time.perf_counter() < until:
        start = time.perf_counter()
        float((first @ first)[0, 0])  # waits for the device
        best_s = min(best_s, time.perf_counter() - start)
    return 2 * SIZE**3 / best_s
