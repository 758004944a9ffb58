"""An engine in a process of its own, for what one process cannot hold twice: vLLM's in-process engine.

The parent keeps the protocol's methods; requests, pieces of answers and errors cross a pipe. The child ends with its parent,
and its memory ends with it. An engine that dies, or a child that is killed, is EngineDeadError for every waiter.
"""

import asyncio
import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from serve.config import EngineConfig
from serve.engine import (
    EngineDeadError,
    EngineStats,
    GenerateChunk,
    GenerateRequest,
    ModelFolderError,
    PromptTooLongError,
    UnknownAdapterError,
    build_engine,
)

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0
"""How long a child may take to end by itself."""
STARTED = 0
"""Number of the reply to the start."""
ERRORS: dict[str, type[Exception]] = {
    error.__name__: error
    for error in (EngineDeadError, ModelFolderError, PromptTooLongError, UnknownAdapterError, ValueError)
}
"""Of the protocol: these keep their type over the pipe."""


@dataclass(frozen=True, slots=True)
class _Ask:
    """A request: GenerateRequest for an answer, a text to score. None: leave the one of this number."""

    number: int
    what: GenerateRequest | str | None


@dataclass(frozen=True, slots=True)
class _Reply:
    """A piece (`is_last` False), the result, or what was raised, as its type's name and its words."""

    number: int
    value: Any = None
    error: tuple[str, str] | None = None
    is_last: bool = True


