"""PretrainingEngine: one process's part of a run, from a configuration to a model folder.

In: a PretrainingConfig, and torch.distributed initialised. Out: in the run's folder `config.json`, `metrics.jsonl`,
`tensorboard/`, `checkpoints/`, and at the end `report.html` and `model-<step>/`. A run that is in the folder is resumed from
its last committed checkpoint: weights, optimizer, balancing, precision, decisions about anomalies, place in the data, random
states. The loop itself is loop.py.
"""

import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from train.model.checkpoint_hf import load_boxes
from train.model.costs import count_costs
from train.pretrain.agreement import REFUSALS, agree, together
from train.pretrain.anomaly import AnomalyState
from train.pretrain.checkpoint import CheckpointManager
from train.pretrain.checkpoint_files import CheckpointError, CheckpointInfo, TakenOver, write_durably
from train.pretrain.checkpoint_store import CHECKPOINTS_NAME
from train.pretrain.config import PretrainingConfig, PretrainingConfigError
from train.pretrain.evaluation import Evaluator
from train.pretrain.export import export_checkpoint
from train.pretrain.flops import peak_flops
from train.pretrain.initialise import initialise
from train.pretrain.loop import RunEnd, TrainingFailed, train
from train.pretrain.parallel import DistributedTrainer4D
from train.pretrain.random_state import random_state, set_random_state
from train.pretrain.report import write_report
from train.pretrain.run_log import RunLog, load_run
from train.pretrain.run_writer import METRICS_NAME, OnProgress, PhaseTimer, Publish, RunWriter
from train.pretrain.stage import LOAD_NAME
from train.pretrain.step import StepSums

logger = logging.getLogger(__name__)

CONFIG_NAME, REPORT_NAME = "config.json", "report.html"
MAX_FAILED_SAVES = 3
"""In a row: then the run ends, since what it learns could be lost."""
PREEMPTION_EVERY_S = 5.0
"""How often it is asked whether machines will be taken away."""
SETTLE_EVERY_S = 0.02
"""Between two looks whether the last save is done on all ranks."""


@dataclass(slots=True)
class RunState:
    """What the loop counts."""

    step: int = 0
    """Optimizer steps that are done, those that were skipped included."""
    tokens: int = 0
    """That were read, without padding."""
    anomaly: AnomalyState = field(default_factory=AnomalyState)


