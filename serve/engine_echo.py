"""An engine without a model: it says the user's last words back, word by word. For tests of what surrounds an engine.

A token is a word (text between white space). A version shows in the answer: its name comes first, in brackets. Loading
an adapter needs its folder, as in the real engines, but its weights are not read.
"""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from serve.config import EngineConfig
from serve.engine import (
    AdapterRef,
    EngineDeadError,
    EngineStats,
    GenerateChunk,
    GenerateRequest,
    PromptTooLongError,
    UnknownAdapterError,
)
from serve.engine_adapters import CONFIG_NAME
from serve.engine_text import StopFilter

_USER = "<|user|>"
_END = "<|end|>"
_ASSISTANT = "<|assistant|>"
_WORD = re.compile(r"\S+\s*")


class EchoEngine:
    """`serve.engine.Engine` without weights. `model_folder` is not read; `version` names it where it has full weights."""

    def __init__(self, config: EngineConfig, *, model_folder: Path, version: str | None = None) -> None:
        self._version = version
        self._config = config
        self._model_folder = model_folder
        self._adapters: dict[int, AdapterRef] = {}
        self._is_started = False
        self._num_requests = 0
        self._num_output_tokens = 0
        self._num_running = 0
        self._start_s = 0.0

    async def start(self) -> None:
        """Ready at once."""
        begin = time.monotonic()
        self._is_started = True
        self._start_s = time.monotonic() - begin

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        """Yield the user's last words. Raises ValueError, PromptTooLongError, UnknownAdapterError, EngineDeadError."""
        self.check_health()
        if request.max_tokens < 1:
            raise ValueError(f"max_tokens is {request.max_tokens}: ask for at least 1")
        num_prompt_tokens = self.count_tokens(request.prompt)
        num_over = num_prompt_tokens + 1 - self._config.max_model_len
        if num_over > 0:
            raise PromptTooLongError(
                f"prompt has {num_prompt_tokens} tokens, {num_over} too many: the context of "
                f"{self._config.max_model_len} tokens must hold the prompt and at least 1 token of answer"
            )
        if request.adapter is not None:
            await self.load_adapter(request.adapter)
        words = _WORD.findall(_last_user_words(request.prompt))
        if name := self._version if request.adapter is None else request.adapter.name:
            words.insert(0, f"[{name}] ")
        num_allowed = min(request.max_tokens, self._config.max_model_len - num_prompt_tokens)
        stop_filter = StopFilter(request.stop)
        num_output_tokens = 0
        self._num_requests += 1
        self._num_running += 1
        try:
            for word in words[:num_allowed]:
                await asyncio.sleep(0)  # another request's turn, as between an engine's steps
                self.check_health()
                num_output_tokens += 1
                self._num_output_tokens += 1
                if text := stop_filter.push(word):
                    yield GenerateChunk(text)
                if stop_filter.is_hit:
                    break
            is_cut = len(words) > num_allowed and not stop_filter.is_hit
            yield GenerateChunk(
                stop_filter.finish(), "length" if is_cut else "stop", num_prompt_tokens, num_output_tokens
            )
        finally:
            self._num_running -= 1

    async def score(self, text: str, adapter: AdapterRef | None) -> list[float]:
        """Each word after the first under the uniform distribution over the text's distinct words, nats."""
        self.check_health()
        if adapter is not None:
            await self.load_adapter(adapter)
        words = text.split()
        return [-math.log(len(set(words)))] * max(0, len(words) - 1)

    async def load_adapter(self, adapter: AdapterRef) -> None:
        """Remember the adapter; idempotent. UnknownAdapterError if its folder has no adapter_config.json."""
        self.check_health()
        if not (Path(adapter.folder) / CONFIG_NAME).is_file():
            raise UnknownAdapterError(f"adapter {adapter.name!r} has no {CONFIG_NAME} in {adapter.folder}")
        known = self._adapters.setdefault(adapter.number, adapter)
        if known != adapter:
            raise UnknownAdapterError(f"adapter number {adapter.number} belongs to {known.name!r}: take a new number")

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        """Forget the adapter; idempotent."""
        self._adapters.pop(adapter.number, None)

    def count_tokens(self, text: str) -> int:
        """Words of `text`."""
        return len(text.split())

    def render_chat(self, messages: list[dict[str, str]]) -> str:
        """One line of role marker and content per message, then the assistant's marker."""
        lines = [f"<|{message['role']}|> {message['content']} {_END}\n" for message in messages]
        return "".join(lines) + _ASSISTANT

    def check_health(self) -> None:
        """Raise EngineDeadError before `start` and after `stop`."""
        if not self._is_started:
            raise EngineDeadError("the echo engine is not running")

    def stats(self) -> EngineStats:
        """Counters since the start."""
        return EngineStats(
            num_requests=self._num_requests,
            num_output_tokens=self._num_output_tokens,
            num_running=self._num_running,
            adapters=tuple(adapter.name for adapter in self._adapters.values()),
            start_s=self._start_s,
            memory_bytes=psutil.Process().memory_info().rss,
        )

    async def stop(self) -> None:
        """Running requests end with EngineDeadError; idempotent."""
        self._is_started = False


def _last_user_words(prompt: str) -> str:
    """The last user message of a rendered chat; the whole of any other prompt."""
    start = prompt.rfind(_USER)
    if start < 0:
        return prompt
    return prompt[start + len(_USER) :].split(_END, maxsplit=1)[0].strip()
