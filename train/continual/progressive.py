"""ProgressiveNetworks: a column of layers per task, which also reads what the earlier columns' layers say.

    h_i^k = relu(W_i^k h_{i-1}^k + sum over j < k of U_i^{k:j} h_{i-1}^j)

Earlier columns are frozen: their outputs stay the same bit for bit. Parameters grow with the square of the number of tasks.
Source: arXiv:1606.04671, with linear laterals. Task-incremental: whoever asks has to say which task's column answers.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from train.continual.method import ContinualMethod, Learner


class Column(nn.Module):
    """Layers of one task, and what they read of the `num_before` columns before it."""

    def __init__(self, sizes: Sequence[int], *, num_before: int) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(sizes))
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairs)
        self.laterals = nn.ModuleList(
            nn.ModuleList(nn.Linear(inputs, outputs, bias=False) for _ in range(num_before))
            for inputs, outputs in pairs[1:]
        )
        """Of every layer but the first, one per earlier column."""


class ProgressiveNetworks(nn.Module):
    """A classifier of one width for all tasks."""

    _place: Tensor
    """Where new columns go: wherever the model was moved to."""

    def __init__(self, sizes: Sequence[int], *, device: torch.device | str = "cpu") -> None:
        """`sizes`: inputs, hidden widths, outputs of every column. `device`: of the columns to come, if it is not moved."""
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes = {list(sizes)}: give inputs, hidden widths and outputs, each at least 1")
        self.sizes = tuple(sizes)
        self.register_buffer("_place", torch.empty(0, device=device), persistent=False)
        self.columns = nn.ModuleList()
        self.active = -1
        """The column that answers."""

    def add_column(self) -> None:
        """A new one, which answers from now on; the others are frozen."""
        self.requires_grad_(False)
        self.columns.append(Column(self.sizes, num_before=len(self.columns)).to(self._place.device))
        self.active = len(self.columns) - 1

    def remove_column(self) -> None:
        """The last one: the one before it answers and is trained again."""
        del self.columns[-1]
        self.active = len(self.columns) - 1
        if self.columns:
            self.columns[-1].requires_grad_(True)

    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        """Logits of the active column."""
        states = [x] * (self.active + 1)
        num_layers = len(self.sizes) - 1
        for layer in range(num_layers):
            found = []
            for index, column in enumerate(cast(list[Column], list(self.columns)[: self.active + 1])):
                out = column.layers[layer](states[index])
                if layer:
                    for before, lateral in enumerate(cast(nn.ModuleList, column.laterals[layer - 1])):
                        out = out + lateral(states[before])
                found.append(out if layer == num_layers - 1 else torch.relu(out))
            states = found
        return states[self.active]


class ProgressiveColumns(ContinualMethod):
    """Gives each task a column of the ProgressiveNetworks that is trained."""

    has_weights_per_task = True

    def attach(self, learner: Learner) -> None:
        """Raises ValueError for another kind of model."""
        if not isinstance(learner.model, ProgressiveNetworks):
            raise ValueError(
                f"progressive networks grow a ProgressiveNetworks, and the model is {type(learner.model).__name__}"
            )
        super().attach(learner)

    def grow(self, *, num_tasks: int) -> None:
        """See ContinualMethod."""
        while len(self._model.columns) < num_tasks:
            self._model.add_column()
        self._model.active = num_tasks - 1

    def shrink(self, *, num_tasks: int) -> None:
        """See ContinualMethod."""
        while len(self._model.columns) > num_tasks:
            self._model.remove_column()

    @contextlib.contextmanager
    def serving(self, task: int | None) -> Iterator[None]:
        """In the block a task's column answers; None: the last one. Raises ValueError for a task to come."""
        model, num_columns = self._model, len(self._model.columns)
        if task is not None and not 0 <= task < num_columns:
            raise ValueError(f"task {task} was not learned: there are {num_columns}, counted from 0")
        if task is None:
            yield
            return
        before, model.active = model.active, task
        try:
            yield
        finally:
            model.active = before

    @property
    def _model(self) -> ProgressiveNetworks:
        return cast(ProgressiveNetworks, self.learner.model)