class PretrainingEngine:
    """A run on this process. Every rank makes one, and calls `run`."""

    def __init__(
        self,
        config: PretrainingConfig,
        *,
        device: torch.device,
        stop_reason: Callable[[], str | None] = lambda: None,
        is_preempted: Callable[[], bool] = lambda: False,
        publish: Publish = lambda _: None,
        report: Callable[[Mapping[str, float]], None] = lambda _: None,
        on_progress: OnProgress = lambda *_: None,
    ) -> None:
        """`stop_reason`: asked before every step; a text ends the run behind a checkpoint. `is_preempted`: asked on all ranks
        at once, every few seconds, and the same on all; once it is so, a checkpoint is saved and training goes on. `publish`
        and `on_progress` are called on rank 0, `report` on every rank after each evaluation.

        Raises ValueError for a configuration that these processes or these shards do not fit.
        """
        self.config, self.stop_reason = config, stop_reason
        self._report, self._is_preempted = report, is_preempted
        self._was_preempted = self._is_preemption_unsaved = False
        self._saves_now = self._owes_save = False
        self._saved_step: int | None = None
        """Of the last checkpoint; None behind a rewind, where the place in the data is another than in any checkpoint."""
        self._asked_at = -math.inf
        self.trainer = DistributedTrainer4D(config, device=device)
        self.loader = together(lambda: self.trainer.loader(config.data.training_sources))
        self.evaluator = together(lambda: Evaluator(self.trainer, tokenizer=config.tokenizer_folder))
        self.is_first_rank = dist.get_rank() == 0
        self.attempt = agree(uuid.uuid4().hex[:12])[0] or ""
        self.checkpoints = CheckpointManager(
            config.output / CHECKPOINTS_NAME, config=config.checkpoint, rank=dist.get_rank(),
            world_size=dist.get_world_size(), attempt=self.attempt,
        )  # fmt: skip
        self.writer = together(lambda: self._open_writer(publish, on_progress) if self.is_first_rank else None)
        self.state, self.timer = RunState(), PhaseTimer()
        self._failed_saves: list[str] = []
        self._taken_over: str | None = None
        self._step_end = time.perf_counter()
        costs = count_costs(config.model, name=config.output.name, context=config.data.sequence_length)
        peak = peak_flops(device, self.trainer.precision.compute_dtype) * dist.get_world_size()
        self._mfu_per_rate = costs.flops_per_token / peak

    def run(self) -> RunEnd:
        """Begin or resume, train, and leave a model. Raises TrainingFailed, CheckpointError, and what reading data raises."""
        try:
            self._begin()
            end = train(self)
            self._finish(end)
        except REFUSALS:  # which all ranks meet together: a checkpoint that is on its way is not given up
            self.checkpoints.leave()
            self.poll_save()
            raise
        finally:
            self.loader.close()
            if self.writer is not None:
                self.writer.close()
        return end

    def _open_writer(self, publish: Publish, on_progress: OnProgress) -> RunWriter:
        config = self.config
        return RunWriter(
            config.output, every_steps=config.log_every_steps, total_steps=config.total_steps, publish=publish,
            on_progress=on_progress,
        )  # fmt: skip

    # What the loop calls.

    def record_step(self, sums: StepSums, *, norm: float, lr: float, num_tokens: int) -> None:
        """A step's record. On every rank: the experts' load is gathered for some steps."""
        state, now = self.state, time.perf_counter()
        seconds, self._step_end = now - self._step_end, now
        is_due = state.step % self.config.log_every_steps == 0 or state.step == self.config.total_steps
        load = self.trainer.engine.expert_load().cpu() if is_due else torch.zeros(0, 1)
        if self.writer is None:
            return
        rate = num_tokens / seconds
        self.writer.step(
            state.step, tokens=state.tokens, loss=sums.loss, lr=lr, grad_norm=norm, tokens_per_s=rate,
            mfu=rate * self._mfu_per_rate, seconds=self.timer.take(),
            expert_max_over_mean=[float(layer.max() / layer.mean()) for layer in load],
            dead_experts=[int((layer == 0).sum()) for layer in load],
        )  # fmt: skip

    def record_skip(self, reason: str) -> None:
        """A step whose batch was left out."""
        self.tell("skip", reason)
        self._step_end = time.perf_counter()

    def evaluate(self) -> None:
        """Held-out loss and samples."""
        found = self.evaluator.loss()
        samples = self.evaluator.samples()
        state = self.state
        if self.writer is not None and found is not None:
            self.writer.evaluation(state.step, tokens=state.tokens, loss=found.loss, by_source=found.by_source)
        if self.writer is not None:
            for prompt, text in samples:
                self.writer.sample(state.step, prompt=prompt, text=text)
        self._step_end = time.perf_counter()  # the next step's rate is its own
        self._report({"step": state.step, "tokens": state.tokens} | ({"held_out_loss": found.loss} if found else {}))

    def is_asked_to_stop(self) -> bool:
        """Before a step, on all ranks at once: whether one of them was asked to stop. Now and then machines that will be taken
        away are asked for. Raises TrainingFailed where checkpoints cannot be written."""
        is_preemption_due = not self._was_preempted and time.perf_counter() - self._asked_at > PREEMPTION_EVERY_S
        is_stopped, is_stuck, is_due, is_unsaved = self.trainer.any_rank(
            self.stop_reason() is not None, self._is_stuck, is_preemption_due, self._is_preemption_unsaved
        )
        if is_stuck:
            raise TrainingFailed(self._explain_saves())
        if is_unsaved:
            self._saves_now, self._is_preemption_unsaved = True, False
        if is_due:
            self._ask_preemption()
        return is_stopped

    def _ask_preemption(self) -> None:
        self._asked_at = time.perf_counter()
        if self._is_preempted():
            self._was_preempted = self._saves_now = True
            self.tell("preemption", "a worker's node will be taken away; a checkpoint is saved")

    def is_save_due(self) -> bool:
        """After this step: by the configuration, at the end, or because machines will be taken away."""
        step, config = self.state.step, self.config
        self._owes_save |= step % config.checkpoint.every_steps == 0
        # Not behind a step that was skipped, but behind the next: going back has to lead to where all was well.
        is_sane = self.state.anomaly.num_skips == 0
        is_due = self._saves_now or (self._owes_save and is_sane) or step == config.total_steps
        if is_due:
            self._saves_now = self._owes_save = False
        return is_due

    def save(self, *, is_last: bool = False) -> None:
        """Begin a checkpoint, when the one before it is done; the last one is waited for, if there is none of this step yet. A
        failure is counted, not raised: training goes on, until that was tried too often. Of the last one it is raised."""
        self._settle()
        state, trainer = self.state, self.trainer
        if is_last and not trainer.any_rank(self._saved_step != state.step)[0]:
            self.checkpoints.leave()
            return
        shared = {
            "step": state.step, "tokens": state.tokens, "num_updates": trainer.engine.num_updates,
            "loader": self.loader.state_dict(), "precision": trainer.precision.state_dict(),
            "anomaly": state.anomaly.model_dump(mode="json"), "config": self.config.model_dump(mode="json"),
        }  # fmt: skip
        pieces, own = trainer.engine.pieces(), {"random": random_state()}
        if is_last:
            self._saved(self.checkpoints.save_blocking(state.step, pieces, shared=shared, own=own))
        else:
            self.checkpoints.save(state.step, pieces, shared=shared, own=own)

    def _settle(self) -> None:
        """Return when no rank has a save in flight. All wait together: one whose save failed would otherwise be in the next
        collective while the others wait for its files, and be taken for dead."""
        while self.trainer.any_rank(self.checkpoints.is_saving)[0]:
            time.sleep(SETTLE_EVERY_S)
        self.poll_save()

    def poll_save(self) -> None:
        """Tell of a checkpoint that was committed since the last call, or that failed."""
        try:
            info = self.checkpoints.poll()
        except CheckpointError as error:
            self._failed_saves.append(str(error))
            self._is_preemption_unsaved = self._was_preempted
            if isinstance(error, TakenOver):
                self._taken_over = str(error)
            self.tell("checkpoint failed", str(error))
            logger.error("%s", error)
            return
        if info is not None:
            self._saved(info)

    @property
    def _is_stuck(self) -> bool:
        """Whether too many checkpoints in a row could not be written, or another attempt has the folder now."""
        return len(self._failed_saves) >= MAX_FAILED_SAVES or self._taken_over is not None

    def _explain_saves(self) -> str:
        if self._taken_over is not None:
            return self._taken_over
        last = self._failed_saves[-1] if self._failed_saves else "see the logs of the other ranks"
        return (
            f"{MAX_FAILED_SAVES} checkpoints in a row were not written ({last}); the run ends: mend that and resume it"
        )

    def rewind(self) -> None:
        """Back to the last checkpoint, but behind the batches that were read since."""
        position = self.loader.state_dict()["position"]
        self._settle()
        info = self._latest()
        if info is None:
            raise TrainingFailed(
                f"there is no checkpoint to go back to ({' '.join(self._failed_saves) or 'none was saved'}): mend that and "
                "start again"
            )
        anomaly = self.state.anomaly
        self._restore(info)
        self.state.anomaly = anomaly
        behind = self.loader.state_dict()["position"]
        self.loader.skip((position - behind) // self.config.global_batch_size)
        self._saved_step = None
        self._step_end = time.perf_counter()

    def tell(self, event: str, detail: str) -> None:
        """An event of the run."""
        if self.writer is not None:
            self.writer.event(self.state.step, event, detail)

    # Beginning and end.

    def _begin(self) -> None:
        """What cannot go on is refused before the folder is taken over from whoever may be at work there."""
        if (info := self._latest()) is not None:
            _check_same(self.config, info)
            self.loader.load_state_dict(info.manifest.shared["loader"])
        together(self.checkpoints.begin_attempt)
        info = self._latest()  # the attempt before may have committed until then
        how = f"attempt {self.attempt}, {self.trainer.plan.describe()}, {self.trainer.precision.compute_dtype}"
        if info is None:
            self._first_weights()
        else:
            self._restore(info)
            self.checkpoints.tidy()
        self.tell("start" if info is None else "resume", how if info is None else f"{how}, from {info.name}")
        together(self._write_config)
        if info is None:
            self.save()
        self._step_end = time.perf_counter()

    def _write_config(self) -> None:
        if self.is_first_rank:
            text = self.config.model_dump_json(indent=1).encode() + b"\n"
            write_durably(self.config.output / CONFIG_NAME, text)

    def _first_weights(self) -> None:
        config, pieces = self.config, self.trainer.engine.pieces()
        folder = config.start_from
        if folder is None:
            initialise(pieces, seed=config.seed, std=config.model.initializer_range)
        else:
            boxes = (
                (piece.name, piece.offsets, piece.tensor)
                for piece in pieces
                if piece.kind in ("weight", "buffer") and piece.name != LOAD_NAME and piece.tensor.numel()
            )
            together(lambda: load_boxes(folder, config.model, boxes))
            self.tell("weights", f"from {folder}")
        self.trainer.engine.weights_changed()

    def _latest(self) -> CheckpointInfo | None:
        """The newest committed checkpoint, as rank 0 sees it: a shared file system may show it to others later."""
        seen = together(lambda: self.checkpoints.latest() if self.is_first_rank else None)
        name = agree(None if seen is None else seen.name)[0]
        return None if name is None else together(lambda: self.checkpoints.await_name(name))

    def _restore(self, info: CheckpointInfo) -> None:
        engine = self.trainer.engine
        loaded = self.checkpoints.load(info, engine.pieces(), agree=agree)
        shared = loaded.shared
        engine.weights_changed()
        engine.num_updates = int(shared["num_updates"])
        self.loader.load_state_dict(shared["loader"])
        self.trainer.precision.load_state_dict(shared["precision"])
        self.state.step, self.state.tokens = shared["step"], shared["tokens"]
        self.state.anomaly = AnomalyState.model_validate(shared["anomaly"])
        if loaded.own is not None:
            set_random_state(loaded.own["random"])
        self._saved_step, self._owes_save = info.step, False

    def _saved(self, info: CheckpointInfo) -> None:
        self._failed_saves.clear()
        self._saved_step, self._is_preemption_unsaved = info.step, False
        self.tell("checkpoint", info.name)

    def _finish(self, end: RunEnd) -> None:
        """Rank 0 exports the model and writes the report. The others do not wait: a large model takes longer to write than
        a collective may."""
        if self.writer is None:
            return
        config, info = self.config, self.checkpoints.latest()
        assert info is not None, "a run ends with a checkpoint"
        folder = config.output / f"model-{info.step:08d}"
        if end.ending == "finished" and not folder.exists():
            export_checkpoint(info, folder, config=config.model, tokenizer_from=config.tokenizer_folder)
            self.tell("export", folder.name)
        log = self._read_log()
        if end.ending == "finished" and not log.baselines:
            for name, loss in self.evaluator.bigram_losses().items():
                self.writer.write("baseline", name=name, loss=loss)
            log = self._read_log()
        write_report([log], path=config.output / REPORT_NAME, title=config.output.name)

    def _read_log(self) -> RunLog:
        config = self.config
        return load_run(config.output / METRICS_NAME, name=config.output.name, config=config.model_dump(mode="json"))


def _check_same(config: PretrainingConfig, info: CheckpointInfo) -> None:
    """Raises PretrainingConfigError if the run in the folder is another one than the configuration's."""
    before, now = _identity(info.manifest.shared["config"]), _identity(config.model_dump(mode="json"))
    for name, value in now.items():
        if before.get(name) != value:
            raise PretrainingConfigError(
                f"{name} = {value} here, and {before.get(name)} in the run that is in {config.output}: take that, or another "
                "output"
            )


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run counts with, and cannot change when it goes on: by the field's name."""
    model = {f"model.{name}": value for name, value in config["model"].items() if name != "expert_kernel"}
    batch = {
        "data.sequence_length": config["data"]["sequence_length"],
        "global_batch_size": config["global_batch_size"],
    }
    return model | batch


def open_run(folder: Path) -> PretrainingConfig:
    """The configuration of a run's folder. Raises ValueError if there is none."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ValueError(f"{folder} holds no {CONFIG_NAME}: give the output folder of a pre-training run")
    return PretrainingConfig.model_validate_json(path.read_text("utf-8"))
