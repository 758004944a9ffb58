"""What each optimizer step of a batch sees, at which rate, and when the batch is learned. Pure but for the training itself."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from autonomous.config import LearningConfig
from autonomous.runs import StepReport
from memory.types import Guard
from train.adapt.trainer import OnlineTrainer, StepMetrics
from train.continual.items import EncodedItem
from train.replay_share import num_replay

NUM_WARMUP_STEPS = 2
FINAL_RATE = 0.2
"""The learning rate falls along a cosine to this share of its peak."""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What one optimizer step sees."""

    new: tuple[EncodedItem, ...]
    replayed: tuple[EncodedItem, ...]
    anchors: tuple[EncodedItem, ...]


class StepPlan:
    """The steps of a batch, one after another. A round of `num_parts` steps that learn shows every new item once.

    While the new items are learned, `replay_ratio` of a step's items are old. In a step that consolidates what the line has
    learned the shares change places, where fewer were old. All are dealt from shuffled decks, so that each of a kind is seen
    equally often; a round that consolidates deals from a deck of its own, and moves no item out of the round after it.
    """

    def __init__(
        self,
        items: Sequence[EncodedItem],
        *,
        replay: Sequence[EncodedItem],
        anchors: Sequence[EncodedItem],
        config: LearningConfig,
    ) -> None:
        self._config = config
        self._num_new, self._num_old, self._num_anchors = len(items), len(replay), len(anchors)
        rng = random.Random(config.seed)
        kinds = (items, items, replay, anchors)
        self._new_deck, self._known_deck, self._old_deck, self._anchor_deck = (_deal(kind, rng=rng) for kind in kinds)
        self._number = 0
        self.num_parts = math.ceil(len(items) / config.items_per_step)

    @property
    def has_replay(self) -> bool:
        """Whether there are old items, and steps take any."""
        return self._num_old > 0 and self._config.replay_ratio > 0

    def draw(self, *, consolidates: bool) -> PlannedStep:
        """The next step."""
        part = self._number % self.num_parts
        self._number += 1
        num_new = self._num_new * (part + 1) // self.num_parts - self._num_new * part // self.num_parts
        num_old = num_replay(num_new, self._config.replay_ratio)
        if consolidates and num_old < num_new:
            num_new, num_old = max(num_old, 1), num_new
        return PlannedStep(
            new=tuple(islice(self._known_deck if consolidates else self._new_deck, num_new)),
            replayed=tuple(islice(self._old_deck, min(num_old, self._num_old))),
            anchors=tuple(islice(self._anchor_deck, min(self._config.kl_texts_per_step, self._num_anchors))),
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
    plan: StepPlan,
    num_steps: int,
    peak: float,
    known_loss: float,
    target_loss: float,
    guard: Guard,
    on_step: Callable[[StepReport], None],
) -> tuple[list[PlannedStep], list[StepMetrics]]:
    """Take at most so many steps, until new and replayed items are below `target_loss` in a round that shows enough of both.

    A round consolidates if in the one before it the new items were below `known_loss`; a further one, if they were also better
    known than the replayed ones.
    """
    taken: list[PlannedStep] = []
    metrics: list[StepMetrics] = []
    consolidates = False
    for number in range(num_steps):
        step_start = time.monotonic()
        step = plan.draw(consolidates=consolidates)
        seen = trainer.step(
            step.new,
            replayed=step.replayed,
            anchors=step.anchors,
            learning_rate=learning_rate_at(number, num_steps=num_steps, peak=peak),
            guard=guard,
        )
        taken.append(step)
        metrics.append(seen)
        report = StepReport(
            step=number + 1,
            num_steps=num_steps,
            loss=seen.loss,
            kl=seen.kl,
            grad_norm=seen.grad_norm,
            seconds=time.monotonic() - step_start,
            num_tokens=seen.num_tokens,
        )
        on_step(report)
        if len(taken) % plan.num_parts == 0:
            new, old = mean_losses(metrics[-plan.num_parts :])
            if max(new, old) < target_loss and consolidates == plan.has_replay:
                break
            consolidates = plan.has_replay and new < (min(known_loss, old) if consolidates else known_loss)
    return taken, metrics


def mean_losses(steps: Sequence[StepMetrics]) -> tuple[float, float]:
    """Nats per target token, of the new items and of the replayed ones; 0 without any."""
    new = sum(step.loss_sum for step in steps) / sum(step.num_targets for step in steps)
    num_old = sum(step.num_replay_targets for step in steps)
    return new, sum(step.replay_loss_sum for step in steps) / num_old if num_old else 0.0
