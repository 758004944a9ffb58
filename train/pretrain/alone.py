"""run_alone(): a pre-training run in this process, without Ray; train/launch.py is the same on a cluster.

In: a PretrainingConfig of one worker. Out: how the run ended.
"""

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from train.pretrain.config import PretrainingConfig
from train.pretrain.engine import PretrainingEngine
from train.pretrain.loop import RunEnd
from train.pretrain.parallel import check_run
from train.pretrain.run_writer import OnProgress


def run_alone(
    config: PretrainingConfig,
    *,
    stop_reason: Callable[[], str | None] = lambda: None,
    on_progress: OnProgress = lambda *_: None,
) -> RunEnd:
    """The run in this process, without Ray. Raises ValueError for a configuration of more than one worker, or as `run`."""
    if config.workers.num_workers != 1:
        raise ValueError(
            f"workers.num_workers = {config.workers.num_workers}: this process is one worker; run it on Ray, or set 1"
        )
    check_run(config)
    kind = config.workers.device
    device = torch.device("cuda" if kind == "cuda" or (kind == "auto" and torch.cuda.is_available()) else "cpu")
    if config.workers.threads:
        torch.set_num_threads(config.workers.threads)
    with in_a_group_of_one("nccl" if device.type == "cuda" else "gloo", timeout_s=config.parallel.timeout_s):
        return PretrainingEngine(config, device=device, stop_reason=stop_reason, on_progress=on_progress).run()


@contextlib.contextmanager
def in_a_group_of_one(backend: str, *, timeout_s: float) -> Iterator[None]:
    """torch.distributed for a process that is alone."""
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=timeout_s))
    try:
        yield
    finally:
        dist.destroy_process_group()
