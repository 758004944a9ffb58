"""When a step of vLLM raises, every caller hears of it, and so does the health check: nobody waits for ever."""

import asyncio
from pathlib import Path

import pytest

from serve.config import EngineConfig
from serve.engine import AdapterRef, EngineDeadError, GenerateRequest
from serve.engine_vllm import VllmEngine


async def test_all_waiters_and_the_health_check_get_engine_dead_error(
    tiny_llama: Path, tiny_adapters: list[AdapterRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig(dtype="float32", max_model_len=128, max_num_seqs=4, kv_cache_bytes=32 << 20)
    engine = VllmEngine(config, model_folder=tiny_llama)
    with pytest.raises(EngineDeadError, match="not started"):
        engine.check_health()
    await engine.start()
    engine.check_health()
    from vllm.v1.engine.llm_engine import LLMEngine

    def step(self: LLMEngine) -> None:
        raise RuntimeError("out of memory")

    async def answer(number: int) -> None:
        adapter = tiny_adapters[number % 2]
        async for _ in engine.generate(GenerateRequest(f"r{number}", "The river", max_tokens=8, adapter=adapter)):
            pass

    monkeypatch.setattr(LLMEngine, "step", step)
    results = await asyncio.gather(*(answer(number) for number in range(6)), return_exceptions=True)
    assert [type(result) for result in results] == [EngineDeadError] * 6
    with pytest.raises(EngineDeadError, match="RuntimeError: out of memory"):
        engine.check_health()
    with pytest.raises(EngineDeadError):
        await engine.load_adapter(tiny_adapters[0])
    await engine.stop()
    await engine.stop()
