"""The Ray Serve application: engine replicas and the HTTP ingress in front of them.

`build(args)` makes the application; `deploy_application` starts Serve and runs it. V1, V2 and V3 are adapters on the
same engine replicas: promoting one is a flip of the ledger's pointer, no redeployment.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle

from autonomous.feedback_config import FeedbackConfig
from autonomous.safety.latch import Latch
from autonomous.safety.processes import register
from autonomous.safety.screen import SafetyScreen
from memory.store import no_guard
from serve.app import build_api
from serve.config import EngineConfig, HttpConfig, RAGConfig
from serve.engine import AdapterRef as EngineAdapter
from serve.engine import GenerateChunk, GenerateRequest, build_engine
from serve.ray_parts import RayParts, TextCodec
from serve.stream import COALESCE_S, WholeAnswer, coalesce, collect

APPLICATION = "autonomous"
"""Name of the Serve application; actors/ports.py finds the engine by it and by the class name EngineDeployment."""

HEALTH_PERIOD_S = 2.0
HEALTH_TIMEOUT_S = 60.0
"""Generous: a replica that computes under load answers late, and a restart costs its whole start."""
STOPPED_S = 0.5
"""How often a replica that waits for a reset looks."""
ENGINE_CPUS = 0.5
"""Logical CPUs of an engine replica. Small: Ray must keep room for the other actors on a machine with two cores."""


class ServeArgs(BaseModel):
    """Arguments of the application, as `serve run serve.deployments:build` takes them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_folder: Path
    """Hugging Face folder of the base model."""
    engine: EngineConfig = EngineConfig()
    rag: RAGConfig = RAGConfig()
    http: HttpConfig = HttpConfig()
    screen_level: Literal["low", "medium", "high"] = "high"
    """How answers are screened (autonomous.config.AutonomousConfig.safety_level)."""
    latch: Path | None = None
    """The stop latch: a stop of everything ends answers too. None: nothing stops them."""
    feedback: FeedbackConfig = FeedbackConfig()
    """Whether answers are kept for feedback, and how many may wait to be written."""


