"""The default engine: vLLM in one process with its replica, on a CPU or on one GPU.

One thread creates the engine and steps it (created in one and stepped in another, two compute threads are slower than
one). Commands go in by a queue; results come out through `loop.call_soon_threadsafe` into a mailbox per request. If a
step raises, the thread ends, every waiter gets EngineDeadError and `check_health` says so: the replica is replaced.
One such engine per process: vLLM's process groups are global.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from serve.config import EngineConfig
from serve.engine import AdapterRef, EngineDeadError, UnknownAdapterError
from serve.engine_adapters import BaseShapes, check_adapter_folder
from serve.engine_text import PromptEncoder
from serve.engine_vllm_front import VllmFront, check_number
from serve.engine_vllm_options import (
    engine_options,
    lora_request,
    prepare_cpu,
    prepare_environment,
    read_base,
    tokens_prompt,
)

logger = logging.getLogger(__name__)

Reply = Callable[[Any], None]
"""Takes vLLM's RequestOutput, None for "done", or an exception. Called in the engine's thread."""


@dataclass(frozen=True, slots=True)
class _Submit:
    request_id: str
    token_ids: list[int]
    params: Any
    adapter: AdapterRef | None
    reply: Reply


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Load:
    adapter: AdapterRef
    reply: Reply


@dataclass(frozen=True, slots=True)
class _Unload:
    adapter: AdapterRef
    reply: Reply


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


_Command = _Submit | _Abort | _Load | _Unload | _Stop


class _EngineThread:
    """The side of the engine's thread: owns vLLM's LLMEngine; nothing else touches it."""

    def __init__(self, config: EngineConfig, *, model_folder: Path, base_shapes: BaseShapes) -> None:
        self.commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self.loaded: tuple[str, ...] = ()
        self._config = config
        self._model_folder = model_folder
        self._base_shapes = base_shapes
        self._adapters: dict[int, AdapterRef] = {}  # every number ever seen: it never gets another meaning
        self._running: dict[str, _Submit] = {}
        self._unloads: list[_Unload] = []
        self._engine: Any = None
        self._client_error: type[Exception]

    def run(self, *, on_started: Callable[[], None], on_ended: Callable[[BaseException | None], None]) -> None:
        """Create the engine, serve commands until `_Stop`. `on_ended` gets the error, None after a stop."""
        try:
            self._create()
            on_started()
            self._serve()
            self._engine.engine_core.shutdown()
        except BaseException as error:
            logger.exception("engine thread ended")
            on_ended(error)
        else:
            on_ended(None)
        finally:
            self._engine = None

    def _create(self) -> None:
        is_cpu = prepare_environment(self._config)
        if is_cpu:
            prepare_cpu(num_threads=self._config.num_threads)
        from vllm.engine.arg_utils import EngineArgs
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.llm_engine import LLMEngine

        options = engine_options(self._config, model_folder=self._model_folder, is_cpu=is_cpu)
        self._client_error = VLLMClientError
        self._engine = LLMEngine.from_engine_args(EngineArgs(**options))

    def _serve(self) -> None:
        while True:
            if not self._engine.has_unfinished_requests() and not self._handle(self.commands.get()):
                return
            while not self.commands.empty():
                if not self._handle(self.commands.get()):
                    return
            if self._engine.has_unfinished_requests():
                self._step()

    def _handle(self, command: _Command) -> bool:
        """Carry out one command; a command that fails tells its sender only. False ends the thread."""
        match command:
            case _Stop():
                return False
            case _Abort(request_id):
                if self._running.pop(request_id, None) is not None:
                    self._engine.abort_request([request_id])
                    self._finish_unloads()
            case _Unload():
                self._unloads.append(command)
                self._finish_unloads()
            case _Submit() | _Load():
                try:
                    self._submit(command) if isinstance(command, _Submit) else self._load(command.adapter)
                except Exception as error:
                    command.reply(error)
                else:
                    if isinstance(command, _Load):
                        command.reply(None)
        return True

    def _submit(self, command: _Submit) -> None:
        if command.adapter is not None:
            self._load(command.adapter)
        lora = None if command.adapter is None else lora_request(command.adapter)
        try:
            self._engine.add_request(
                command.request_id, tokens_prompt(command.token_ids), command.params, lora_request=lora
            )
        except self._client_error as error:
            raise ValueError(str(error)) from error
        self._running[command.request_id] = command

    def _step(self) -> None:
        for output in self._engine.step():
            command = self._running.get(output.request_id)
            if command is None:
                continue
            if output.finished:
                del self._running[output.request_id]
                self._finish_unloads()
            command.reply(output)

    def _load(self, adapter: AdapterRef) -> None:
        """Raises UnknownAdapterError; the engine is then as before."""
        check_number(adapter, known=self._adapters.get(adapter.number))
        if adapter.number in self._loaded_numbers():
            return
        check_adapter_folder(adapter, base_shapes=self._base_shapes, max_rank=self._config.served_rank)
        try:
            self._engine.add_lora(lora_request(adapter))
        except Exception as error:
            self._engine.remove_lora(adapter.number)  # half-loaded, it would count as loaded
            raise UnknownAdapterError(f"vLLM cannot load adapter {adapter.name!r}: {error}") from error
        self._adapters[adapter.number] = adapter
        self._note_loaded()

    def _finish_unloads(self) -> None:
        """Remove the adapters that are to go and that no running request uses."""
        used = {command.adapter.number for command in self._running.values() if command.adapter is not None}
        for command in [command for command in self._unloads if command.adapter.number not in used]:
            self._unloads.remove(command)
            if command.adapter.number in self._loaded_numbers():
                self._engine.remove_lora(command.adapter.number)
            self._note_loaded()
            command.reply(None)

    def _note_loaded(self) -> None:
        self.loaded = tuple(self._adapters[number].name for number in sorted(self._loaded_numbers()))

    def _loaded_numbers(self) -> set[int]:
        """Numbers of the adapters in memory. vLLM cannot be asked where it serves none."""
        return set(self._engine.list_loras()) if self._config.max_loras else set()


class VllmEngine(VllmFront):
    """`serve.engine.Engine` over vLLM in this process. Its methods belong to the event loop that called `start`."""

    def __init__(self, config: EngineConfig, *, model_folder: Path) -> None:
        if config.tensor_parallel != 1:
            raise ValueError(
                f"engine.tensor_parallel is {config.tensor_parallel}: kind 'vllm' runs on one GPU, use 'vllm-async'"
            )
        super().__init__(config, model_folder=model_folder)
        self._side: _EngineThread | None = None
        self._thread: threading.Thread | None = None
        self._mailboxes: set[asyncio.Queue[Any]] = set()
        self._ended: str | None = "the engine is not started"

    async def start(self) -> None:
        """Load the weights. Raises ModelFolderError, and what vLLM raises on its start."""
        begin = time.monotonic()
        loop = asyncio.get_running_loop()
        base_shapes = await asyncio.to_thread(read_base, self._model_folder)
        self._encoder = await asyncio.to_thread(
            PromptEncoder, self._model_folder, max_model_len=self._config.max_model_len
        )
        self._side = _EngineThread(self._config, model_folder=self._model_folder, base_shapes=base_shapes)
        started: asyncio.Future[None] = loop.create_future()

        def note_started() -> None:
            if not started.done():
                started.set_result(None)

        def note_ended(error: BaseException | None) -> None:
            self._ended = "the engine was stopped" if error is None else f"{type(error).__name__}: {error}"
            if not started.done():
                started.set_exception(error or EngineDeadError(self._ended))
            for mailbox in self._mailboxes:
                mailbox.put_nowait(EngineDeadError(self._ended))

        self._thread = threading.Thread(
            target=self._side.run,
            kwargs={
                "on_started": lambda: self._post(loop, note_started),
                "on_ended": lambda error: self._post(loop, note_ended, error),
            },
            name="vllm-engine",
            daemon=True,
        )
        self._thread.start()
        await started
        self._ended = None
        self._start_s = time.monotonic() - begin
        logger.info("engine ready model=%s start_s=%.1f", self._model_folder, self._start_s)

    async def load_adapter(self, adapter: AdapterRef) -> None:
        """Make the adapter ready; idempotent. Raises UnknownAdapterError, EngineDeadError."""
        with self._mailbox() as (side, mailbox, reply):
            side.commands.put(_Load(adapter, reply))
            await self._receive(mailbox)

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        """Forget the adapter once no request uses it; idempotent. Raises EngineDeadError."""
        with self._mailbox() as (side, mailbox, reply):
            side.commands.put(_Unload(adapter, reply))
            await self._receive(mailbox)

    def check_health(self) -> None:
        """Raise EngineDeadError if the engine's thread has ended."""
        if self._ended is not None:
            raise EngineDeadError(self._ended)

    async def stop(self) -> None:
        """End the thread after its current step; waiters get EngineDeadError. Idempotent."""
        if self._side is not None and self._thread is not None:
            self._side.commands.put(_Stop())
            await asyncio.to_thread(self._thread.join)
            await asyncio.sleep(0)  # lets the thread's last message arrive

    async def _outputs(
        self, request_id: str, token_ids: list[int], *, params: Any, adapter: AdapterRef | None
    ) -> AsyncGenerator[Any, None]:
        is_finished = False
        with self._mailbox() as (side, mailbox, reply):
            side.commands.put(_Submit(request_id, token_ids, params, adapter, reply))
            try:
                while not is_finished:
                    output = await self._receive(mailbox)
                    is_finished = output.finished
                    yield output
            finally:
                if not is_finished:
                    side.commands.put(_Abort(request_id))

    def _loaded_names(self) -> tuple[str, ...]:
        return () if self._side is None else self._side.loaded

    def _memory_bytes(self) -> int:
        rss: int = psutil.Process().memory_info().rss
        return rss

    @contextmanager
    def _mailbox(self) -> Iterator[tuple[_EngineThread, "asyncio.Queue[Any]", Reply]]:
        """The engine's side, a queue for one command's results, and the function by which that side fills it."""
        self.check_health()
        assert self._side is not None
        loop = asyncio.get_running_loop()
        mailbox: asyncio.Queue[Any] = asyncio.Queue()
        self._mailboxes.add(mailbox)
        try:
            yield self._side, mailbox, lambda item: self._post(loop, mailbox.put_nowait, item)
        finally:
            self._mailboxes.discard(mailbox)

    def _post(self, loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
        """Call `function` in the event loop, from the engine's thread. If the loop is gone, end the thread."""
        try:
            loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            if self._side is not None:
                self._side.commands.put(_Stop())

    @staticmethod
    async def _receive(mailbox: "asyncio.Queue[Any]") -> Any:
        item = await mailbox.get()
        if isinstance(item, Exception):
            raise item
        return item
