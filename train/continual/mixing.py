"""BatchReplay: samples of earlier tasks in every batch, as a fixed share of it.

    n new samples are joined by n r / (1 - r) old ones, so that these are r of the mixed batch: 32 new and 8 old at 0.2

What is no whole sample in a step is made up in later ones: 2 new samples have an old one beside them in every second step.
How the old samples are shared among the earlier tasks follows from what each left in the buffer, or from weights (`mix`).
DER++ besides holds on to what the model said: the logits are kept with the sample, and their squared distance from today's is
added to the loss (arXiv:2004.07211). Only earlier tasks are replayed: a task's samples go to the buffer at its end.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from train.continual.buffer import ID, ReplayBuffer, check_id
from train.continual.method import ContinualMethod, Learner, Samples, Task
from train.continual.replay import ExperienceReplay
from train.continual.rows import Batch, Rows, evaluating, join

LOGITS, IS_OLD = "kept_logits", "is_old"
"""Fields that DER++ adds to a batch."""
ROUNDING = 1e-9
"""Of an old sample, that sums of shares are off by at most."""


class ReplayConfig(BaseModel):
    """How much is kept, and how much of it is seen again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    capacity: int = Field(100_000, gt=0)
    """Samples that stay, of all tasks together."""
    share: float = Field(0.2, ge=0, lt=1)
    """Old samples in the mixed batch."""
    logits_weight: float = Field(0.0, ge=0)
    """DER++: factor on the mean squared distance of logits per replayed row; 0: plain replay. For classifiers."""
    folder: Path | None = None
    """Where the buffer lies on disk, each rank's in a folder there; None: in memory."""
    seed: int = 0
    """Of what stays, and of the draws."""


