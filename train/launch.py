"""run_training(): a pre-training run on Ray Train; the one place that calls ray.train's TorchTrainer.

In: a PretrainingConfig, and Ray initialised. Out: how the run ended, as the workers' rank 0 says. Each worker runs a
PretrainingEngine on its GPU or its CPU threads. What is committed is what the run's own manifests say, not what Ray was told:
Ray gets metrics alone, and starts workers again that died, up to `workers.max_failures` times. What a person has to mend (a
configuration, a damaged checkpoint, a loss that does not recover) is not tried again.
"""

import functools
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from train.allocator import training_environment
from train.pretrain.agreement import REFUSALS
from train.pretrain.config import PretrainingConfig, PretrainingConfigError
from train.pretrain.loop import RunEnd, TrainingFailed
from train.pretrain.parallel import check_run

logger = logging.getLogger(__name__)

StopReason = Callable[[], str | None]
START_TIMEOUT_S = 900
"""How long the workers may take to start; Ray's 60 s are not enough on a machine under load."""
MAX_FAILED_STARTS = 3
"""After so many workers that did not start in that time, the run ends."""
GAUGE_PREFIX = "pretrain_"


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What a worker says instead of how the run ended: trying again would not help."""

    reason: str


def _leave_interrupts(_: Any) -> None:
    """In place of TorchTrainer's handler of Ctrl-C, which kills the workers: callers of run_training have a kinder one."""


def run_training(config: PretrainingConfig, *, stop_reason: StopReason | None = None) -> RunEnd:
    """Train on the cluster that Ray is connected to, and wait for the end.

    `stop_reason` is called on the workers before every step, so it has to be picklable; a text ends the run behind a
    checkpoint.
    Raises ValueError for a configuration that cannot run, or for which the cluster has no room, before a worker is started;
    TrainingFailed with what the first worker raised, when the workers failed more often than `workers.max_failures`, or
    when trying again would not help.
    """
    import ray
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    check_run(config)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_TIMEOUT_S))
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(config.parallel.timeout_s)  # of Ray's own barriers
    workers = config.workers
    cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    use_gpu = workers.device == "cuda" or (workers.device == "auto" and cluster.get("GPU", 0) > 0)
    threads = workers.threads or max(1, int(cluster.get("CPU", 1)) // workers.num_workers)
    resources = workers.resources or {"CPU": 1.0 if use_gpu else float(threads)} | ({"GPU": 1.0} if use_gpu else {})
    _check_room(config, resources, cluster)
    trainer = TorchTrainer(
        functools.partial(_train_worker, stop_reason=stop_reason),
        train_loop_config={"config": config.model_dump(mode="json"), "threads": threads},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=int(config.parallel.timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=(workers.min_workers, workers.num_workers) if workers.min_workers else workers.num_workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(config.output),
            failure_config=FailureConfig(
                max_failures=workers.max_failures, controller_failure_limit=MAX_FAILED_STARTS - 1
            ),
            worker_runtime_env={"env_vars": _environment(threads=threads, use_gpu=use_gpu)},
        ),
    )
    trainer._register_sigint_handler = _leave_interrupts  # type: ignore[method-assign, assignment]
    try:
        end = cast(Any, trainer.fit()).return_value
    except WorkerGroupError as error:
        raise TrainingFailed(_first_failure(error.worker_failures)) from error
    except TrainingFailedError as error:
        raise TrainingFailed(str(error)) from error
    if isinstance(end, _Refusal):
        raise TrainingFailed(end.reason)
    assert isinstance(end, RunEnd)
    return end


def _check_room(config: PretrainingConfig, resources: Mapping[str, float], cluster: Mapping[str, float]) -> None:
    """Raises PretrainingConfigError if the whole cluster is too small, unless it grows."""
    workers = config.workers
    if workers.is_autoscaled:
        return
    field, count = "num_workers", workers.num_workers
    if workers.min_workers is not None:
        field, count = "min_workers", workers.min_workers
    for name, each in resources.items():
        if count * each > cluster.get(name, 0):
            raise PretrainingConfigError(
                f"workers.{field} = {count} of {each:g} {name} each, but the cluster has {cluster.get(name, 0):g} {name}: "
                "lower it or workers.resources, or set workers.is_autoscaled where nodes are added on demand"
            )


def _train_worker(values: Mapping[str, Any], *, stop_reason: StopReason | None) -> RunEnd | _Refusal:
    """One worker: Ray has made the process group."""
    import ray.train
    import ray.train.torch
    import torch

    from train.pretrain.engine import PretrainingEngine

    torch.set_num_threads(values["threads"])
    try:
        engine = PretrainingEngine(
            PretrainingConfig.model_validate(values["config"]),
            device=ray.train.torch.get_device(),
            stop_reason=stop_reason or (lambda: None),
            is_preempted=lambda: ray.train.get_preemption_info() is not None,
            publish=_Gauges().publish,
            report=lambda metrics: ray.train.report(dict(metrics)),
        )
        return engine.run()
    except REFUSALS as error:
        logger.exception("the run ends, and is not tried again")
        return _Refusal(str(error))


class _Gauges:
    """The values of a step in Ray's metrics, for Prometheus and the dashboard."""

    def __init__(self) -> None:
        self._gauges: dict[str, Any] = {}

    def publish(self, values: Mapping[str, float]) -> None:
        from ray.util.metrics import Gauge

        for name, value in values.items():
            key = GAUGE_PREFIX + name.replace("/", "_")
            if key not in self._gauges:
                self._gauges[key] = Gauge(key, description=f"Pre-training: {name} of the last logged step")
            self._gauges[key].set(value)


def _environment(*, threads: int, use_gpu: bool) -> dict[str, str]:
    """Of a worker."""
    on_cpu = {} if use_gpu else {"DS_ACCELERATOR": "cpu", **training_environment()}
    return {"OMP_NUM_THREADS": str(threads), "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(START_TIMEOUT_S), **on_cpu}


def _first_failure(failures: Mapping[int, BaseException]) -> str:
    """What a worker raised. Of several the one that says most: the others only lost their connection to it."""
    told = {rank: str(error).strip().splitlines()[-1:] for rank, error in failures.items()}
    lost = ("Connection closed by peer", "Connection reset", "Broken pipe", "unexpectedly exited")
    ranks = sorted(told, key=lambda rank: (any(word in "".join(told[rank]) for word in lost), rank))
    return f"worker {ranks[0]}: {''.join(told[ranks[0]])}" if ranks else "the workers failed without a word"
