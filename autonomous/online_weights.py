"""Plan B's online learning: a batch trains a copy of all weights of its parent, from any Hugging Face causal language model.

The model may be dense or a Mixture of Experts (train.model writes such folders). The frozen original stays in memory
beside the copy, for the KL. Memory: the original, the copy, and 16 bytes per parameter (float32 weight, gradient, AdamW's two
moments; 12 where the copy is float32 itself); ewc adds 8 bytes per parameter, si 24, lwf another copy.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

from autonomous.config import LearningConfig
from autonomous.online import OnlineLearningModule
from train.adapt.weights import check_trainable, load_version, save_weights
from train.dtype import TrainingDtype


class WeightsLearner(OnlineLearningModule):
    """Trains full weights, one batch at a time. Not thread-safe: one owner."""

    def start(self) -> None:
        """Load the base model; idempotent. Raises: ModelFolderProblem; WeightsError for a model in our own layout."""
        check_trainable(self._base_folder)
        super().start()

    def _base_dtype(self) -> TrainingDtype:
        return "float32" if self._config.policy.holds_weights else self._config.dtype

    def _peak_rate(self, parent: Path | None) -> float:
        return self._config.weights_learning_rate

    @contextmanager
    def _opened(self, parent: Path | None, *, seed: int) -> Iterator[Any]:
        """A copy of the parent's weights; of a parent with an adapter the base with that merged in."""
        del seed  # nothing is drawn
        yield load_version(parent, base=self.base).requires_grad_(True)

    def _original(self, model: Any) -> AbstractContextManager[Any]:
        return nullcontext(self.base.model)

    def _save(self, model: Any, folder: Path) -> dict[str, Any]:
        return {"weights_sha256": save_weights(model, folder=folder, base_folder=self.base.folder)}


LEARNERS: dict[Literal["adapter", "weights"], type[OnlineLearningModule]] = {
    "adapter": OnlineLearningModule,
    "weights": WeightsLearner,
}


def build_learner(config: LearningConfig, *, base_folder: Path) -> OnlineLearningModule:
    """The learner of `config.target`, not started."""
    return LEARNERS[config.target](config, base_folder=base_folder)
