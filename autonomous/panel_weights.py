"""The panel over models of their own: candidate, parent and original where versions are full weights.

The original is resident; the others are loaded when they are asked and at most `max_loaded` of them stay in memory, the one
that was asked longest ago goes. A version with an adapter may be among them: its adapter is merged into a copy of the base.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from autonomous.panel import CANDIDATE, PARENT, Panel
from memory.types import Guard
from train.adapt.base import BaseModelInMemory
from train.adapt.lora import attach_saved, detach_adapter
from train.adapt.weights import is_weights_folder, load_version

MAX_LOADED = 2
"""Candidate and parent: 1 takes a model's memory less and loads one at every other question."""


class WeightsPanel(Panel):
    """See Panel. `folders`: of the versions, under CANDIDATE and, if there is a parent, PARENT."""

    def __init__(
        self,
        folders: Mapping[str, Path],
        *,
        base: BaseModelInMemory,
        max_answer_tokens: int,
        guard: Guard,
        max_loaded: int = MAX_LOADED,
    ) -> None:
        super().__init__(
            base.model, base=base, has_parent=PARENT in folders, max_answer_tokens=max_answer_tokens, guard=guard
        )
        self._folders = dict(folders)
        self._max_loaded = max_loaded
        self._loaded: dict[str, Any] = {}
        """The one that was asked last comes last."""

    @contextmanager
    def _as(self, who: str | None) -> Iterator[Any]:
        """The model of `who`; None, and a parent that is not there, are the frozen original. Raises WeightsError."""
        self._guard()
        if who is None or (who == PARENT and not self.has_parent):
            yield self._base.model
            return
        model = self._loaded.pop(who, None)
        if model is None:
            while len(self._loaded) >= self._max_loaded:
                del self._loaded[next(iter(self._loaded))]
            model = load_version(self._folders[who], base=self._base)
        self._loaded[who] = model
        yield model


@contextmanager
def _adapters(
    candidate: Path, parent: Path | None, *, base: BaseModelInMemory, max_answer_tokens: int, guard: Guard
) -> Iterator[Panel]:
    folders = {CANDIDATE: candidate} if parent is None else {CANDIDATE: candidate, PARENT: parent}
    adapted = attach_saved(base.model, folders)
    try:
        yield Panel(adapted, base=base, has_parent=parent is not None, max_answer_tokens=max_answer_tokens, guard=guard)
    finally:
        detach_adapter(adapted)


@contextmanager
def _models(
    candidate: Path, parent: Path | None, *, base: BaseModelInMemory, max_answer_tokens: int, guard: Guard
) -> Iterator[Panel]:
    folders = {CANDIDATE: candidate} if parent is None else {CANDIDATE: candidate, PARENT: parent}
    yield WeightsPanel(folders, base=base, max_answer_tokens=max_answer_tokens, guard=guard)


def open_panel(
    candidate: Path, parent: Path | None, *, base: BaseModelInMemory, max_answer_tokens: int, guard: Guard
) -> AbstractContextManager[Panel]:
    """In the block the panel of two versions' folders, whatever they hold; None: the original is the parent.

    Raises AdapterError, WeightsError for an unusable folder.
    """
    is_of_models = any(is_weights_folder(folder) for folder in (candidate, parent) if folder is not None)
    return (_models if is_of_models else _adapters)(
        candidate, parent, base=base, max_answer_tokens=max_answer_tokens, guard=guard
    )


@contextmanager
def version_model(folder: Path | None, *, base: BaseModelInMemory) -> Iterator[Any]:
    """In the block the model of a version's folder, for questions to one alone; None: the frozen original."""
    if folder is None:
        yield base.model
    elif is_weights_folder(folder):
        yield load_version(folder, base=base)
    else:
        adapted = attach_saved(base.model, {CANDIDATE: folder})
        try:
            yield adapted
        finally:
            detach_adapter(adapted)
