"""Base rows and adapter rows in one batch: the fixed CPU operations against a plain loop, and vLLM against solo runs.

A new vLLM version goes into serve.lora_ops.TESTED_VERSIONS when this file passes with it.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import pytest
import pytest_asyncio
import torch

from serve import lora_ops as ours
from serve.config import EngineConfig
from serve.engine import AdapterRef, GenerateRequest
from serve.engine_vllm import VllmEngine
from serve.engine_vllm_options import prepare_environment

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUM_SLOTS, NUM_IN, RANK, NUM_OUT = 3, 32, 8, 48
INDICES = [0, -1, 2, -1]
LAYOUTS = {
    "one row each: row-wise product": INDICES,
    "blocks of rows: grouped product by slices": [index for index in INDICES for _ in range(8)],
    "rows in turn: grouped product by row numbers": INDICES * 8,
    "one adapter": [1, 1, 1, 1],
    "one adapter and base rows": [-1, 2, -1, 2],
    "base rows only": [-1, -1, -1],
}


@pytest.fixture(scope="module")
def vllm_ops() -> ModuleType:
    if not prepare_environment(EngineConfig()):
        pytest.skip("the operations are those of vLLM's CPU build")
    ours.fix_mixed_batches()
    from vllm.lora.ops.torch_ops import lora_ops

    return lora_ops


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS.keys())
def indices(request: pytest.FixtureRequest) -> torch.Tensor:
    return torch.tensor(request.param)


def tensors(num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs [rows, in], A [slots, 1, rank, in], B [slots, 1, out, rank]."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(num_rows, NUM_IN, generator=generator),
        torch.randn(NUM_SLOTS, 1, RANK, NUM_IN, generator=generator),
        torch.randn(NUM_SLOTS, 1, NUM_OUT, RANK, generator=generator),
    )


async def test_shrink_equals_a_loop_and_leaves_base_rows_zero(vllm_ops: ModuleType, indices: torch.Tensor) -> None:
    inputs, a, _ = tensors(len(indices))
    output = torch.ones(len(indices), RANK)
    vllm_ops.bgmv_shrink(inputs, a, output, indices, 0.5)
    for row, slot in enumerate(indices.tolist()):
        expected = 0.5 * a[slot, 0] @ inputs[row] if slot >= 0 else torch.zeros(RANK)
        torch.testing.assert_close(output[row], expected)


@pytest.mark.parametrize("add_inputs", [True, False])
async def test_expand_equals_a_loop_and_adds_nothing_to_base_rows(
    vllm_ops: ModuleType, indices: torch.Tensor, add_inputs: bool
) -> None:
    inputs, _, b = tensors(len(indices))
    inputs = inputs[:, :RANK]
    before = torch.randn(len(indices), NUM_OUT + 4, generator=torch.Generator().manual_seed(1))
    plain, packed = before.clone(), before.clone()
    vllm_ops.bgmv_expand(inputs, b, plain, indices, add_inputs)
    vllm_ops.bgmv_expand_slice(inputs, b, packed, indices, 4, NUM_OUT, add_inputs)
    for row, slot in enumerate(indices.tolist()):
        product = b[slot, 0] @ inputs[row] if slot >= 0 else torch.zeros(NUM_OUT)
        torch.testing.assert_close(plain[row, :NUM_OUT], product + add_inputs * before[row, :NUM_OUT])
        torch.testing.assert_close(packed[row, 4:], product + add_inputs * before[row, 4:])
    assert torch.equal(plain[:, NUM_OUT:], before[:, NUM_OUT:])
    assert torch.equal(packed[:, :4], before[:, :4])


async def test_segment_operations_go_through_the_fix(vllm_ops: ModuleType) -> None:
    inputs, a, _ = tensors(len(INDICES))
    output = torch.ones(len(INDICES), RANK)
    lengths = torch.ones(len(INDICES), dtype=torch.long)
    vllm_ops.sgmv_shrink(inputs, a, output, torch.arange(4), lengths, torch.tensor(INDICES), 4, 1, 4, 1.0)
    assert torch.equal(output[1], torch.zeros(RANK))
    torch.testing.assert_close(output[2], a[2, 0] @ inputs[2])


async def test_the_build_without_the_fix_gives_base_rows_the_last_adapter(vllm_ops: ModuleType) -> None:
    """When this fails, vLLM has mended its operations: the fix can go."""
    inputs, a, _ = tensors(len(INDICES))
    output = torch.zeros(len(INDICES), RANK)
    vllm_ops.bgmv_shrink.__wrapped__(inputs, a, output, torch.tensor(INDICES), 1.0)
    torch.testing.assert_close(output[1], a[-1, 0] @ inputs[1])


async def test_the_fix_is_applied_once(vllm_ops: ModuleType) -> None:
    before = vllm_ops.bgmv_shrink
    ours.fix_mixed_batches()
    assert vllm_ops.bgmv_shrink is before
    assert not hasattr(before.__wrapped__, "__wrapped__")


async def test_an_untested_vllm_version_is_refused(vllm_ops: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "TESTED_VERSIONS", ("0.1.0",))
    with pytest.raises(ours.UntestedVllmVersion, match=r"tested with 0\.1\.0 only"):
        ours.fix_mixed_batches()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tiny_llama: Path) -> AsyncIterator[VllmEngine]:
    config = EngineConfig(
        dtype="float32", max_model_len=128, max_num_seqs=16, kv_cache_bytes=32 << 20, max_loras=2, max_cpu_loras=2
    )
    engine = VllmEngine(config, model_folder=tiny_llama)
    await engine.start()
    yield engine
    await engine.stop()


async def test_nine_requests_of_base_and_two_adapters_in_one_batch_answer_as_alone(
    engine: VllmEngine, tiny_adapters: list[AdapterRef]
) -> None:
    prompts = ["The river through it is", "Which bird lays its eggs in the", "A lighthouse stands"]
    cases = [(prompt, adapter) for prompt in prompts for adapter in (None, *tiny_adapters[:2])]
    events: list[tuple[int, bool]] = []

    async def answer(number: int) -> str:
        prompt, adapter = cases[number]
        text = ""
        async for chunk in engine.generate(GenerateRequest(f"r{number}", prompt, max_tokens=48, adapter=adapter)):
            text += chunk.text
            events.append((number, chunk.finish_reason is not None))
        return text

    alone = [await answer(number) for number in range(len(cases))]
    assert len(set(alone)) == len(cases), "every case has an answer of its own"
    events.clear()
    together = await asyncio.gather(*(answer(number) for number in range(len(cases))))
    started_before_first_end = {number for number, _ in events[: next(i for i, event in enumerate(events) if event[1])]}
    assert started_before_first_end == set(range(len(cases))), "all nine ran in one batch"
    assert together == alone
