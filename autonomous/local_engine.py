"""The engine of an agent of one process: it serves whichever version is asked for, on a base model of its own."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from autonomous.config import LearningConfig
from autonomous.panel_weights import version_model
from train.adapt.base import BaseModelInMemory, load_base_model, pick_device
from train.adapt.reference import AdapterRef
from train.adapt.scoring import answer_questions, score_tokens


class LocalEngine:
    """EnginePort with one replica, which also answers: transformers' generate, one answer at a time. Thread-safe."""

    def __init__(self, base_folder: Path, *, config: LearningConfig) -> None:
        self._folder = base_folder
        self._config = config
        self._lock = threading.Lock()
        self._base: BaseModelInMemory | None = None

    @property
    def base(self) -> BaseModelInMemory:
        """The model that answers, loaded at the first use. Raises ModelFolderProblem."""
        if self._base is None:
            torch.set_num_threads(self._config.num_threads)
            device = pick_device(self._config.device)
            self._base = load_base_model(self._folder, dtype=self._config.dtype, device=device)
        return self._base

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, without special ones."""
        return len(self.base.tokenizer.encode(text, add_special_tokens=False))

    def prepare(self, adapter: AdapterRef, probe: str) -> list[list[float]]:
        """See EnginePort: what lies on disk is loaded and scored."""
        if not probe:
            return [[]]
        return [self._with(adapter, lambda model: score_tokens(model, probe, base=self.base))]

    def drop(self, adapter: AdapterRef) -> None:
        """See EnginePort. A version is in memory only while it answers."""

    def answer(self, prompt: str, *, adapter: AdapterRef | None, max_tokens: int, stop: Sequence[str] = ()) -> str:
        """The greedy answer of a version to one user message, up to the first of `stop` in it."""
        (text,) = self._with(
            adapter, lambda model: answer_questions(model, [prompt], base=self.base, max_new_tokens=max_tokens)
        )
        for end in stop:
            text = text.split(end, 1)[0]
        return str(text)

    def _with(self, adapter: AdapterRef | None, ask: Any) -> Any:
        with self._lock, version_model(None if adapter is None else Path(adapter.folder), base=self.base) as model:
            return ask(model)
