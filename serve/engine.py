"""The engine protocol: what a backend that runs the model must do. Backends: `KINDS`.

An engine serves one base model and any number of versions of it: adapters on it or, where `max_weights` allows them, full
weights (engine_weights.py). A version is addressed by `AdapterRef`, whose number is never reused.
"""

import importlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serve.config import EngineConfig
from train.adapt.reference import AdapterRef

__all__ = [
    "KINDS",
    "AdapterRef",
    "Engine",
    "EngineDeadError",
    "EngineStats",
    "GenerateChunk",
    "GenerateRequest",
    "ModelFolderError",
    "PromptTooLongError",
    "UnknownAdapterError",
    "build_engine",
]


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One generation. `prompt` is the final text (chat template applied); lengths are in tokens."""

    request_id: str
    prompt: str
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    adapter: AdapterRef | None = None
    has_log_prob: bool = False
    """Whether the last chunk tells `log_prob`; it costs the engine a softmax per token."""


@dataclass(frozen=True, slots=True)
class GenerateChunk:
    """A piece of the answer. The last one has `finish_reason` "stop" or "length" and the token counts."""

    text: str
    finish_reason: str | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    log_prob: float | None = None
    """Of the whole answer, nats: the sum over its tokens, by the model's own distribution before temperature and top-p. In the
    last chunk, where it was asked for and the engine has a model.
    """


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the start; `memory_bytes` is resident memory of the engine's process."""

    num_requests: int
    num_output_tokens: int
    num_running: int
    adapters: tuple[str, ...]
    start_s: float
    memory_bytes: int


class EngineDeadError(RuntimeError):
    """The engine's thread or process has died: the replica must be replaced."""


class UnknownAdapterError(ValueError):
    """The adapter cannot be loaded: its folder is missing, of another base model, or its rank is too large."""


class PromptTooLongError(ValueError):
    """Prompt and answer do not fit into the context: says by how many tokens."""


class ModelFolderError(ValueError):
    """The model folder is incomplete: names the missing file and the fix."""


class Engine(Protocol):
    """Base model + adapters. Methods may be called from one event loop, concurrently."""

    async def start(self) -> None:
        """Load the weights. Raises ModelFolderError. Heavy; called once."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        """Stream the answer in pieces as the engine yields them.

        Loads `request.adapter` first if it is not loaded. Closing the iterator aborts the request.
        Raises PromptTooLongError, UnknownAdapterError before the first piece; EngineDeadError at any time.
        """

    async def score(self, text: str, adapter: AdapterRef | None) -> list[float]:
        """Log-probability, nats, of each token of `text` after the first, teacher-forced."""

    async def load_adapter(self, adapter: AdapterRef) -> None:
        """Make the adapter ready; idempotent. Requests in flight are not disturbed."""

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        """Forget the adapter once no request uses it; idempotent."""

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as the engine would count them in a prompt."""

    def render_chat(self, messages: list[dict[str, str]]) -> str:
        """Apply the model's chat template with the generation prompt."""

    def check_health(self) -> None:
        """Raise EngineDeadError if the engine cannot answer. Cheap: no generation."""

    def stats(self) -> EngineStats:
        """Counters for the status page."""

    async def stop(self) -> None:
        """Release the engine; idempotent."""


KINDS = {
    "vllm": "serve.engine_vllm:VllmEngine",
    "vllm-async": "serve.engine_vllm_async:AsyncVllmEngine",
    "hf": "serve.engine_hf:HuggingFaceEngine",
    "echo": "serve.engine_echo:EchoEngine",
}

WEIGHTS = "serve.engine_weights:WeightsEngine"
"""Around any of them, where versions of full weights are served."""


def build_engine(config: EngineConfig, *, model_folder: Path) -> Engine:
    """The backend of `config.kind`, not started. Imported here: a backend's import costs seconds."""
    module, name = (WEIGHTS if config.max_weights else KINDS[config.kind]).split(":")
    engine: Engine = getattr(importlib.import_module(module), name)(config, model_folder=model_folder)
    return engine
