"""Versions of full weights: the original's engine, and beside it an engine of its own for each version that is in memory.

A request goes to the engine of the version that it names. That engine was built fresh from the version's folder, and what it
computes is compared with the trainer's before it serves: an engine that reloads weights in place was seen to serve wrong text
without a word (docs/decisions/0010). At most `max_weights` versions are in memory; for one more the one that was used longest
ago and answers nobody is dropped. Adapters go to the original's engine, as without this.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from serve.config import EngineConfig
from serve.engine import (
    AdapterRef,
    Engine,
    EngineDeadError,
    EngineStats,
    GenerateChunk,
    GenerateRequest,
    ModelFolderError,
    UnknownAdapterError,
    build_engine,
)
from train.adapt.reference import MODEL_FOLDER

logger = logging.getLogger(__name__)


class Replica(Protocol):
    """The engine of one version: that of serve.engine.Engine which needs no adapter."""

    async def start(self) -> None:
        """Load the weights."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        """Stream the answer."""

    async def score(self, text: str) -> list[float]:
        """Log-probabilities of the text's tokens after the first."""

    def check_health(self) -> None:
        """Raise EngineDeadError if it cannot answer."""

    def stats(self) -> EngineStats:
        """Counters; `memory_bytes` beside this process's."""

    async def stop(self) -> None:
        """Release it."""


@dataclass(slots=True)
class _Version:
    """A version in memory."""

    reference: AdapterRef
    replica: Replica
    num_users: int = 0


