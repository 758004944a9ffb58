"""The caller's side of both vLLM backends: prompts in, chunks and scores out, counters."""

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from serve.config import EngineConfig
from serve.engine import AdapterRef, EngineStats, GenerateChunk, GenerateRequest, UnknownAdapterError
from serve.engine_text import PromptEncoder
from serve.engine_vllm_options import generation_params, prompt_scores, scoring_params, to_chunk


class VllmFront(ABC):
    """The part of `serve.engine.Engine` that does not depend on where vLLM runs."""

    def __init__(self, config: EngineConfig, *, model_folder: Path) -> None:
        self._config = config
        self._model_folder = model_folder
        self._encoder: PromptEncoder | None = None
        self._request_numbers = itertools.count()
        self._num_requests = 0
        self._num_output_tokens = 0
        self._num_running = 0
        self._start_s = 0.0

    @abstractmethod
    def check_health(self) -> None:
        """Raise EngineDeadError if the engine cannot answer."""

    @abstractmethod
    def _outputs(
        self, request_id: str, token_ids: list[int], *, params: Any, adapter: AdapterRef | None
    ) -> AsyncGenerator[Any, None]:
        """vLLM's outputs of one request; closing the generator before the last one aborts the request."""

    @abstractmethod
    def _loaded_names(self) -> tuple[str, ...]:
        """Names of the adapters in memory."""

    @abstractmethod
    def _memory_bytes(self) -> int:
        """Resident memory of all processes of the engine."""

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        """Stream the answer. Raises ValueError, PromptTooLongError, UnknownAdapterError, EngineDeadError."""
        token_ids, max_tokens = await asyncio.to_thread(self._live_encoder().fit, request)
        params = generation_params(request, max_tokens=max_tokens)
        num_output_tokens = 0
        async with aclosing(
            self._counted(request.request_id, token_ids, params=params, adapter=request.adapter)
        ) as outputs:
            async for output in outputs:
                num_new = len(output.outputs[0].token_ids)
                num_output_tokens += num_new
                self._num_output_tokens += num_new
                chunk = to_chunk(output, num_prompt_tokens=len(token_ids), num_output_tokens=num_output_tokens)
                if chunk.text or chunk.finish_reason is not None:
                    yield chunk

    async def score(self, text: str, adapter: AdapterRef | None) -> list[float]:
        """Log-probability, nats, of each token after the first. Raises as `generate`."""
        encoder = self._live_encoder()
        token_ids = await asyncio.to_thread(encoder.encode, text)
        encoder.check_length(len(token_ids))
        if len(token_ids) < 2:
            return []
        async with aclosing(self._counted("score", token_ids, params=scoring_params(), adapter=adapter)) as outputs:
            async for output in outputs:
                if output.finished:
                    return prompt_scores(output, token_ids=token_ids)
        raise AssertionError("the outputs of a request end with a finished one")

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as a prompt, special tokens included."""
        return len(self._live_encoder().encode(text))

    def render_chat(self, messages: list[dict[str, str]]) -> str:
        """The model's chat template with the generation prompt. ValueError if the model has none."""
        return self._live_encoder().render_chat(messages)

    def stats(self) -> EngineStats:
        """Counters since the start."""
        return EngineStats(
            num_requests=self._num_requests,
            num_output_tokens=self._num_output_tokens,
            num_running=self._num_running,
            adapters=self._loaded_names(),
            start_s=self._start_s,
            memory_bytes=self._memory_bytes(),
        )

    async def _counted(
        self, name: str, token_ids: list[int], *, params: Any, adapter: AdapterRef | None
    ) -> AsyncGenerator[Any, None]:
        """`_outputs` under an id of its own (a retried request may carry a name that still runs), counted."""
        self._num_requests += 1
        self._num_running += 1
        request_id = f"{name}/{next(self._request_numbers)}"
        try:
            async with aclosing(self._outputs(request_id, token_ids, params=params, adapter=adapter)) as outputs:
                async for output in outputs:
                    yield output
        finally:
            self._num_running -= 1

    def _live_encoder(self) -> PromptEncoder:
        """The tokenizer of a living engine. Raises EngineDeadError."""
        self.check_health()
        assert self._encoder is not None
        return self._encoder


def check_number(adapter: AdapterRef, *, known: AdapterRef | None) -> None:
    """Raise UnknownAdapterError if the number has had another meaning: vLLM would go on with the old weights."""
    if known is not None and known != adapter:
        raise UnknownAdapterError(
            f"adapter number {adapter.number} of {adapter.name!r} belongs to {known.name!r} in {known.folder}: "
            "numbers are never used again, take a new one from the ledger"
        )
