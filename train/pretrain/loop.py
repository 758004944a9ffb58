"""The training loop: one function, read from top to bottom.

In: a PretrainingEngine, with everything that was made for the run. Out: how it ended. Every rank runs this at once; what is
decided here is decided on numbers that are the same on all ranks, so that all take the same way.

A step reads a batch, runs the engine over it, asks whether what came out is sane, and updates the weights, or leaves the
batch out, or goes back to the last checkpoint and goes on behind the batch. Then the records, and what is due.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from train.pretrain.anomaly import StepEvent, decide
from train.pretrain.schedule import learning_rate

if TYPE_CHECKING:
    from train.pretrain.engine import PretrainingEngine

Ending = Literal["finished", "stopped"]


class TrainingFailed(RuntimeError):
    """The run cannot go on by itself: what happened, and what a person can do."""


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended."""

    ending: Ending
    """finished: all steps are done; stopped: it was asked to stop, and can be resumed."""
    step: int
    """Optimizer steps that are done."""
    tokens: int
    """That were read, without padding."""
    reason: str = ""
    """Of a stop."""


def train(run: "PretrainingEngine") -> RunEnd:
    """All steps that are left. Raises TrainingFailed where the loss does not recover or checkpoints cannot be written."""
    config, state, timer = run.config, run.state, run.timer
    engine, precision, checkpoints = run.trainer.engine, run.trainer.precision, run.checkpoints
    total_steps = config.total_steps

    while state.step < total_steps:
        if run.is_asked_to_stop():
            run.save(is_last=True)
            return RunEnd("stopped", state.step, state.tokens, run.stop_reason() or "another rank was asked to stop")

        with timer("data"):
            found = run.trainer.read(run.loader)
            assert found is not None, "the loader has no end"
            micro_batches, totals = found
        with timer("forward and backward"):
            sums = engine.run(micro_batches, totals, scale=precision.scale)
            norm = engine.gradient_norm()
        event = StepEvent(
            step=state.step + 1, loss=sums.loss + sums.auxiliary, grad_norm=norm,
            is_overflow_expected=precision.is_scaled,
        )  # fmt: skip
        decision, state.anomaly = decide(state.anomaly, event, config.anomaly)
        with timer("checkpoint"):
            checkpoints.finish_staging()  # a save may still read what the update changes
        with timer("update"):
            lr = learning_rate(state.step, peak_lr=config.optimizer.lr, total_steps=total_steps, config=config.schedule)
            if decision.kind == "proceed":
                engine.update(lr=lr, norm=norm)
            else:
                engine.discard()
            precision.finish_step(is_finite=math.isfinite(norm))

        if decision.kind in ("rewind", "stop"):
            run.tell(decision.kind, f"{decision.reason}; batch of step {state.step + 1}")
        if decision.kind == "stop":
            raise TrainingFailed(decision.reason)
        if decision.kind == "rewind":
            run.rewind()
            continue
        state.step += 1
        state.tokens += totals.num_tokens
        if decision.kind == "skip":
            run.record_skip(decision.reason)
        else:
            run.record_step(sums, norm=norm, lr=lr, num_tokens=totals.num_tokens)

        if state.step % config.evaluation.every_steps == 0 or state.step == total_steps:
            with timer("evaluation"):
                run.evaluate()
        with timer("checkpoint"):
            run.poll_save()
            if run.is_save_due():
                run.save(is_last=state.step == total_steps)
    return RunEnd("finished", state.step, state.tokens)