class WeightsEngine:
    """`serve.engine.Engine` with versions of full weights. Its methods belong to the event loop that called `start`."""

    def __init__(self, config: EngineConfig, *, model_folder: Path) -> None:
        self._config = config.model_copy(update={"max_weights": 0})
        self._max_weights = config.max_weights
        self._model_folder = model_folder
        self._original = build_engine(self._config, model_folder=model_folder)
        self._versions: dict[int, _Version] = {}
        """By number; the one that was used last comes last."""
        self._known: dict[int, AdapterRef] = {}  # every number ever seen: it never gets another meaning
        self._changing = asyncio.Lock()
        self._freed = asyncio.Event()

    async def start(self) -> None:
        """Load the original. Raises ModelFolderError."""
        await self._original.start()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        """Stream the answer of the version that the request names. Raises as the backend; UnknownAdapterError."""
        if request.adapter is not None and request.adapter.kind == "weights":
            async with self._using(request.adapter) as replica:
                plain = replace(request, adapter=None)
                async with aclosing(replica.generate(plain)) as chunks:  # type: ignore[type-var]
                    async for chunk in chunks:
                        yield chunk
        else:
            async with aclosing(self._original.generate(request)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    yield chunk

    async def score(self, text: str, adapter: AdapterRef | None) -> list[float]:
        """Log-probability, nats, of each token of `text` after the first, by that version. Raises as `generate`."""
        if adapter is None or adapter.kind == "adapter":
            return await self._original.score(text, adapter)
        async with self._using(adapter) as replica:
            return await replica.score(text)

    async def load_adapter(self, adapter: AdapterRef) -> None:
        """Make the version ready; idempotent. Other versions answer meanwhile. Raises UnknownAdapterError."""
        if adapter.kind == "adapter":
            await self._original.load_adapter(adapter)
            return
        async with self._using(adapter):
            pass

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        """Drop the version once no request uses it; idempotent."""
        if adapter.kind == "adapter":
            await self._original.unload_adapter(adapter)
            return
        while (version := self._versions.get(adapter.number)) is not None:
            if version.num_users:
                await self._until_freed()
                continue
            async with self._changing:
                if not version.num_users:
                    await self._drop(version)

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as a prompt: all versions have the original's tokenizer."""
        return self._original.count_tokens(text)

    def render_chat(self, messages: list[dict[str, str]]) -> str:
        """The original's chat template, which all versions have."""
        return self._original.render_chat(messages)

    def check_health(self) -> None:
        """Raise EngineDeadError if the original cannot answer. A version whose engine died is built anew when it is asked."""
        self._original.check_health()

    def stats(self) -> EngineStats:
        """Counters of the original and of the versions that are in memory."""
        original = self._original.stats()
        versions = [version.replica.stats() for version in self._versions.values()]
        return EngineStats(
            num_requests=original.num_requests + sum(one.num_requests for one in versions),
            num_output_tokens=original.num_output_tokens + sum(one.num_output_tokens for one in versions),
            num_running=original.num_running + sum(one.num_running for one in versions),
            adapters=(*original.adapters, *(version.reference.name for version in self._versions.values())),
            start_s=original.start_s,
            memory_bytes=original.memory_bytes + sum(one.memory_bytes for one in versions),
        )

    async def stop(self) -> None:
        """Release all; idempotent."""
        async with self._changing:
            for version in list(self._versions.values()):
                await self._drop(version)
        await self._original.stop()

    @asynccontextmanager
    async def _using(self, reference: AdapterRef) -> AsyncIterator[Replica]:
        """The version's engine, built if it is not there; it is not dropped within the block."""
        self.check_health()
        known = self._known.setdefault(reference.number, reference)
        if known != reference:
            raise UnknownAdapterError(
                f"version number {reference.number} belongs to {known.name!r} in {known.folder}: take a new number"
            )
        version = self._ready(reference)
        if version is None:
            async with self._changing:
                version = self._ready(reference) or await self._load(reference)
                version.num_users += 1
        else:
            version.num_users += 1
        try:
            yield version.replica
        finally:
            version.num_users -= 1
            self._freed.set()

    def _ready(self, reference: AdapterRef) -> _Version | None:
        """The version if it is there and answers; it was used just now."""
        version = self._versions.get(reference.number)
        if version is None:
            return None
        try:
            version.replica.check_health()
        except EngineDeadError:
            return None
        self._versions[reference.number] = self._versions.pop(reference.number)
        return version

    async def _load(self, reference: AdapterRef) -> _Version:
        """Build the version's engine, after another one has gone where there is no room. Raises UnknownAdapterError."""
        if (dead := self._versions.get(reference.number)) is not None:
            await self._drop(dead)
        await self._check(reference)
        while len(self._versions) >= self._max_weights:
            idle = next((version for version in self._versions.values() if not version.num_users), None)
            await (self._until_freed() if idle is None else self._drop(idle))
        replica = REPLICAS[self._config.kind](self._config, reference)
        begin = time.monotonic()
        try:
            await replica.start()
        except BaseException as error:
            await replica.stop()
            if isinstance(error, ModelFolderError):
                raise UnknownAdapterError(f"version {reference.name!r} cannot be served: {error}") from error
            raise
        version = self._versions[reference.number] = _Version(reference, replica)
        logger.info("version loaded name=%s start_s=%.1f", reference.name, time.monotonic() - begin)
        return version

    async def _check(self, reference: AdapterRef) -> None:
        if not (Path(reference.folder) / MODEL_FOLDER / "config.json").is_file():
            raise UnknownAdapterError(
                f"version {reference.name!r} has no {MODEL_FOLDER}/config.json in {reference.folder}: it holds no full weights"
            )
        if self._config.kind == "echo":
            return  # it has no base to compare with
        from train.adapt.weights import WeightsError, check_weights_folder

        try:
            await asyncio.to_thread(check_weights_folder, Path(reference.folder), base_folder=self._model_folder)
        except WeightsError as error:
            raise UnknownAdapterError(f"version {reference.name!r} cannot be served: {error}") from error

    async def _drop(self, version: _Version) -> None:
        if self._versions.get(version.reference.number) is version:
            del self._versions[version.reference.number]
            await version.replica.stop()
            logger.info("version dropped name=%s", version.reference.name)

    async def _until_freed(self) -> None:
        self._freed.clear()
        await self._freed.wait()


class SharedProcess:
    """A version's engine in this process, for backends of which one process holds several."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.start, self.generate, self.stop = engine.start, engine.generate, engine.stop
        self.check_health = engine.check_health

    async def score(self, text: str) -> list[float]:
        """See Replica."""
        return await self._engine.score(text, None)

    def stats(self) -> EngineStats:
        """See Replica: its memory is this process's, which the original counts."""
        return replace(self._engine.stats(), memory_bytes=0)


def _build_echo(config: EngineConfig, reference: AdapterRef) -> Replica:
    from serve.engine_echo import EchoEngine

    return SharedProcess(EchoEngine(config, model_folder=_model_of(reference), version=reference.name))


def _build_hf(config: EngineConfig, reference: AdapterRef) -> Replica:
    return SharedProcess(build_engine(config, model_folder=_model_of(reference)))


def _build_vllm(config: EngineConfig, reference: AdapterRef) -> Replica:
    from serve.engine_process import ProcessEngine

    plain = config.model_copy(update={"max_loras": 0})  # adapters are the original's
    return ProcessEngine(plain, model_folder=_model_of(reference))


REPLICAS: dict[str, Callable[[EngineConfig, AdapterRef], Replica]] = {
    "echo": _build_echo,
    "hf": _build_hf,
    "vllm": _build_vllm,
}
"""The engine of a version, not started, by the kind of the original's."""


def _model_of(reference: AdapterRef) -> Path:
    return Path(reference.folder) / MODEL_FOLDER
