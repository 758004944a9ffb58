"""What the HTTP surface costs: the same requests through the running system and on a bare engine in this process.

The bare engine is the same backend with the same configuration and the same base model, so what differs is HTTP, the
ingress, Ray Serve and the screens. Needs a running system; without one, starts one.
"""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import httpx

from cluster.bench import BenchContext, Claim, Comparison, percentile, side_by_side
from cluster.client import Client
from cluster.config import SystemConfig
from cluster.processes import find_processes
from cluster.up import prepare_model
from serve.engine import Engine, GenerateRequest, build_engine

BATCH = 8
ANSWER_TOKENS = 32
MAX_RATIO = 1.3
MAX_TOKEN_DIFFERENCE = 0.05
"""Share by which the outputs may differ: bf16 answers may end a token earlier in another batch."""
QUESTIONS = (
    "Explain step by step how bread is baked.",
    "Write a long story about a lighthouse.",
    "Describe a busy market in detail.",
    "List the months of the year and what happens in each.",
    "Explain how a bicycle works.",
    "Describe the life of a tree.",
    "Write a long letter to a friend about the sea.",
    "Explain why the sky changes its colour in the evening.",
)


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    with context.running_system() as (client, config):
        yield no_op(client, count=50 if context.quick else 500)
        comparison, tokens = compare(client, config, repeats=3 if context.quick else 15, note=context.note)
    yield Claim(
        "HTTP over the bare engine, batch 8, 32 tokens", f"ratio < {MAX_RATIO}", round(comparison.ratio, 3), "ratio",
        decide(comparison, tokens),
        f"whole answers of the base model, retrieval off; {comparison.describe()}; "
        f"output tokens of all batches: bare {tokens[0]}, HTTP {tokens[1]}; CPU ratio {comparison.cpu_ratio:.3f}",
    )  # fmt: skip


def decide(comparison: Comparison, tokens: tuple[int, int]) -> bool | None:
    """Met or missed if the whole interval says so; None otherwise, and where the two did not do the same work."""
    if abs(tokens[1] - tokens[0]) > MAX_TOKEN_DIFFERENCE * tokens[0]:
        return None
    if comparison.ratio_high < MAX_RATIO:
        return True
    return False if comparison.ratio_low >= MAX_RATIO else None


def no_op(client: Client, *, count: int) -> Claim:
    """p50 of a request that does nothing, one connection."""
    client.healthz()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        client.healthz()
        times.append(time.perf_counter() - start)
    p50 = statistics.median(times) * 1000
    return Claim(
        "GET /healthz (p50)", "< 20 ms", round(p50, 2), "ms", p50 < 20,
        f"{count} requests, one after another, one connection; p95 {percentile(times, 95) * 1000:.2f} ms",
    )  # fmt: skip


def compare(client: Client, config: SystemConfig, *, repeats: int, note: Any) -> tuple[Comparison, tuple[int, int]]:
    """Batches of whole answers, interleaved. Returns the comparison and the output tokens (bare, HTTP)."""
    engine = build_engine(config.engine, model_folder=prepare_model(config))
    pids = [process.pid for process in find_processes(config.home)]
    tokens = Counter[str]()
    with asyncio.Runner() as runner:
        note("starting the bare engine")
        runner.run(engine.start())
        try:
            note(f"comparing, {repeats} pairs")
            comparison = side_by_side(
                lambda: tokens.update(bare=runner.run(_bare_batch(engine))),
                lambda: tokens.update(http=runner.run(_http_batch(client.base_url))),
                repeats=repeats, warmup=1, names=("bare engine", "HTTP"), pids=pids,
            )  # fmt: skip
        finally:
            runner.run(engine.stop())
    return comparison, (tokens["bare"], tokens["http"])


async def _bare_batch(engine: Engine) -> int:
    async def one(number: int) -> int:
        prompt = engine.render_chat([{"role": "user", "content": QUESTIONS[number]}])
        tokens = 0
        request = GenerateRequest(
            request_id=f"bare-{number}-{time.monotonic_ns()}", prompt=prompt, max_tokens=ANSWER_TOKENS
        )
        async for chunk in engine.generate(request):
            tokens = chunk.num_output_tokens or tokens
        return tokens

    return sum(await asyncio.gather(*(one(number) for number in range(BATCH))))


async def _http_batch(base_url: str) -> int:
    async with httpx.AsyncClient(base_url=base_url, timeout=300.0, trust_env=False) as http:

        async def one(number: int) -> int:
            body = {
                "model": "base", "messages": [{"role": "user", "content": QUESTIONS[number]}], "retrieval": False,
                "max_tokens": ANSWER_TOKENS, "temperature": 0,
            }  # fmt: skip
            response = await http.post("/v1/chat/completions", json=body)
            response.raise_for_status()
            return int(response.json()["usage"]["completion_tokens"])

        return sum(await asyncio.gather(*(one(number) for number in range(BATCH))))