class EngineDeployment:
    """One engine replica. Adapters load on first use; `prepare` loads one ahead and proves what it computes."""

    async def __init__(self, config: EngineConfig, model_folder: Path, latch: Path | None) -> None:  # type: ignore[misc]
        """A replica that comes back after everything was killed waits, empty, until a person resets the stop."""
        self._latch = Latch.open(latch) if latch is not None else None
        if self._latch is not None:
            register(self._latch.path.parent, role="engine", within="all")
            while self._latch.state().forbids("all"):
                await asyncio.sleep(STOPPED_S)
        self._engine = build_engine(config, model_folder=model_folder)
        await self._engine.start()

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        """Stream an answer, joined to pieces of 300 ms before they cross to the ingress."""
        async with aclosing(coalesce(self._permitted(request), interval_s=COALESCE_S)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece

    async def complete(self, request: GenerateRequest) -> WholeAnswer:
        """A whole answer in one message."""
        async with aclosing(self._permitted(request)) as chunks:
            return await collect(chunks)

    async def _permitted(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk]:
        """What the engine says, until everything is stopped. Raises LearningStopped."""
        check = self._latch.permit("answer", within="all").check if self._latch is not None else no_guard
        async with aclosing(self._engine.generate(request)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                check()
                yield chunk

    async def ask(self, messages: list[dict[str, str]], max_tokens: int, adapter: EngineAdapter | None = None) -> str:
        """The answer of a version, or of the base model, to a chat, greedily: for parts that read with it, not for users."""
        prompt = self._engine.render_chat(messages)
        own = None if adapter is None else EngineAdapter(adapter.name, adapter.number, str(adapter.folder))
        answer = await self.complete(GenerateRequest(uuid.uuid4().hex, prompt, max_tokens=max_tokens, adapter=own))
        return answer.text

    async def prepare(self, adapter: EngineAdapter, probe: str) -> list[float]:
        """Load an adapter; the log-probabilities of `probe` with it, nats, empty for an empty probe."""
        adapter = replace(adapter, folder=str(adapter.folder))
        await self._engine.load_adapter(adapter)
        return await self._engine.score(probe, adapter) if probe else []

    async def drop(self, adapter: EngineAdapter) -> None:
        """Forget an adapter once no request uses it."""
        await self._engine.unload_adapter(replace(adapter, folder=str(adapter.folder)))

    def stats(self) -> dict[str, Any]:
        """Counters of this replica."""
        self._engine.check_health()
        return asdict(self._engine.stats())

    def check_health(self) -> None:
        """Called by Serve: a replica whose engine has died is replaced."""
        self._engine.check_health()

    async def __del__(self) -> None:
        """Called and awaited by Serve when the replica has drained."""
        await self._engine.stop()


class IngressDeployment:
    """The HTTP surface. Holds the tokenizer, so that rendering and counting cost no hop."""

    def __init__(self, engine: DeploymentHandle[Any], args: ServeArgs) -> None:
        self._args = args
        self._parts = RayParts(
            engine,
            build_codec(args.engine, model_folder=args.model_folder),
            timeout_s=args.http.request_timeout_s,
            latch=Latch.open(args.latch) if args.latch is not None else None,
            feedback=args.feedback,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        screen = SafetyScreen(self._args.screen_level)
        return build_api(
            self._parts,
            http=self._args.http,
            rag=self._args.rag,
            max_model_len=self._args.engine.max_model_len,
            mask=lambda text: screen.screen_answer(text).text,
            coalesce_s=0.0,
        )


class TokenizerCodec:
    """The model folder's tokenizer as a `TextCodec`."""

    def __init__(self, model_folder: Path, *, max_model_len: int) -> None:
        from serve.engine_text import PromptEncoder

        self._encoder = PromptEncoder(model_folder, max_model_len=max_model_len)

    def render_chat(self, messages: list[dict[str, str]]) -> str:
        """The model's chat template with the generation prompt."""
        return self._encoder.render_chat(messages)

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as a prompt."""
        return len(self._encoder.encode(text))


def build_codec(config: EngineConfig, *, model_folder: Path) -> TextCodec:
    """How this engine counts and renders. The echo engine has words for tokens and no model folder."""
    if config.kind == "echo":
        return build_engine(config, model_folder=model_folder)
    return TokenizerCodec(model_folder, max_model_len=config.max_model_len)


def build(args: ServeArgs) -> ray_serve.Application:
    """The application: an ingress bound to the engine replicas."""
    threads = str(args.engine.num_threads)
    engine_options = {
        "num_cpus": ENGINE_CPUS,
        "num_gpus": args.engine.num_gpus_per_replica * args.engine.tensor_parallel,
        # Ray would set OMP_NUM_THREADS from num_cpus; vLLM's engines would bind themselves to the same core.
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}},
    }
    num_slots = args.engine.max_num_seqs
    shutdown_timeout_s = args.http.request_timeout_s + 10
    engine = ray_serve.deployment(
        name=EngineDeployment.__name__,
        num_replicas=args.engine.num_replicas,
        ray_actor_options=engine_options,
        max_ongoing_requests=2 * num_slots,
        max_queued_requests=4 * num_slots,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=shutdown_timeout_s,
        max_constructor_retry_count=3,
    )(EngineDeployment)
    ingress = ray_serve.deployment(
        name=IngressDeployment.__name__,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=16 * num_slots,
        max_queued_requests=16 * num_slots,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=shutdown_timeout_s,
    )(ray_serve.ingress()(IngressDeployment))
    bound = engine.bind(args.engine, args.model_folder, args.latch)
    return ingress.bind(bound, args)


def deploy_application(
    http: HttpConfig,
    engine: EngineConfig,
    rag: RAGConfig,
    *,
    http_port: int,
    model_folder: Path,
    screen_level: Literal["low", "medium", "high"] = "high",
    latch: Path | None = None,
    feedback: FeedbackConfig | None = None,
) -> None:
    """Start Serve on the connected cluster and run the application; returns when its replicas are up.

    `http_port` is the port that is really used (http.port may be 0). Raises RuntimeError if a replica does not start.
    """
    ray_serve.start(proxy_location="HeadOnly", http_options={"host": http.host, "port": http_port})
    args = ServeArgs(
        model_folder=model_folder,
        engine=engine,
        rag=rag,
        http=http,
        screen_level=screen_level,
        latch=latch,
        feedback=feedback or FeedbackConfig(),
    )
    ray_serve.run(build(args), name=APPLICATION, route_prefix="/")
