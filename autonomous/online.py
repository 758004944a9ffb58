"""Online learning: a batch of learning items flows in, the weights of a new version flow out, and what its learner knows.

The base model is loaded once and stays frozen. A batch trains one adapter, fresh or a copy of the parent version's (here), or
a copy of all weights (online_weights.py), with a fixed share of replayed items in every step and a KL term to the base on
generic texts (train.adapt.trainer). The KL term keeps what the model knew: without it new facts were measured to wreck the
perplexity of unrelated texts tenfold. The methods of the policy come on top (policy.py, learner_state.py).
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from autonomous.config import LearningConfig
from autonomous.learner_state import hold, load_drift, save_drift
from autonomous.policy import decide_reaction
from autonomous.runs import LearningRun, StepReport
from autonomous.steps import StepPlan, train_steps
from autonomous.stream_drift import observe_batch
from memory.types import Guard
from train.adapt.base import BaseModelInMemory, load_base_model, pick_device
from train.adapt.lora import AdapterError, LoRAConfig, attach_adapter, detach_adapter, save_adapter
from train.adapt.trainer import AnchorReferences, NonFiniteLoss, OnlineTrainer, rows_batch
from train.adapt.weights import is_weights_folder
from train.continual.items import EncodedItem, LearningItem, build_batch, encode_item, text_item
from train.continual.rows import Batch
from train.dtype import TrainingDtype
from train.files import sync_path

__all__ = ["LearningRun", "NonFiniteLoss", "OnlineLearningModule", "StepReport"]

logger = logging.getLogger(__name__)


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
            self._base = load_base_model(self._base_folder, dtype=self._base_dtype(), device=device)
            self._references = AnchorReferences(self._base)

    @property
    def base(self) -> BaseModelInMemory:
        """The resident base model; its weights never change."""
        if self._base is None:
            raise RuntimeError(f"{type(self).__name__} has no model yet: call start() first")
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
        attempt: int = 1,
    ) -> LearningRun:
        """Train one batch and write weights and learner state to `out_folder`, which must not exist.

        `parent_adapter`: the parent version's folder, None for the frozen original. `guard` is called right before every
        optimizer step, while importance is measured, and before the save; what it raises ends the batch with nothing written.
        `attempt` counts the trainings of these items: each begins from another seed.
        The same arguments give the same weights, byte for byte, on one machine with the same threads.
        Raises: NonFiniteLoss; ValueError for an empty batch; AdapterError, WeightsError, LearnerStateError for an unusable
        parent or `out_folder`.
        """
        base, policy = self.base, self._config.policy
        config = self._config.model_copy(update={"seed": self._config.seed + attempt - 1})
        assert self._references is not None, "start() sets both"
        if not items:
            raise ValueError("items is empty: a batch needs at least one learning item")
        if out_folder.exists():
            raise AdapterError(f"folder {out_folder} exists already: save each version into a folder of its own")
        encoded, texts = self._encode(items), _as_items(anchors)
        start, cpu_start = time.monotonic(), time.process_time()
        monitor = load_drift(parent_adapter, policy)
        with self._opened(parent_adapter, seed=config.seed) as model:
            drift = observe_batch(monitor, items, encoded, parent=model, base=base)
            reaction = decide_reaction(drift, policy.drift, replay_ratio=config.replay_ratio)
            plan = StepPlan(
                encoded,
                replay=self._encode(replay),
                anchors=self._encode(texts),
                config=config.model_copy(update={"replay_ratio": reaction.replay_ratio}),
            )
            held = hold(model, policy, parent=parent_adapter, seed=config.seed)
            trainer = OnlineTrainer(
                model,
                base=base,
                references=self._references,
                original=lambda: self._original(model),
                kl_weight=config.kl_weight,
                max_grad_norm=config.max_grad_norm,
                methods=held.methods,
            )
            taken, metrics = train_steps(
                trainer,
                plan=plan,
                num_steps=config.max_steps,
                peak=self._peak_rate(parent_adapter) * reaction.rate_share,
                known_loss=config.known_loss,
                target_loss=config.target_loss,
                guard=guard,
                on_step=on_step,
            )
            held.finish(lambda: self._one_by_one(encoded, guard=guard))
            guard()
            with _appearing(out_folder) as folder:
                hashes = self._save(model, folder)
                held.save(folder)
                save_drift(folder, monitor)
        num_replayed = sum(len(step.replayed) for step in taken)
        run = LearningRun(
            num_steps=len(metrics),
            losses=tuple(one.loss for one in metrics),
            kls=tuple(one.kl for one in metrics),
            grad_norms=tuple(one.grad_norm for one in metrics),
            penalties=tuple(one.penalty for one in metrics),
            seconds=time.monotonic() - start,
            cpu_seconds=time.process_time() - cpu_start,
            num_tokens=sum(one.num_tokens for one in metrics),
            replay_share=num_replayed / (num_replayed + sum(len(step.new) for step in taken)),
            num_trainable=trainer.num_trainable,
            stopped_early=len(metrics) < config.max_steps,
            drift=drift,
            **hashes,
        )
        logger.info(
            "learned items=%d steps=%d loss=%.3f seconds=%.1f drift=%s",
            len(items), run.num_steps, run.losses[-1], run.seconds, run.drift,
        )  # fmt: skip
        return run

    # What is trained: here an adapter.

    def _base_dtype(self) -> TrainingDtype:
        return self._config.dtype

    def _peak_rate(self, parent: Path | None) -> float:
        return self._config.learning_rate * (self._config.continued_rate if parent is not None else 1.0)

    @contextmanager
    def _opened(self, parent: Path | None, *, seed: int) -> Iterator[Any]:
        """In the block a model with the parent's weights, of which those ask for gradients that are trained."""
        config = self._config
        if parent is not None and is_weights_folder(parent):
            raise AdapterError(
                f"the parent version in {parent} has full weights, and learning.target = 'adapter' trains an adapter on the "
                "original: set learning.target to 'weights', or roll back to a version with an adapter"
            )
        lora = LoRAConfig(r=config.lora_r, alpha=config.lora_alpha, seed=seed)
        adapted = attach_adapter(self.base.model, lora, parent=parent, is_float32=config.policy.holds_weights)
        try:
            yield adapted
        finally:
            detach_adapter(adapted)

    def _original(self, model: Any) -> AbstractContextManager[Any]:
        return _without_adapter(model)

    def _save(self, model: Any, folder: Path) -> dict[str, Any]:
        """Write what was trained; its hash under the name of LearningRun's field."""
        return {"adapter_sha256": save_adapter(model, folder=folder, base_name=self.base.folder.name)}

    def _one_by_one(self, encoded: Sequence[EncodedItem], *, guard: Guard) -> Iterator[Batch]:
        for one in encoded:
            guard()
            yield rows_batch(build_batch([one], pad_id=self.base.pad_id, device=self.base.device))

    def _encode(self, items: Sequence[LearningItem]) -> list[EncodedItem]:
        max_tokens = self._config.max_item_tokens
        return [encode_item(item, tokenizer=self.base.tokenizer, max_tokens=max_tokens) for item in items]


@contextmanager
def _without_adapter(adapted: Any) -> Iterator[Any]:
    with adapted.disable_adapter():
        yield adapted


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A name to write a folder under, that becomes `folder` when the block ends, and nothing if it raises."""
    partial = folder.with_name(f"{folder.name}.learning")
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted call left
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_path(folder.parent)


def _as_items(texts: Sequence[str]) -> list[LearningItem]:
    return [text_item(text, item_id=f"anchor {row}") for row, text in enumerate(texts)]