class BatchReplay(ContinualMethod):
    """Experience replay. On several ranks each holds what it saw itself; together that is one buffer, by key, and what is
    drawn from it is the same on any number of ranks."""

    def __init__(self, config: ReplayConfig | None = None) -> None:
        self.config = config or ReplayConfig()
        self.buffer = ReplayBuffer(self.config.capacity, seed=self.config.seed, folder=self.config.folder)
        self.ids: list[int] = []
        """Of the samples that stay, over all ranks."""
        self.tasks: list[int] = []
        """Of each of them, the task that it is of."""
        self._elsewhere: set[int] = set()
        """Of them, those that other ranks keep."""
        self._task = 0
        self._weights: dict[int, float] | None = None
        self._groups: list[tuple[float, list[int]]] = [(1.0, self.ids)]
        """Ids that are drawn from together, and the weight of the group."""
        self._queues: list[list[int]] = [[]]
        """Of each group, the ids that were not drawn since all of it were; a list is replaced, never changed."""
        self._owed = 0.0
        """Part of an old sample that earlier steps did not get."""
        self._rng = np.random.default_rng(self.config.seed)
        self._before_task: dict[str, Any] = {}
        self._before_batch: dict[str, Any] = {}
        """What is drawn by, as it was then; nothing before the first task, and between steps."""

    def attach(self, learner: Learner) -> None:
        """Raises ValueError for a language model whose logits should be kept: each token has as many as there are words."""
        super().attach(learner)
        if self.config.logits_weight and learner.kind != "classifier":
            raise ValueError(
                f"logits_weight = {self.config.logits_weight:g} keeps logits with each sample, which is for classifiers: set 0"
            )
        if self.config.folder is not None and learner.group is not None:
            folder = self.config.folder / f"rank-{learner.group.rank()}"
            self.buffer = ReplayBuffer(self.config.capacity, seed=self.config.seed, folder=folder)

    def check_samples(self, task: Task, batch: Batch, *, first: Batch) -> None:
        """Raises ValueError for samples that the buffer cannot hold beside those that it has, on this rank or another."""
        self.buffer.check(batch, first=first, to_come=(LOGITS,))
        if found := self._elsewhere.intersection(batch[ID].tolist()):
            raise ValueError(
                f"sample {min(found)} was learned in an earlier task, and another rank keeps it: give it to that rank, or "
                "another id"
            )

    def before_task(self, task: Task) -> None:
        """See ContinualMethod."""
        self._before_task = self._draws()
        self._task = task.index

    def abandon_task(self) -> None:
        """See ContinualMethod."""
        self._draw_as(self._before_task)

    def mix(self, weights: Mapping[int, float] | None) -> None:
        """From now on share the old samples by these weights among the earlier tasks; None: as they lie in the buffer. The
        same on all ranks. Raises ValueError for a task without samples, and for weights below 0 or all 0."""
        if weights is not None:
            if missing := sorted(weights.keys() - set(self.tasks)):
                raise ValueError(
                    f"weights name tasks {missing}, of which the buffer has no sample: it has {sorted(set(self.tasks))}"
                )
            if min(weights.values(), default=0.0) < 0 or not sum(weights.values()) > 0:
                raise ValueError(f"weights = {dict(weights)}: give numbers of at least 0, one of them above")
        self._weights = None if weights is None else {task: float(weight) for task, weight in weights.items()}
        self._group()
        self._queues = [[] for _ in self._groups]

    def change_batch(self, batch: Batch, *, num_samples: int) -> Batch:
        """Raises ValueError for a batch without ids. See ContinualMethod."""
        check_id(batch)
        self._before_batch = self._draws()
        drawn = self._draw(self._due(num_samples))
        mine = [number for number in drawn if number in self.buffer]
        if not mine:
            return batch
        old = {name: value.to(batch[ID].device) for name, value in self.buffer.take(mine).items()}
        if not self.config.logits_weight:
            return join([batch, old])
        kept = old[LOGITS]
        new = {LOGITS: kept.new_zeros(len(batch[ID]), *kept.shape[1:])}
        is_old = [torch.zeros(len(batch[ID]), dtype=torch.bool), torch.ones(len(kept), dtype=torch.bool)]
        return join([batch | new, old]) | {IS_OLD: torch.cat(is_old).to(kept.device)}

    def undo_batch(self) -> None:
        """See ContinualMethod."""
        self._draw_as(self._before_batch)

    def after_step(self) -> None:
        """See ContinualMethod."""
        self._before_batch = {}

    def saved(self) -> None:
        """See ContinualMethod."""
        self.buffer.saved()

    def _draws(self) -> dict[str, Any]:
        """What the next draws follow from."""
        weights = None if self._weights is None else [list(pair) for pair in self._weights.items()]
        return {
            "task": self._task, "weights": weights, "queues": list(self._queues), "owed": self._owed,
            "rng": self._rng.bit_generator.state,
        }  # fmt: skip

    def _draw_as(self, draws: Mapping[str, Any]) -> None:
        if not draws:
            return
        self._task, self._owed = draws["task"], draws["owed"]
        self._weights = None if draws["weights"] is None else dict(map(tuple, draws["weights"]))
        self._group()
        self._queues = list(draws["queues"])
        self._rng.bit_generator.state = draws["rng"]

    def _due(self, num_new: int) -> int:
        """Old samples beside so many new ones."""
        if not self.ids:
            return 0
        wanted = self._owed + num_new * self.config.share / (1 - self.config.share)
        count = int(wanted + ROUNDING)
        self._owed = wanted - count
        return count

    def _group(self) -> None:
        if self._weights is None:
            self._groups = [(1.0, self.ids)]
            return
        ids: dict[int, list[int]] = {task: [] for task in self._weights}
        for number, task in zip(self.ids, self.tasks, strict=True):
            if task in ids:
                ids[task].append(number)
        self._groups = [(self._weights[task], found) for task, found in ids.items()]

    def _draw(self, count: int) -> list[int]:
        """Ids, each once. Every sample of a group comes up before one comes up again: that remembers better than draws that
        do not know of each other."""
        drawn: list[int] = []
        for index, ((_, ids), size) in enumerate(zip(self._groups, self._counts(count), strict=True)):
            queue = self._queues[index]
            if len(queue) < size:
                left = set(queue)
                queue = queue + [one for one in self._rng.permutation(ids).tolist() if one not in left]
            drawn += queue[:size]
            self._queues[index] = queue[size:]
        return drawn

    def _counts(self, count: int) -> list[int]:
        """Samples of each group: drawn by the weights, and what a group has too few for goes to the others."""
        weights = np.asarray([weight for weight, _ in self._groups], np.float64)
        room = np.asarray([len(ids) if weight > 0 else 0 for weight, ids in self._groups])
        counts = np.zeros_like(room)
        count = min(count, int(room.sum()))
        while missing := count - int(counts.sum()):
            open_weights = np.where(counts < room, weights, 0.0)
            drawn = self._rng.multinomial(missing, open_weights / open_weights.sum())
            counts = np.minimum(counts + drawn, room)
        found: list[int] = counts.tolist()
        return found

    def rows_penalty(self, batch: Batch, rows: Rows) -> Tensor | None:
        """See ContinualMethod."""
        if IS_OLD not in batch:
            return None
        distance = (rows.logits.float() - batch[LOGITS]).square().mean(1)
        return self.config.logits_weight * distance[batch[IS_OLD]].sum()

    @torch.no_grad()
    def after_task(self, samples: Samples) -> None:
        """See ContinualMethod."""
        learner = self.learner

        def keep() -> None:
            with evaluating(learner.model):
                for batch in samples():
                    kept = {LOGITS: learner.rows_of(batch).logits.float()} if self.config.logits_weight else {}
                    self.buffer.add(batch | kept)

        learner.together(keep)
        self._take_stock()

    def _take_stock(self) -> None:
        """What one buffer would keep that had seen all ranks' samples, and of which task each is."""
        group = self.learner.group
        known = dict(zip(self.ids, self.tasks, strict=True))
        mine = self.buffer.ids()
        if group is not None:
            found: list[list[int]] = [[]] * group.size()
            dist.all_gather_object(found, mine, group=group)
            union: ExperienceReplay[None] = ExperienceReplay(self.config.capacity, seed=self.config.seed)
            union.add({str(number): None for ids in found for number in ids})
            mine = [int(name) for name in union.items()]
        self.ids, self.tasks = mine, [known.get(number, self._task) for number in mine]
        self._elsewhere = {number for number in self.ids if number not in self.buffer}
        self.mix(None)

    def state_dict(self) -> dict[str, Any]:
        """See ContinualMethod."""
        return {
            "buffer": self.buffer.state_dict(), "ids": self.ids, "tasks": self.tasks, "draws": self._draws(),
            "before_task": self._before_task,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ContinualMethod."""
        self.buffer.load_state_dict(state["buffer"])
        self.ids, self.tasks = list(state["ids"]), list(state["tasks"])
        self._elsewhere = {number for number in self.ids if number not in self.buffer}
        self._draw_as(state["draws"])
        self._before_task = dict(state["before_task"])
