"""An engine over transformers' `generate` with PEFT adapters: for models that vLLM does not know, as own checkpoints.

One thread computes, one request after the other. It streams through the streamer that `generate` calls per token.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

from serve.config import EngineConfig
from serve.engine import (
    AdapterRef,
    EngineDeadError,
    EngineStats,
    GenerateChunk,
    GenerateRequest,
    UnknownAdapterError,
)
from serve.engine_adapters import BaseShapes, check_adapter_folder
from serve.engine_text import PromptEncoder, StopFilter
from serve.engine_vllm_options import read_base
from train.dtype import pick_dtype

T = TypeVar("T")
Emit = Callable[[GenerateChunk], None]
"""Takes a piece of the answer. Called in the computing thread."""


class _TokenStream:
    """The streamer that `generate` calls: token ids in, text pieces out, until a stop string or the caller's leave."""

    def __init__(self, encoder: PromptEncoder, request: GenerateRequest, *, token_ids: list[int], emit: Emit) -> None:
        from tokenizers.decoders import DecodeStream

        self.num_output_tokens = 0
        self.last_token: int | None = None
        self.log_prob: float | None = 0.0 if request.has_log_prob else None
        self.filter = StopFilter(request.stop)
        self._tokenizer = encoder.tokenizer.backend_tokenizer
        # the prompt's end gives the first piece its leading space
        self._decoder = DecodeStream(ids=token_ids[-8:], skip_special_tokens=True)
        self._emit = emit
        self._has_prompt = False
        self._logits: Any = None

    def note_logits(self, ids: Any, logits: Any) -> Any:
        """A logits processor that changes nothing; `generate` calls it before temperature and top-p. Shape: [1, vocab]."""
        self._logits = logits[0]
        return logits

    def put(self, ids: Any) -> None:
        """`generate` gives the prompt first, then each token as a tensor [1]."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        for token in ids.flatten().tolist():
            self.num_output_tokens += 1
            self.last_token = token
            if self.log_prob is not None:
                self.log_prob += float(self._logits.float().log_softmax(-1)[token])
            text = self.filter.push(self._decoder.step(self._tokenizer, token) or "")
            if text:
                self._emit(GenerateChunk(text))

    def end(self) -> None:
        """Called by `generate` after the last token; the last chunk is built by the caller."""


class _Model:
    """The computing thread's side: base model and adapters."""

    def __init__(self, config: EngineConfig, *, model_folder: Path) -> None:
        self.adapters: dict[int, AdapterRef] = {}
        self._config = config
        self._base_shapes: BaseShapes = read_base(model_folder)
        self.encoder = PromptEncoder(model_folder, max_model_len=config.max_model_len)
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        device = "cuda" if torch.cuda.is_available() and config.num_gpus_per_replica > 0 else "cpu"
        torch.set_num_threads(config.num_threads)
        model = AutoModelForCausalLM.from_pretrained(
            model_folder, dtype=getattr(torch, pick_dtype(config.dtype, device_type=device)), local_files_only=True
        )
        self._model: Any = model.to(device).eval()
        own = model.generation_config.eos_token_id
        eos = {self.encoder.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        self._eos: list[int] = sorted(eos)
        # the folder's own sampling defaults stay out, as in the vLLM engines
        self._model.generation_config = GenerationConfig(
            eos_token_id=self._eos or None, pad_token_id=self._eos[0] if self._eos else 0
        )

    def generate(
        self, request: GenerateRequest, token_ids: list[int], max_tokens: int, *, emit: Emit, is_left: threading.Event
    ) -> None:
        """Run one request; the last chunk carries the finish reason."""
        import torch

        if is_left.is_set():
            return
        stream = _TokenStream(self.encoder, request, token_ids=token_ids, emit=emit)
        sampling: dict[str, Any] = {"do_sample": False}
        if request.temperature > 0:
            sampling = {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
        if request.has_log_prob:
            sampling["logits_processor"] = [stream.note_logits]
        if request.seed is not None:
            torch.manual_seed(request.seed)
        ids = torch.tensor([token_ids], device=self._model.device)
        with self._with_adapter(request.adapter), torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                streamer=stream,
                stopping_criteria=[lambda ids, scores, **_: self._is_over(ids, stream, is_left)],
                **sampling,
            )
        is_stopped = stream.filter.is_hit or stream.last_token in self._eos
        emit(
            GenerateChunk(
                stream.filter.finish(),
                "stop" if is_stopped else "length",
                len(token_ids),
                stream.num_output_tokens,
                stream.log_prob,
            )
        )

    @staticmethod
    def _is_over(ids: Any, stream: _TokenStream, is_left: threading.Event) -> Any:
        import torch

        return torch.full((ids.shape[0],), stream.filter.is_hit or is_left.is_set(), device=ids.device)

    def score(self, token_ids: list[int], adapter: AdapterRef | None) -> list[float]:
        """Log-probability, nats, of each token after the first."""
        import torch

        ids = torch.tensor([token_ids], device=self._model.device)
        with self._with_adapter(adapter), torch.inference_mode():
            log_probs = self._model(ids).logits[0, :-1].float().log_softmax(-1)
        scores: list[float] = log_probs.gather(1, ids[0, 1:, None]).flatten().tolist()
        return scores

    def load(self, adapter: AdapterRef) -> None:
        """Raises UnknownAdapterError; the model is then as before."""
        known = self.adapters.get(adapter.number)
        if known is not None:
            if known != adapter:
                raise UnknownAdapterError(
                    f"adapter number {adapter.number} belongs to {known.name!r} in {known.folder}: take a new number"
                )
            return
        check_adapter_folder(adapter, base_shapes=self._base_shapes, max_rank=self._config.served_rank)
        from peft import PeftModel

        name = _peft_name(adapter)
        if self.adapters:
            self._model.load_adapter(adapter.folder, adapter_name=name, autocast_adapter_dtype=False)
        else:
            self._model = PeftModel.from_pretrained(
                self._model, adapter.folder, adapter_name=name, autocast_adapter_dtype=False
            )
        self._model.eval()
        self.adapters[adapter.number] = adapter

    def unload(self, adapter: AdapterRef) -> None:
        """Forget the adapter; without any left, the plain base model is back."""
        if self.adapters.pop(adapter.number, None) is None:
            return
        if self.adapters:
            self._model.set_adapter(_peft_name(next(iter(self.adapters.values()))))
            self._model.delete_adapter(_peft_name(adapter))
        else:
            self._model = self._model.unload()

    @contextmanager
    def _with_adapter(self, adapter: AdapterRef | None) -> Iterator[None]:
        """Compute with this adapter, or with none."""
        if adapter is not None:
            self.load(adapter)
            self._model.set_adapter(_peft_name(adapter))
            yield
        elif self.adapters:
            with self._model.disable_adapter():
                yield
        else:
            yield


class HuggingFaceEngine:
    """`serve.engine.Engine` over transformers and PEFT. Its methods belong to the event loop that called `start`."""

    def __init__(self, config: EngineConfig, *, model_folder: Path) -> None:
        self._config = config
        self._model_folder = model_folder
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hf-engine")
        self._model: _Model | None = None
        self._is_stopped = False
        self._num_requests = 0
        self._num_output_tokens = 0
        self._num_running = 0
        self._start_s = 0.0

    async def start(self) -> None:
        """Load the weights. Raises ModelFolderError."""
        begin = time.monotonic()
        self._model = await self._run(lambda: _Model(self._config, model_folder=self._model_folder))
        self._start_s = time.monotonic() - begin

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        """Stream the answer. Raises ValueError, PromptTooLongError, UnknownAdapterError, EngineDeadError."""
        model = self._live_model()
        token_ids, max_tokens = await asyncio.to_thread(model.encoder.fit, request)
        loop = asyncio.get_running_loop()
        mailbox: asyncio.Queue[GenerateChunk | None] = asyncio.Queue()
        is_left = threading.Event()
        self._num_requests += 1
        self._num_running += 1

        def post(chunk: GenerateChunk) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(mailbox.put_nowait, chunk)

        job = asyncio.ensure_future(
            self._run(lambda: model.generate(request, token_ids, max_tokens, emit=post, is_left=is_left))
        )

        def note_end(task: "asyncio.Future[None]") -> None:
            if not task.cancelled():
                task.exception()  # looked at, so that the error of a request whose caller has left is not reported
            mailbox.put_nowait(None)

        job.add_done_callback(note_end)
        try:
            while (chunk := await mailbox.get()) is not None:
                self._num_output_tokens += chunk.num_output_tokens
                yield chunk
            await job  # raises what the computation raised
        finally:
            is_left.set()
            self._num_running -= 1

    async def score(self, text: str, adapter: AdapterRef | None) -> list[float]:
        """Log-probability, nats, of each token after the first. Raises as `generate`."""
        model = self._live_model()
        token_ids = await asyncio.to_thread(model.encoder.encode, text)
        model.encoder.check_length(len(token_ids))
        return await self._run(lambda: model.score(token_ids, adapter)) if len(token_ids) > 1 else []

    async def load_adapter(self, adapter: AdapterRef) -> None:
        """Make the adapter ready, after the requests before it; idempotent. Raises UnknownAdapterError."""
        model = self._live_model()
        await self._run(lambda: model.load(adapter))

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        """Forget the adapter, after the requests before it; idempotent."""
        model = self._live_model()
        await self._run(lambda: model.unload(adapter))

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as a prompt, special tokens included."""
        return len(self._live_model().encoder.encode(text))

    def render_chat(self, messages: list[dict[str, str]]) -> str:
        """The model's chat template with the generation prompt. ValueError if the model has none."""
        return self._live_model().encoder.render_chat(messages)

    def check_health(self) -> None:
        """Raise EngineDeadError before `start` and after `stop`."""
        self._live_model()

    def stats(self) -> EngineStats:
        """Counters since the start."""
        adapters = () if self._model is None else tuple(self._model.adapters.values())
        return EngineStats(
            num_requests=self._num_requests,
            num_output_tokens=self._num_output_tokens,
            num_running=self._num_running,
            adapters=tuple(adapter.name for adapter in adapters),
            start_s=self._start_s,
            memory_bytes=psutil.Process().memory_info().rss,
        )

    async def stop(self) -> None:
        """Release the model after the running request; idempotent."""
        self._model = None
        self._is_stopped = True
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)

    def _live_model(self) -> _Model:
        if self._model is None:
            raise EngineDeadError("the engine is not running")
        return self._model

    async def _run(self, function: Callable[[], T]) -> T:
        """Run `function` in the computing thread, after what was asked before."""
        try:
            future = self._executor.submit(function)
        except RuntimeError as error:
            raise EngineDeadError("the engine was stopped") from error
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self._is_stopped:
                raise EngineDeadError("the engine was stopped") from None
            raise


def _peft_name(adapter: AdapterRef) -> str:
    """PEFT names are parts of module paths: no dots."""
    return f"adapter_{adapter.number}"
