"""vLLM in processes of its own answers as the protocol says; on a CPU the mixed-batch fix reaches its worker."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from serve.config import EngineConfig
from serve.engine import AdapterRef, EngineDeadError, GenerateRequest, PromptTooLongError, UnknownAdapterError
from serve.engine_hf import HuggingFaceEngine
from serve.engine_vllm_async import AsyncVllmEngine

TEXT = "Adapters are small matrices that are added to the weights of a frozen model."


async def test_the_asynchronous_engine_keeps_the_protocol(tiny_llama: Path, tiny_adapters: list[AdapterRef]) -> None:
    """One test, because a start takes long."""
    config = EngineConfig(
        kind="vllm-async", dtype="float32", max_model_len=128, kv_cache_bytes=32 << 20, max_loras=2, max_cpu_loras=2
    )
    engine, plain = AsyncVllmEngine(config, model_folder=tiny_llama), HuggingFaceEngine(config, model_folder=tiny_llama)
    await engine.start()
    await plain.start()

    async def answer(adapter: AdapterRef | None) -> str:
        request = GenerateRequest("r", "The river through it is", max_tokens=32, adapter=adapter)
        return "".join([chunk.text async for chunk in engine.generate(request)])

    models = [None, *tiny_adapters[:2]]
    alone = [await answer(adapter) for adapter in models]
    assert len(set(alone)) == 3
    assert await asyncio.gather(*(answer(adapter) for adapter in models * 3)) == alone * 3
    for adapter in models:
        assert await engine.score(TEXT, adapter) == pytest.approx(await plain.score(TEXT, adapter), abs=1e-3)
    with pytest.raises(PromptTooLongError, match="too many"):
        await engine.score(TEXT * 20, None)
    with pytest.raises(UnknownAdapterError, match=r"no adapter_config\.json"):
        await engine.load_adapter(AdapterRef("gone", 90, "gone"))

    async with aclosing(engine.generate(GenerateRequest("r", "The", max_tokens=100, adapter=models[1]))) as chunks:
        async for _ in chunks:
            unload = asyncio.ensure_future(engine.unload_adapter(tiny_adapters[0]))
            await asyncio.sleep(0)
            assert not unload.done()
            break
    await unload
    assert engine.stats().adapters == ("ver-2",)
    assert await answer(tiny_adapters[0]) == alone[1]

    processes = psutil.Process().children(recursive=True)
    workers = [process for process in processes if "EngineCore" in " ".join(process.cmdline())]
    assert workers
    await plain.stop()
    await engine.stop()
    await engine.stop()
    with pytest.raises(EngineDeadError):
        engine.check_health()
    assert not [worker for worker in workers if worker.is_running()]
