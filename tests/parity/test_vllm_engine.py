"""The in-process vLLM engine against transformers and PEFT in float32; hot loads, errors, callers who leave."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from serve.config import EngineConfig
from serve.engine import AdapterRef, GenerateRequest, ModelFolderError, PromptTooLongError, UnknownAdapterError
from serve.engine_vllm import VllmEngine
from tests.tiny_model import write_adapter

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "Adapters are small matrices that are added to the weights of a frozen model."
PROMPT = "The lamp of the lighthouse"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tiny_llama: Path) -> AsyncIterator[VllmEngine]:
    config = EngineConfig(
        dtype="float32", max_model_len=256, max_num_seqs=8, kv_cache_bytes=32 << 20, max_loras=2, max_cpu_loras=3
    )
    engine = VllmEngine(config, model_folder=tiny_llama)
    await engine.start()
    yield engine
    await engine.stop()


def load_plainly(base: Path, adapter: AdapterRef | None) -> tuple[Any, Any]:
    """Tokenizer and model by transformers and PEFT alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter.folder).eval()
    return AutoTokenizer.from_pretrained(base), model


async def collect(engine: VllmEngine, **options: Any) -> str:
    request = GenerateRequest("r", **{"prompt": PROMPT, "max_tokens": 96, **options})
    return "".join([chunk.text async for chunk in engine.generate(request)])


@pytest.mark.parametrize("number", [None, 0, 1])
async def test_scores_equal_transformers_and_peft(
    engine: VllmEngine, tiny_llama: Path, tiny_adapters: list[AdapterRef], number: int | None
) -> None:
    adapter = None if number is None else tiny_adapters[number]
    tokenizer, model = load_plainly(tiny_llama, adapter)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    expected = log_probs.gather(1, ids[0, 1:, None]).flatten()
    torch.testing.assert_close(torch.tensor(await engine.score(TEXT, adapter)), expected, atol=1e-3, rtol=0)


async def test_a_rendered_chat_is_tokenised_and_answered_as_in_transformers(
    engine: VllmEngine, tiny_llama: Path
) -> None:
    messages = [{"role": "user", "content": "Which bird lays its eggs there?"}]
    tokenizer, model = load_plainly(tiny_llama, None)
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    new = model.generate(input_ids=encoded, max_new_tokens=24, do_sample=False)[0, encoded.shape[1] :]
    request = GenerateRequest("r", engine.render_chat(messages), max_tokens=24)
    chunks = [chunk async for chunk in engine.generate(request)]
    assert chunks[-1].num_prompt_tokens == encoded.shape[1]
    assert chunks[-1].num_output_tokens == len(new)
    whole = tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd")  # a stream waits for whole characters
    assert "".join(chunk.text for chunk in chunks) == whole


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_p": 1e-6}])
async def test_the_log_probability_of_an_answer_is_the_sum_over_its_tokens_before_temperature_and_top_p(
    engine: VllmEngine, tiny_llama: Path, sampling: dict[str, float]
) -> None:
    """So small a top-p leaves the likeliest token alone: after it every log-probability would be zero."""
    tokenizer, model = load_plainly(tiny_llama, None)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    whole = model.generate(input_ids=ids, max_new_tokens=24, do_sample=False)
    with torch.inference_mode():
        log_probs = model(input_ids=whole).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
    expected = log_probs.gather(1, whole[0, ids.shape[1] :, None]).sum().item()
    request = GenerateRequest("r", PROMPT, max_tokens=24, has_log_prob=True, **sampling)
    last = [chunk async for chunk in engine.generate(request)][-1]
    assert last.num_output_tokens == whole.shape[1] - ids.shape[1]
    assert last.log_prob == pytest.approx(expected, abs=5e-3)
    assert expected < -1
    plain = [chunk async for chunk in engine.generate(GenerateRequest("r", PROMPT, max_tokens=4))]
    assert plain[-1].log_prob is None


async def test_output_in_flight_is_unchanged_by_hot_loads_even_of_its_slot(
    engine: VllmEngine, tiny_adapters: list[AdapterRef]
) -> None:
    """Two slots: the second load takes the slot of the adapter that is answering."""
    undisturbed = await collect(engine, adapter=tiny_adapters[0])
    for adapter in tiny_adapters:
        await engine.unload_adapter(adapter)
    text, loads = "", [tiny_adapters[1], tiny_adapters[2]]
    async for chunk in engine.generate(GenerateRequest("r", PROMPT, max_tokens=96, adapter=tiny_adapters[0])):
        text += chunk.text
        if loads:
            await engine.load_adapter(loads.pop())
    assert not loads
    assert text == undisturbed
    assert engine.stats().adapters == ("ver-1", "ver-2", "ver-3")


