"""vLLM with processes of its own: for a model that several GPUs share (tensor parallel).

The engine's processes start under this one and compute there; this process tokenises and streams. On a CPU it works
too, for tests: it takes more memory than the in-process engine and starts more slowly.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import psutil

from serve.config import EngineConfig
from serve.engine import AdapterRef, EngineDeadError, UnknownAdapterError
from serve.engine_adapters import BaseShapes, check_adapter_folder
from serve.engine_text import PromptEncoder
from serve.engine_vllm_front import VllmFront, check_number
from serve.engine_vllm_options import engine_options, lora_request, prepare_environment, read_base, tokens_prompt

STOP_TIMEOUT_S = 10.0
"""How long `stop` waits for vLLM's processes before and after it kills what is left."""


class AsyncVllmEngine(VllmFront):
    """`serve.engine.Engine` over vLLM's AsyncLLM. Its methods belong to the event loop that called `start`."""

    def __init__(self, config: EngineConfig, *, model_folder: Path) -> None:
        super().__init__(config, model_folder=model_folder)
        self._llm: Any = None
        self._base_shapes: BaseShapes = {}
        self._adapters: dict[int, AdapterRef] = {}  # every number ever seen: it never gets another meaning
        self._loaded: set[int] = set()
        self._users: Counter[int] = Counter()
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._load_lock = asyncio.Lock()

    async def start(self) -> None:
        """Start the processes and load the weights; blocks the event loop meanwhile. Raises ModelFolderError."""
        begin = time.monotonic()
        self._base_shapes = await asyncio.to_thread(read_base, self._model_folder)
        self._encoder = await asyncio.to_thread(
            PromptEncoder, self._model_folder, max_model_len=self._config.max_model_len
        )
        is_cpu = prepare_environment(self._config)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        options = engine_options(self._config, model_folder=self._model_folder, is_cpu=is_cpu)
        if is_cpu:
            options["worker_extension_cls"] = "serve.engine_vllm_options.CpuWorkerExtension"
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**options))
        if is_cpu:
            await self._llm.collective_rpc("prepare_cpu_worker", args=(self._config.num_threads,))
        self._start_s = time.monotonic() - begin

    async def load_adapter(self, adapter: AdapterRef) -> None:
        """Make the adapter ready; idempotent. Raises UnknownAdapterError, EngineDeadError."""
        self.check_health()
        check_number(adapter, known=self._adapters.get(adapter.number))
        async with self._load_lock:
            if adapter.number in self._loaded:
                return
            await asyncio.to_thread(
                check_adapter_folder, adapter, base_shapes=self._base_shapes, max_rank=self._config.served_rank
            )
            try:
                await self._llm.add_lora(lora_request(adapter))
            except Exception as error:
                self.check_health()
                await self._llm.remove_lora(adapter.number)  # half-loaded, it would count as loaded
                raise UnknownAdapterError(f"vLLM cannot load adapter {adapter.name!r}: {error}") from error
            self._adapters[adapter.number] = adapter
            self._loaded.add(adapter.number)

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        """Forget the adapter once no request uses it; idempotent. Raises EngineDeadError."""
        self.check_health()
        number = adapter.number
        while True:
            while self._users[number]:
                waiter = asyncio.get_running_loop().create_future()
                self._idle_waiters.append(waiter)
                await waiter
            async with self._load_lock:
                if self._users[number]:
                    continue  # a request came while another load held the lock
                if number in self._loaded:
                    self._loaded.discard(number)
                    await self._llm.remove_lora(number)
                return

    def check_health(self) -> None:
        """Raise EngineDeadError before `start`, after `stop`, and when a process of vLLM's has ended."""
        if self._llm is None:
            raise EngineDeadError("the engine is not running")
        if self._llm.errored:
            raise EngineDeadError("a process of vLLM's has ended")

    async def stop(self) -> None:
        """End vLLM's processes and see them gone; waiters get EngineDeadError. Idempotent."""
        llm, self._llm = self._llm, None
        if llm is not None:
            await asyncio.to_thread(_shut_down, llm)

    async def _outputs(
        self, request_id: str, token_ids: list[int], *, params: Any, adapter: AdapterRef | None
    ) -> AsyncGenerator[Any, None]:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError
        from vllm.v1.engine.exceptions import EngineGenerateError

        lora = None
        with self._using(adapter):
            if adapter is not None:
                await self.load_adapter(adapter)
                lora = lora_request(adapter)
            try:
                async with aclosing(
                    self._llm.generate(tokens_prompt(token_ids), params, request_id, lora_request=lora)
                ) as outputs:
                    async for output in outputs:
                        yield output
            except VLLMClientError as error:
                raise ValueError(str(error)) from error
            except (VllmDeadError, EngineGenerateError) as error:
                raise EngineDeadError(f"vLLM ended: {error}") from error

    def _loaded_names(self) -> tuple[str, ...]:
        return tuple(self._adapters[number].name for number in sorted(self._loaded))

    def _memory_bytes(self) -> int:
        process = psutil.Process()
        memory_bytes: int = process.memory_info().rss
        for child in process.children(recursive=True):
            try:
                memory_bytes += child.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return memory_bytes

    @contextmanager
    def _using(self, adapter: AdapterRef | None) -> Iterator[None]:
        """Count a request, so that its adapter is not unloaded under it."""
        number = 0 if adapter is None else adapter.number
        self._users[number] += 1
        try:
            yield
        finally:
            self._users[number] -= 1
            waiters, self._idle_waiters = self._idle_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)


def _shut_down(llm: Any) -> None:
    """vLLM terminates its processes and kills them after 5 s, but does not wait for their end: this does."""
    processes: list[psutil.Process] = []
    for root in llm.engine_core.resources.engine_manager.processes:
        if root.is_alive():
            process = psutil.Process(root.pid)
            processes += [process, *process.children(recursive=True)]
    llm.shutdown()
    _, alive = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)
