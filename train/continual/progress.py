"""Progress: where a ContinualTrainer is in a task, and what it needs to go on there, or to give the task up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from train.continual.method import Task


@dataclass(slots=True)
class Progress:
    """In the midst of a task."""

    task: Task
    labels: tuple[int, int]
    """The least and the largest of the task's samples."""
    kept: dict[str, Tensor]
    """Weights and buffers that the task's training changes, as they were before."""
    random: dict[str, Any]
    """The random states before."""
    step: int = 0
    """Steps that are done."""
    losses: list[float] = field(default_factory=list)
    """Of each of them."""
    is_held: bool = False
    """Whether a penalty was above 0."""
    is_retraining: bool = False
    """Whether `before_retraining` was called."""
    is_trained: bool = False
    """Whether all steps were taken: from then on it cannot be given up."""
    num_finished: int = 0
    """Methods whose `after_task` was called."""

    def state_dict(self) -> dict[str, Any]:
        """See ContinualTrainer."""
        task = {
            "name": self.task.name, "index": self.task.index,
            "classes": None if self.task.classes is None else list(self.task.classes),
        }  # fmt: skip
        others = {name: getattr(self, name) for name in self.__slots__ if name != "task"}
        return others | {"task": task, "labels": list(self.labels)}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "Progress":
        """What `state_dict` gave."""
        task, classes = state["task"], state["task"]["classes"]
        whole = Task(task["name"], task["index"], classes=None if classes is None else tuple(classes))
        return cls(**{**state, "task": whole, "labels": tuple(state["labels"]), "losses": list(state["losses"])})
