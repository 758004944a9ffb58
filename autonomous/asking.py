"""Asking: a panel that remembers. Scores of weights on items never change, so what was asked once is not asked again.

In: items for candidate, parent or original. Out: scores in the order of the items; only those that no earlier evaluation made
are computed. A candidate that was promoted is the next one's parent, and its scores on the fixed suites are known; those of
the original always are.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from autonomous.panel import PARENT, Panel
from train.adapt.choices import Choice
from train.continual.items import LearningItem

MAX_SCORES = 20_000
"""A version has some 300 items: enough for the original and tens of versions."""

Item = TypeVar("Item")
Score = TypeVar("Score")


class ScoreMemory:
    """Bounded; who was asked longest ago is forgotten first."""

    def __init__(self, *, capacity: int = MAX_SCORES) -> None:
        self._capacity = capacity
        self._scores: OrderedDict[Hashable, object] = OrderedDict()

    def __len__(self) -> int:
        return len(self._scores)

    def fill(
        self,
        weights: str,
        items: Sequence[Item],
        *,
        kind: str,
        key: Callable[[Item], str],
        ask: Callable[[list[Item]], list[Score]],
    ) -> list[Score]:
        """A score for each item: remembered for these weights and this kind of question, or from `ask`."""
        keys = [(weights, kind, hashlib.sha256(key(item).encode()).digest()) for item in items]
        known = {one: self._scores[one] for one in keys if one in self._scores}
        missing = {one: item for one, item in zip(keys, items, strict=True) if one not in known}
        if missing:
            known.update(zip(missing, ask(list(missing.values())), strict=True))
        for one, score in known.items():
            self._scores[one] = score
            self._scores.move_to_end(one)
        while len(self._scores) > self._capacity:
            self._scores.popitem(last=False)
        return [known[one] for one in keys]  # type: ignore[misc]


class RememberingPanel:
    """A panel in front of a memory. `weights` names the weights of candidate, parent and original (None) by hash."""

    def __init__(self, panel: Panel, *, memory: ScoreMemory, weights: Mapping[str | None, str]) -> None:
        self.panel = panel
        self._memory = memory
        self._weights = weights

    def score(self, who: str | None, items: Sequence[LearningItem]) -> list[float]:
        """Nats per target token of each item."""
        return self._memory.fill(
            self._weights_of(who),
            items,
            kind="score",
            key=lambda item: f"{item.prompt!r}\n{item.answer}",
            ask=lambda missing: self.panel.score(who, missing),
        )

    def margins(self, who: str | None, rows: Sequence[Mapping[str, str]]) -> list[float]:
        """The margin of refusal of each probe."""
        return self._memory.fill(
            self._weights_of(who),
            rows,
            kind="margin",
            key=lambda row: f"{row['prompt']}\n{row['refusal']}\n{row['compliance']}",
            ask=lambda missing: self.panel.margins(who, missing),
        )

    def choices(self, who: str | None, choices: Sequence[Choice]) -> list[list[float]]:
        """The losses of each choice's answers."""
        return self._memory.fill(
            self._weights_of(who),
            choices,
            kind="choice",
            key=lambda choice: "\n".join((choice.question, *choice.answers)),
            ask=lambda missing: self.panel.choices(who, missing),
        )

    def answers(self, who: str | None, prompts: Sequence[str], *, max_tokens: int) -> list[str]:
        """The greedy answer to each prompt."""
        return self._memory.fill(
            self._weights_of(who),
            prompts,
            kind=f"answer {max_tokens}",
            key=lambda prompt: prompt,
            ask=lambda missing: self.panel.answers(who, missing, max_tokens=max_tokens),
        )

    def _weights_of(self, who: str | None) -> str:
        return self._weights[None if who == PARENT and not self.panel.has_parent else who]