class ProcessEngine:
    """One model's engine in a child process, without adapters. Its methods belong to the event loop that called `start`."""

    def __init__(self, config: EngineConfig, *, model_folder: Path) -> None:
        self._config = config
        self._model_folder = model_folder
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._reader: threading.Thread | None = None
        self._mailboxes: dict[int, asyncio.Queue[_Reply]] = {}
        self._numbers = count(STARTED + 1)
        self._ended: str | None = "the engine is not started"
        self._num_requests = 0
        self._num_output_tokens = 0
        self._num_running = 0
        self._start_s = 0.0

    async def start(self) -> None:
        """Start the child and load the weights there; the event loop goes on meanwhile. Raises what that raises."""
        begin = time.monotonic()
        context = multiprocessing.get_context("spawn")
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(
            target=run_child, args=(far_end, self._config, self._model_folder), name="engine", daemon=True
        )
        mailbox = self._mailboxes[STARTED] = asyncio.Queue()
        await asyncio.to_thread(self._process.start)
        far_end.close()  # the child's own end is then the only one: its death is an end of file here
        loop = asyncio.get_running_loop()
        self._reader = threading.Thread(target=self._read, args=(self._pipe, loop), name="engine-replies", daemon=True)
        self._reader.start()
        try:
            _value_of(await mailbox.get())
        except BaseException:
            await self.stop()
            raise
        finally:
            self._mailboxes.pop(STARTED, None)
        self._ended = None
        self._start_s = time.monotonic() - begin

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        """Stream the answer. Raises as the engine in the child, and EngineDeadError when that is gone."""
        self._num_requests += 1
        self._num_running += 1
        try:
            async with aclosing(self._replies(request)) as replies:  # type: ignore[type-var]
                async for chunk in replies:
                    self._num_output_tokens += chunk.num_output_tokens
                    yield chunk
        finally:
            self._num_running -= 1

    async def score(self, text: str) -> list[float]:
        """Log-probability, nats, of each token of `text` after the first. Raises as `generate`."""
        async with aclosing(self._replies(text)) as replies:  # type: ignore[type-var]
            async for scores in replies:
                return list(scores)
        raise EngineDeadError("the engine gave no scores")

    def check_health(self) -> None:
        """Raise EngineDeadError before `start`, after `stop`, and when the child or its engine has ended."""
        if self._ended is not None:
            raise EngineDeadError(self._ended)

    def stats(self) -> EngineStats:
        """Counters since the start; memory is the child's."""
        try:
            memory_bytes: int = psutil.Process(self._process.pid).memory_info().rss if self._process else 0
        except psutil.NoSuchProcess:
            memory_bytes = 0
        return EngineStats(
            num_requests=self._num_requests,
            num_output_tokens=self._num_output_tokens,
            num_running=self._num_running,
            adapters=(),
            start_s=self._start_s,
            memory_bytes=memory_bytes,
        )

    async def stop(self) -> None:
        """End the child and see it gone; waiters get EngineDeadError. Idempotent."""
        process, self._process = self._process, None
        pipe, self._pipe = self._pipe, None
        self._end("the engine was stopped")
        if process is None or pipe is None:
            return
        with suppress(OSError):  # it has ended by itself
            pipe.send(None)
        await asyncio.to_thread(_see_gone, process)
        if self._reader is not None:
            await asyncio.to_thread(
                self._reader.join
            )  # the end of file has reached it: only now the pipe may be closed
        pipe.close()

    async def _replies(self, what: GenerateRequest | str) -> AsyncIterator[Any]:
        self.check_health()
        number = next(self._numbers)
        mailbox = self._mailboxes[number] = asyncio.Queue()
        is_over = False
        try:
            self._send(_Ask(number, what))
            while not is_over:
                reply = await mailbox.get()
                is_over = reply.is_last
                value = _value_of(reply)
                if value is not None:
                    yield value
        except EngineDeadError as error:
            is_over = True
            self._end(str(error))
            raise
        finally:
            del self._mailboxes[number]
            if not is_over and self._ended is None:
                self._send(_Ask(number, None))

    def _send(self, ask: _Ask) -> None:
        assert self._pipe is not None, "check_health has looked"
        try:
            self._pipe.send(ask)
        except OSError as error:
            raise EngineDeadError("the engine's process has ended") from error

    def _read(self, pipe: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own: replies to their mailboxes, until the pipe's end."""
        post: Callable[..., Any] = loop.call_soon_threadsafe
        try:
            while True:
                post(self._deliver, pipe.recv())
        except (EOFError, OSError):
            ended = (self._end, "the engine's process has ended")
        except RuntimeError:  # the loop is closed: nobody waits
            return
        try:
            post(*ended)
        except RuntimeError:
            return

    def _deliver(self, reply: _Reply) -> None:
        if mailbox := self._mailboxes.get(reply.number):
            mailbox.put_nowait(reply)

    def _end(self, reason: str) -> None:
        """Nothing is asked any more, and who waits is told."""
        self._ended = self._ended or reason
        for number, mailbox in self._mailboxes.items():
            mailbox.put_nowait(_Reply(number, error=(EngineDeadError.__name__, reason)))


def _see_gone(process: BaseProcess) -> None:
    process.join(STOP_TIMEOUT_S)
    if process.is_alive():
        logger.warning("engine process %s does not end by itself and is killed", process.pid)
        process.kill()
        process.join(STOP_TIMEOUT_S)


def _value_of(reply: _Reply) -> Any:
    """Raises what the child raised."""
    if reply.error is None:
        return reply.value
    name, words = reply.error
    raise ERRORS[name](words) if name in ERRORS else RuntimeError(f"{name}: {words}")


# The child's side.


def run_child(pipe: Connection, config: EngineConfig, model_folder: Path) -> None:
    """Serve one engine until the parent says None or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    asyncio.run(_serve(pipe, config, model_folder))


async def _serve(pipe: Connection, config: EngineConfig, model_folder: Path) -> None:
    loop = asyncio.get_running_loop()
    asked: asyncio.Queue[_Ask | None] = asyncio.Queue()

    def read() -> None:
        ask: _Ask | None = None
        while True:
            try:
                ask = pipe.recv()
            except (EOFError, OSError):
                ask = None
            loop.call_soon_threadsafe(asked.put_nowait, ask)
            if ask is None:
                return

    engine = build_engine(config, model_folder=model_folder)
    try:
        await engine.start()
    except Exception as error:  # whatever it is, the parent raises it
        pipe.send(_Reply(STARTED, error=(type(error).__name__, str(error))))
        return
    pipe.send(_Reply(STARTED))
    threading.Thread(target=read, daemon=True).start()
    tasks: dict[int, asyncio.Task[None]] = {}
    while (ask := await asked.get()) is not None:
        if ask.what is None:
            if task := tasks.get(ask.number):
                task.cancel()
            continue
        task = tasks[ask.number] = asyncio.create_task(_answer(engine, ask, pipe))
        task.add_done_callback(partial(_forget, tasks, ask.number))
    for task in list(tasks.values()):
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    await engine.stop()


def _forget(tasks: "dict[int, asyncio.Task[None]]", number: int, _: "asyncio.Task[None]") -> None:
    tasks.pop(number, None)


async def _answer(engine: Any, ask: _Ask, pipe: Connection) -> None:
    try:
        if isinstance(ask.what, str):
            pipe.send(_Reply(ask.number, await engine.score(ask.what, None)))
            return
        async with aclosing(engine.generate(ask.what)) as chunks:
            async for chunk in chunks:
                pipe.send(_Reply(ask.number, chunk, is_last=False))
        pipe.send(_Reply(ask.number))
    except BrokenPipeError:
        return
    except Exception as error:  # whatever it is, the parent raises it
        pipe.send(_Reply(ask.number, error=(type(error).__name__, str(error))))
