"""Online learning: a batch of learning items flows in, a LoRA adapter in PEFT's format flows out.

The base model is loaded once and stays frozen. A batch trains one adapter, fresh or a copy of the parent version's, with
a fixed share of replayed items in every step and a KL term to the base on generic texts (train.adapt.trainer). The KL term
keeps what the model knew: without it new facts were measured to wreck the perplexity of unrelated texts tenfold.
"""

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from autonomous.config import LearningConfig
from autonomous.runs import LearningRun, StepReport
from memory.types import Guard
from train.adapt.base import BaseModelInMemory, load_base_model, pick_device
from train.adapt.lora import LoRAConfig, attach_adapter, detach_adapter, save_adapter
from train.adapt.trainer import AdapterTrainer, AnchorReferences, NonFiniteLoss, StepMetrics
from train.continual.items import EncodedItem, LearningItem, encode_item, text_item
from train.continual.replay import num_replay

__all__ = [
    "LearningRun",
    "NonFiniteLoss",
    "OnlineLearningModule",
    "StepReport",
    "is_learned",
    "learning_rate_at",
    "plan_steps",
]

logger = logging.getLogger(__name__)

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


class OnlineLearningModule:
    """Trains adapters on one resident base model, one batch at a time. Not thread-safe: one owner."""

    def __init__(self, config: LearningConfig, *, base_folder: Path) -> None:
        self._config = config
        self._base_folder = base_folder
        self._base: BaseModelInMemory | None = None
        self._references: AnchorReferences | None = None

    def start(self) -> None:
        """Load the base model; idempotent. Raises: ModelFolderProblem."""
        if self._base is None:
            torch.set_num_threads(self._config.num_threads)
            device = pick_device(self._config.device)
            self._base = load_base_model(self._base_folder, dtype=self._config.dtype, device=device)
            self._references = AnchorReferences(self._base)

    @property
    def base(self) -> BaseModelInMemory:
        """The resident base model; its weights never change."""
        if self._base is None:
            raise RuntimeError("OnlineLearningModule has no model yet: call start() first")
        return self._base

    def learn(
        self,
        items: Sequence[LearningItem],
        *,
        replay: Sequence[LearningItem],
        anchors: Sequence[str],
        parent_adapter: Path | None,
        out_folder: Path,
        guard: Guard,
        on_step: Callable[[StepReport], None],
    ) -> LearningRun:
        """Train one adapter and write it to `out_folder`, which must not exist.

        `guard` is called right before every optimizer step and before the save; what it raises ends the batch with nothing
        written. The same arguments give the same adapter, byte for byte, on one machine with the same threads.
        Raises: NonFiniteLoss; ValueError for an empty batch; AdapterError for an unusable parent or `out_folder`.
        """
        base, config = self.base, self._config
        assert self._references is not None, "start() sets both"
        if not items:
            raise ValueError("items is empty: a batch needs at least one learning item")
        texts = [text_item(text, item_id=f"anchor {row}") for row, text in enumerate(anchors)]
        plan = list(
            plan_steps(self._encode(items), replay=self._encode(replay), anchors=self._encode(texts), config=config)
        )
        start, cpu_start = time.monotonic(), time.process_time()
        lora = LoRAConfig(r=config.lora_r, alpha=config.lora_alpha, seed=config.seed)
        adapted = attach_adapter(base.model, lora, parent=parent_adapter)
        try:
            trainer = AdapterTrainer(
                adapted,
                base=base,
                references=self._references,
                kl_weight=config.kl_weight,
                max_grad_norm=config.max_grad_norm,
            )
            peak = config.learning_rate * (config.continued_rate if parent_adapter is not None else 1.0)
            reports, num_tokens = _train(
                trainer, plan=plan, peak=peak, target_loss=config.target_loss, guard=guard, on_step=on_step
            )
            guard()
            sha256 = save_adapter(adapted, folder=out_folder, base_name=base.folder.name)
        finally:
            detach_adapter(adapted)
        taken = plan[: len(reports)]
        num_replayed = sum(len(step.replayed) for step in taken)
        run = LearningRun(
            num_steps=len(reports),
            losses=tuple(report.loss for report in reports),
            kls=tuple(report.kl for report in reports),
            grad_norms=tuple(report.grad_norm for report in reports),
            seconds=time.monotonic() - start,
            cpu_seconds=time.process_time() - cpu_start,
            num_tokens=num_tokens,
            replay_share=num_replayed / (num_replayed + sum(len(step.new) for step in taken)),
            adapter_sha256=sha256,
            num_trainable=trainer.num_trainable,
            stopped_early=len(reports) < len(plan),
        )
        logger.info(
            "learned items=%d steps=%d loss=%.3f seconds=%.1f", len(items), run.num_steps, run.losses[-1], run.seconds
        )
        return run

    def _encode(self, items: Sequence[LearningItem]) -> list[EncodedItem]:
        max_tokens = self._config.max_item_tokens
        return [encode_item(item, tokenizer=self.base.tokenizer, max_tokens=max_tokens) for item in items]


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


def _train(
    trainer: AdapterTrainer,
    *,
    plan: Sequence[PlannedStep],
    peak: float,
    target_loss: float,
    guard: Guard,
    on_step: Callable[[StepReport], None],
) -> tuple[list[StepReport], int]:
    """Take the planned steps, or fewer if an epoch `is_learned`: returns (reports, trained tokens).

    Replayed items count there, or a batch that is learned quickly ends before the old items have recovered.
    """
    reports: list[StepReport] = []
    num_tokens = 0
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
        )
        reports.append(report)
        on_step(report)
        num_tokens += metrics.num_tokens
        epoch.append(metrics)
        if step.ends_epoch:
            if is_learned(epoch, target_loss=target_loss):
                break
            epoch.clear()
    return reports, num_tokens


def is_learned(epoch: Sequence[StepMetrics], *, target_loss: float) -> bool:
    """Whether the epoch's mean losses per target token, of new and of replayed items, are both below the target."""
    loss = sum(step.loss_sum for step in epoch) / sum(step.num_targets for step in epoch)
    num_old = sum(step.num_replay_targets for step in epoch)
    replay_loss = sum(step.replay_loss_sum for step in epoch) / num_old if num_old else 0.0
    return max(loss, replay_loss) < target_loss
