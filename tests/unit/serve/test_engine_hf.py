"""The transformers engine on a random two-layer Llama: it streams what `generate` gives, with and without adapters."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import torch

from serve.config import EngineConfig
from serve.engine import (
    AdapterRef,
    EngineDeadError,
    GenerateChunk,
    GenerateRequest,
    ModelFolderError,
    PromptTooLongError,
    UnknownAdapterError,
)
from serve.engine_hf import HuggingFaceEngine
from tests.tiny_model import write_adapter, write_tiny_llama

PROMPT = "The river through it"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterRef]:
    folder = tmp_path_factory.mktemp("adapters")
    return [
        AdapterRef(f"ver-{n}", n, str(write_adapter(folder / f"{n}", base=base, seed=n, rank=16 if n == 3 else 8)))
        for n in (1, 2, 3)
    ]


@pytest.fixture
async def engine(base: Path) -> AsyncIterator[HuggingFaceEngine]:
    config = EngineConfig(kind="hf", dtype="float32", max_model_len=64, max_lora_rank=8)
    engine = HuggingFaceEngine(config, model_folder=base)
    await engine.start()
    yield engine
    await engine.stop()


async def collect(engine: HuggingFaceEngine, **options: object) -> tuple[str, GenerateChunk]:
    options = {"prompt": PROMPT, "max_tokens": 8, **options}
    chunks = [chunk async for chunk in engine.generate(GenerateRequest("r", **options))]  # type: ignore[arg-type]
    return "".join(chunk.text for chunk in chunks), chunks[-1]


def generate_plainly(base: Path, adapter: AdapterRef | None = None) -> str:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter.folder)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    new = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True))


async def test_the_stream_is_what_generate_gives(engine: HuggingFaceEngine, base: Path) -> None:
    text, last = await collect(engine)
    assert text == generate_plainly(base)
    assert last.finish_reason in {"stop", "length"}
    assert last.num_prompt_tokens == engine.count_tokens(PROMPT)
    assert 0 < last.num_output_tokens <= 8


async def test_each_adapter_answers_as_in_peft_and_the_base_stays_as_it_was(
    engine: HuggingFaceEngine, base: Path, adapters: list[AdapterRef]
) -> None:
    before, _ = await collect(engine)
    first, _ = await collect(engine, adapter=adapters[0])
    second, _ = await collect(engine, adapter=adapters[1])
    assert (first, second) == (generate_plainly(base, adapters[0]), generate_plainly(base, adapters[1]))
    assert len({before, first, second}) == 3
    assert (await collect(engine))[0] == before
    await engine.unload_adapter(adapters[0])
    assert engine.stats().adapters == ("ver-2",)
    assert (await collect(engine, adapter=adapters[1]))[0] == second
    await engine.unload_adapter(adapters[1])
    await engine.unload_adapter(adapters[1])
    assert (await collect(engine))[0] == before
    assert (await collect(engine, adapter=adapters[0]))[0] == first


async def test_scores_are_log_probabilities_of_the_tokens_after_the_first(engine: HuggingFaceEngine) -> None:
    scores = await engine.score(PROMPT, None)
    assert len(scores) == engine.count_tokens(PROMPT) - 1
    assert all(score < 0 for score in scores)
    assert await engine.score("", None) == []


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_p": 0.9}])
async def test_the_log_probability_of_an_answer_is_the_sum_over_its_tokens_before_temperature_and_top_p(
    engine: HuggingFaceEngine, base: Path, sampling: dict[str, float]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    torch.manual_seed(3)
    options = {"do_sample": True, "top_k": 0, **sampling} if sampling else {"do_sample": False}
    whole = model.generate(input_ids=ids, max_new_tokens=8, **options)
    with torch.inference_mode():
        log_probs = model(input_ids=whole).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
    expected = log_probs.gather(1, whole[0, ids.shape[1] :, None]).sum().item()

    text, last = await collect(engine, has_log_prob=True, seed=3, **sampling)
    assert text == tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
    assert last.num_output_tokens == whole.shape[1] - ids.shape[1]
    assert last.log_prob == pytest.approx(expected, abs=1e-3)
    assert expected < -1
    assert (await collect(engine, seed=3, **sampling))[1].log_prob is None


async def test_a_stop_string_ends_the_answer_before_it(engine: HuggingFaceEngine) -> None:
    text, _ = await collect(engine)
    stop = text[2:4]
    cut, last = await collect(engine, stop=(stop,))
    assert (cut, last.finish_reason) == (text[: text.find(stop)], "stop")


async def test_a_seed_makes_sampling_repeatable(engine: HuggingFaceEngine) -> None:
    first, _ = await collect(engine, temperature=1.0, seed=1)
    assert (await collect(engine, temperature=1.0, seed=1))[0] == first


async def test_a_caller_who_leaves_frees_the_engine(engine: HuggingFaceEngine) -> None:
    request = GenerateRequest("r", PROMPT, max_tokens=50)
    async with aclosing(engine.generate(request)) as chunks:
        async for _ in chunks:
            break
    assert engine.stats().num_running == 0
    await collect(engine)


async def test_max_tokens_is_cut_to_the_context_and_a_longer_prompt_is_refused(engine: HuggingFaceEngine) -> None:
    num_tokens = engine.count_tokens(PROMPT)
    _, last = await collect(engine, max_tokens=1000)
    assert last.num_output_tokens <= 64 - num_tokens
    with pytest.raises(PromptTooLongError, match=r"tokens, \d+ too many: the context of 64 tokens"):
        await collect(engine, prompt=PROMPT * 20)


async def test_adapters_that_cannot_be_served_are_refused_by_reason(
    engine: HuggingFaceEngine, adapters: list[AdapterRef], tmp_path: Path
) -> None:
    with pytest.raises(UnknownAdapterError, match=r"no adapter_config\.json"):
        await engine.load_adapter(AdapterRef("gone", 9, str(tmp_path)))
    with pytest.raises(UnknownAdapterError, match="rank 16, the engine takes at most 8"):
        await engine.load_adapter(adapters[2])
    await engine.load_adapter(adapters[0])
    with pytest.raises(UnknownAdapterError, match="take a new number"):
        await engine.load_adapter(AdapterRef("other", 1, adapters[1].folder))
    engine.check_health()


async def test_an_adapter_of_a_wider_base_model_is_refused(
    base: Path, tmp_path: Path, engine: HuggingFaceEngine
) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_adapter(tmp_path / "adapter", base=base, seed=1)
    weights = load_file(folder / "adapter_model.safetensors")
    weights = {name: torch.cat([w, w], dim=1) if "lora_A" in name else w for name, w in weights.items()}
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(UnknownAdapterError, match="another base model"):
        await engine.load_adapter(AdapterRef("wide", 7, str(folder)))


async def test_a_folder_without_weights_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((base / "config.json").read_text())
    (tmp_path / "tokenizer.json").write_text((base / "tokenizer.json").read_text())
    engine = HuggingFaceEngine(EngineConfig(kind="hf"), model_folder=tmp_path)
    with pytest.raises(ModelFolderError, match=r"model\.safetensors"):
        await engine.start()


async def test_special_tokens_are_there_once_as_in_transformers(engine: HuggingFaceEngine, base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    messages = [{"role": "user", "content": "Which bird?"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert engine.count_tokens(engine.render_chat(messages)) == len(expected)
    assert engine.count_tokens("Which bird?") == len(tokenizer("Which bird?")["input_ids"])


async def test_after_stop_nothing_answers(base: Path) -> None:
    engine = HuggingFaceEngine(EngineConfig(kind="hf", dtype="float32"), model_folder=base)
    with pytest.raises(EngineDeadError):
        engine.check_health()
    await engine.start()
    await engine.stop()
    await engine.stop()
    with pytest.raises(EngineDeadError):
        await collect(engine)
