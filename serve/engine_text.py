"""Text into prompt tokens, and pieces of an answer up to its stop string: the same for every backend.

An engine takes token ids from here and never tokenises by itself, so that the length check, the engine and
transformers see the same ids (tests/parity/test_vllm_engine.py). A rendered chat already holds its special tokens: a
text that begins with the beginning-of-sequence token gets none added, any other text gets those that the tokenizer adds
by itself.
"""

import os
import threading
from pathlib import Path
from typing import Any

from serve.engine import GenerateRequest, PromptTooLongError


def forbid_downloads() -> None:
    """Keep transformers from asking a hub. Must run before transformers is imported, it reads this once."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"


class PromptEncoder:
    """A model folder's tokenizer and chat template, with the engine's context length. Thread-safe."""

    def __init__(self, model_folder: Path, *, max_model_len: int) -> None:
        forbid_downloads()
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(model_folder, local_files_only=True)
        self._max_model_len = max_model_len
        self._lock = threading.Lock()  # a call sets the tokenizer's truncation: two at once fail ("Already borrowed")

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with special tokens exactly once."""
        bos = self.tokenizer.bos_token
        has_bos = bool(bos) and text.startswith(bos)
        with self._lock:
            ids: list[int] = self.tokenizer(text, add_special_tokens=not has_bos)["input_ids"]
        return ids

    def render_chat(self, messages: list[dict[str, str]]) -> str:
        """The model's chat template with the generation prompt. ValueError if the model has none, or it refuses."""
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise ValueError("this model has no chat template: use /v1/completions, or add chat_template.jinja to it")
        try:
            with self._lock:
                text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise ValueError(f"messages do not fit the model's chat template: {error}") from error
        return text

    def fit(self, request: GenerateRequest) -> tuple[list[int], int]:
        """Prompt ids, and `max_tokens` cut to what the context leaves.

        Raises: ValueError for an empty prompt or max_tokens < 1; PromptTooLongError if not one token of answer fits.
        """
        if request.max_tokens < 1:
            raise ValueError(f"max_tokens is {request.max_tokens}: ask for at least 1")
        ids = self.encode(request.prompt)
        if not ids:
            raise ValueError("prompt is empty: give at least one token of text")
        self.check_length(len(ids))
        return ids, min(request.max_tokens, self._max_model_len - len(ids))

    def check_length(self, num_tokens: int) -> None:
        """Raise PromptTooLongError if a prompt of `num_tokens` and one token of answer exceed the context."""
        num_over = num_tokens + 1 - self._max_model_len
        if num_over > 0:
            raise PromptTooLongError(
                f"prompt has {num_tokens} tokens, {num_over} too many: the context of {self._max_model_len} tokens "
                "must hold the prompt and at least 1 token of answer; shorten the prompt or raise engine.max_model_len"
            )


class StopFilter:
    """Passes an answer on until a stop string; holds back a tail that may become one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.is_hit = False

    def push(self, text: str) -> str:
        """What may go out now. After a hit, nothing more."""
        if self.is_hit:
            return ""
        self._held += text
        hits = [position for stop in self._stops if (position := self._held.find(stop)) >= 0]
        if hits:
            self.is_hit = True
            sent, self._held = self._held[: min(hits)], ""
            return sent
        num_kept = max((self._overlap(stop) for stop in self._stops), default=0)
        sent, self._held = self._held[: len(self._held) - num_kept], self._held[len(self._held) - num_kept :]
        return sent

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        sent, self._held = self._held, ""
        return sent

    def _overlap(self, stop: str) -> int:
        """Length of the longest proper prefix of `stop` that ends what is held."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