async def test_unload_waits_for_the_request_that_uses_the_adapter(
    engine: VllmEngine, tiny_adapters: list[AdapterRef]
) -> None:
    adapter = tiny_adapters[0]
    undisturbed = await collect(engine, adapter=adapter)
    text, unload = "", None
    async for chunk in engine.generate(GenerateRequest("r", PROMPT, max_tokens=96, adapter=adapter)):
        text += chunk.text
        if unload is None:
            unload = asyncio.ensure_future(engine.unload_adapter(adapter))
        elif chunk.finish_reason is None:
            assert adapter.name in engine.stats().adapters
    assert unload is not None
    await unload
    assert text == undisturbed
    assert adapter.name not in engine.stats().adapters
    await engine.unload_adapter(adapter)


async def test_a_caller_who_closes_the_iterator_aborts_the_request(
    engine: VllmEngine, tiny_adapters: list[AdapterRef]
) -> None:
    async with aclosing(engine.generate(GenerateRequest("r", PROMPT, max_tokens=200))) as chunks:
        async for _ in chunks:
            break
    await engine.load_adapter(tiny_adapters[0])  # commands are in order: the abort is done when this is
    assert engine._side is not None
    assert not engine._side._running
    assert engine.stats().num_running == 0


async def test_a_prompt_that_is_too_long_says_by_how_many_tokens(engine: VllmEngine) -> None:
    num_tokens = engine.count_tokens(TEXT * 20)
    message = f"prompt has {num_tokens} tokens, {num_tokens + 1 - 256} too many: the context of 256 tokens"
    with pytest.raises(PromptTooLongError, match=message):
        await collect(engine, prompt=TEXT * 20)
    with pytest.raises(PromptTooLongError, match=message):
        await engine.score(TEXT * 20, None)


async def test_too_large_max_tokens_are_cut_to_the_context(engine: VllmEngine) -> None:
    request = GenerateRequest("r", PROMPT, max_tokens=100_000)
    last = [chunk async for chunk in engine.generate(request)][-1]
    assert last.num_prompt_tokens + last.num_output_tokens <= 256


async def test_adapters_that_cannot_be_loaded_are_refused_and_the_engine_lives(
    engine: VllmEngine, tiny_llama: Path, tiny_adapters: list[AdapterRef], tmp_path: Path
) -> None:
    before = await collect(engine)
    with pytest.raises(UnknownAdapterError, match=r"no adapter_config\.json in"):
        await collect(engine, adapter=AdapterRef("gone", 90, str(tmp_path / "gone")))
    wide = write_adapter(tmp_path / "wide", base=tiny_llama, seed=9, rank=16)
    with pytest.raises(UnknownAdapterError, match="rank 16, the engine takes at most 8"):
        await engine.load_adapter(AdapterRef("wide", 91, str(wide)))
    await engine.load_adapter(tiny_adapters[0])
    with pytest.raises(UnknownAdapterError, match="numbers are never used again"):
        await engine.load_adapter(AdapterRef("other", tiny_adapters[0].number, tiny_adapters[1].folder))
    engine.check_health()
    assert await collect(engine) == before


async def test_what_vllm_refuses_in_an_adapter_is_refused_by_name_and_nothing_stays(
    engine: VllmEngine, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "dora", base=tiny_llama, seed=9)
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"use_dora": false', '"use_dora": true'))
    with pytest.raises(UnknownAdapterError, match="DoRA"):
        await engine.load_adapter(AdapterRef("dora", 92, str(folder)))
    assert "dora" not in engine.stats().adapters
    engine.check_health()


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"top_p": 0.0}, {"max_tokens": 0}], ids=lambda options: next(iter(options))
)
async def test_a_parameter_out_of_range_is_a_value_error_that_names_it(
    engine: VllmEngine, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        await collect(engine, **options)
    engine.check_health()


async def test_a_seed_makes_sampling_repeatable_and_a_stop_string_ends_the_answer(engine: VllmEngine) -> None:
    text = await collect(engine, temperature=1.0, seed=7, max_tokens=24)
    assert await collect(engine, temperature=1.0, seed=7, max_tokens=24) == text
    stop = text[3:5]
    assert await collect(engine, temperature=1.0, seed=7, max_tokens=24, stop=(stop,)) == text[: text.find(stop)]


async def test_a_folder_without_weights_is_refused_by_name(tiny_llama: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny_llama / name).read_bytes())
    with pytest.raises(ModelFolderError, match=r"neither model\.safetensors nor"):
        await VllmEngine(EngineConfig(), model_folder=tmp_path).start()
