"""What each optimizer step of a batch sees, at which rate, and when the batch is learned. Pure but for the training itself."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from autonomous.config import LearningConfig
from autonomous.runs import StepReport
from memory.types import Guard
from train.adapt.trainer import OnlineTrainer, StepMetrics
from train.continual.items import EncodedItem
from train.continual.replay import num_replay

NUM_WARMUP_STEPS = 2
FINAL_RATE = 0.2
"""The learning rate falls along a cosine to this share of its peak."""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What one optimizer step sees."""

    new: tuple[EncodedItem, ...]
    replayed: tuple[EncodedItem, ...]
    anchors: tuple[EncodedItem, ...]
    ends_epoch: bool


def plan_steps(
    items: Sequence[EncodedItem],
    *,
    replay: Sequence[EncodedItem],
    anchors: Sequence[EncodedItem],
    config: LearningConfig,
) -> Iterator[PlannedStep]:
    """The batches of `max_steps` steps: whole epochs over `items` in even parts, each in a new order, the last cut off.

    Replayed items and anchors are dealt from shuffled decks, so that each is seen equally often.
    """
    rng = random.Random(config.seed)
    replay_deck, anchor_deck = _deal(replay, rng=rng), _deal(anchors, rng=rng)
    parts = math.ceil(len(items) / config.items_per_step)
    for number in range(config.max_steps):
        part = number % parts
        if part == 0:
            order = rng.sample(items, len(items))
        new = order[len(order) * part // parts : len(order) * (part + 1) // parts]
        num_old = min(num_replay(len(new), config.replay_ratio), len(replay))
        num_anchors = min(config.kl_texts_per_step, len(anchors))
        yield PlannedStep(
            new=tuple(new),
            replayed=tuple(next(replay_deck) for _ in range(num_old)),
            anchors=tuple(next(anchor_deck) for _ in range(num_anchors)),
            ends_epoch=part == parts - 1,
        )


def learning_rate_at(step: int, *, num_steps: int, peak: float) -> float:
    """Rate of step 0, 1, ...: a short linear warm-up, then a cosine from `peak` to `FINAL_RATE * peak`."""
    if step < NUM_WARMUP_STEPS:
        return peak * (step + 1) / (NUM_WARMUP_STEPS + 1)
    progress = (step - NUM_WARMUP_STEPS) / max(num_steps - NUM_WARMUP_STEPS, 1)
    return peak * (FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * progress)) / 2)


def _deal(items: Sequence[EncodedItem], *, rng: random.Random) -> Iterator[EncodedItem]:
    """The items over and over, shuffled anew each time."""
    while items:
        yield from rng.sample(items, len(items))


def train_steps(
    trainer: OnlineTrainer,
    *,
    plan: Sequence[PlannedStep],
    peak: float,
    target_loss: float,
    guard: Guard,
    on_step: Callable[[StepReport], None],
) -> tuple[list[StepReport], list[StepMetrics]]:
    """Take the planned steps, or fewer if an epoch `is_learned`.

    Replayed items count there, or a batch that is learned quickly ends before the old items have recovered.
    """
    reports: list[StepReport] = []
    taken: list[StepMetrics] = []
    epoch: list[StepMetrics] = []
    for number, step in enumerate(plan):
        step_start = time.monotonic()
        metrics = trainer.step(
            step.new,
            replayed=step.replayed,
            anchors=step.anchors,
            learning_rate=learning_rate_at(number, num_steps=len(plan), peak=peak),
            guard=guard,
        )
        report = StepReport(
            step=number + 1,
            num_steps=len(plan),
            loss=metrics.loss,
            kl=metrics.kl,
            grad_norm=metrics.grad_norm,
            seconds=time.monotonic() - step_start,
            num_tokens=metrics.num_tokens,
        )
        reports.append(report)
        on_step(report)
        taken.append(metrics)
        epoch.append(metrics)
        if step.ends_epoch:
            if is_learned(epoch, target_loss=target_loss):
                break
            epoch.clear()
    return reports, taken


def is_learned(epoch: Sequence[StepMetrics], *, target_loss: float) -> bool:
    """Whether the epoch's mean losses per target token, of new and of replayed items, are both below the target."""
    loss = sum(step.loss_sum for step in epoch) / sum(step.num_targets for step in epoch)
    num_old = sum(step.num_replay_targets for step in epoch)
    replay_loss = sum(step.replay_loss_sum for step in epoch) / num_old if num_old else 0.0
    return max(loss, replay_loss) < target_loss
