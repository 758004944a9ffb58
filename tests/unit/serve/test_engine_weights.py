"""Versions of full weights beside the original: each answers as its own folder, within a bound; others answer meanwhile."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from serve.config import EngineConfig
from serve.engine import (
    AdapterRef,
    Engine,
    EngineDeadError,
    GenerateChunk,
    GenerateRequest,
    ModelFolderError,
    PromptTooLongError,
    UnknownAdapterError,
    build_engine,
)
from serve.engine_process import ProcessEngine
from serve.engine_weights import WeightsEngine
from tests.tiny_model import write_adapter, write_tiny_llama, write_tiny_moe
from train.adapt.base import load_base_model, pick_device
from train.adapt.reference import MODEL_FOLDER
from train.adapt.weights import load_version, save_weights

PROMPT = "The river through it"
HALF = "\ufffd"
"""Of a character that an answer is cut off within: transformers shows it."""
CONFIG = EngineConfig(kind="hf", dtype="float32", max_model_len=64, max_weights=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def versions(base: Path) -> list[AdapterRef]:
    return [save_version(base, number) for number in (1, 2, 3)]


@pytest.fixture
async def engine(base: Path) -> AsyncIterator[WeightsEngine]:
    engine = build_engine(CONFIG, model_folder=base)
    assert isinstance(engine, WeightsEngine)
    await engine.start()
    yield engine
    await engine.stop()


def save_version(base: Path, number: int) -> AdapterRef:
    """A version of the base with other numbers."""
    loaded = load_base_model(base, dtype="float32", device=pick_device("cpu"))
    model = load_version(None, base=loaded)
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.2)
    folder = base.with_name(f"version {number}")
    save_weights(model, folder=folder, base_folder=base)
    return AdapterRef(f"v-{number}", number, str(folder), kind="weights")


async def answer(engine: WeightsEngine, adapter: AdapterRef | None = None, **options: object) -> str:
    request = GenerateRequest("r", adapter=adapter, **{"prompt": PROMPT, "max_tokens": 8, **options})  # type: ignore[arg-type]
    return "".join([chunk.text async for chunk in engine.generate(request)])


async def all_chunks(engine: Engine | ProcessEngine, request: GenerateRequest) -> list[GenerateChunk]:
    return [chunk async for chunk in engine.generate(request)]


def answer_plainly(folder: Path) -> tuple[str, list[float]]:
    """What transformers makes of a model folder: the greedy answer, and the prompt's log-probabilities."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    new = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    with torch.no_grad():
        log_probs = model(ids).logits[0, :-1].log_softmax(-1)
    return (
        str(tokenizer.decode(new, skip_special_tokens=True)),
        log_probs.gather(1, ids[0, 1:, None]).flatten().tolist(),
    )


async def test_original_candidate_and_parent_answer_exactly_as_their_own_folders(
    engine: WeightsEngine, base: Path, versions: list[AdapterRef]
) -> None:
    asked = [None, versions[0], versions[1]]
    folders = [base, *(Path(one.folder) / MODEL_FOLDER for one in versions[:2])]
    answers = await asyncio.gather(*(answer(engine, one) for one in asked))
    plain = [answer_plainly(folder) for folder in folders]
    assert [text.rstrip(HALF) for text in answers] == [text.rstrip(HALF) for text, _ in plain]
    assert len(set(answers)) == 3
    for one, (_, scores) in zip(asked, plain, strict=True):
        assert await engine.score(PROMPT, one) == pytest.approx(scores, abs=1e-4)
    assert engine.stats().adapters == ("v-1", "v-2")
    assert engine.stats().num_requests == 3


async def test_for_one_version_more_the_one_used_longest_ago_goes_and_comes_back_when_asked(
    engine: WeightsEngine, versions: list[AdapterRef]
) -> None:
    first = await answer(engine, versions[0])
    await answer(engine, versions[1])
    await answer(engine, versions[0])
    await engine.load_adapter(versions[2])
    assert engine.stats().adapters == ("v-1", "v-3")
    await answer(engine, versions[1])
    assert engine.stats().adapters == ("v-3", "v-2")
    assert await answer(engine, versions[0]) == first


async def test_a_version_that_answers_somebody_is_neither_dropped_nor_unloaded(
    engine: WeightsEngine, versions: list[AdapterRef]
) -> None:
    streams = [engine.generate(GenerateRequest("r", PROMPT, max_tokens=40, adapter=one)) for one in versions[:2]]
    for stream in streams:
        await anext(stream)
    third = asyncio.create_task(engine.load_adapter(versions[2]))
    unload = asyncio.create_task(engine.unload_adapter(versions[0]))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not third.done()
    assert not unload.done()
    assert await answer(engine) != ""  # the original answers meanwhile
    assert [chunk async for chunk in streams[0]][-1].finish_reason in {"stop", "length"}
    await asyncio.gather(third, unload)
    assert engine.stats().adapters == ("v-2", "v-3")
    await streams[1].aclose()


async def test_unloading_is_idempotent_and_frees_the_room(engine: WeightsEngine, versions: list[AdapterRef]) -> None:
    await engine.load_adapter(versions[0])
    await engine.load_adapter(versions[0])
    await engine.unload_adapter(versions[0])
    await engine.unload_adapter(versions[0])
    assert engine.stats().adapters == ()


async def test_adapters_are_served_beside_versions_of_weights(
    engine: WeightsEngine, base: Path, versions: list[AdapterRef], tmp_path: Path
) -> None:
    adapter = AdapterRef("ver-9", 9, str(write_adapter(tmp_path / "adapter", base=base, seed=9)))
    texts = {await answer(engine, one) for one in (None, adapter, versions[0])}
    assert len(texts) == 3
    assert engine.stats().adapters == ("ver-9", "v-1")
    await engine.unload_adapter(adapter)
    assert engine.stats().adapters == ("v-1",)


async def test_a_number_never_gets_another_meaning(engine: WeightsEngine, versions: list[AdapterRef]) -> None:
    await engine.load_adapter(versions[0])
    await engine.unload_adapter(versions[0])
    with pytest.raises(UnknownAdapterError, match="version number 1 belongs to 'v-1'"):
        await engine.load_adapter(AdapterRef("v-9", 1, versions[1].folder, kind="weights"))


async def test_folders_that_hold_no_weights_of_this_base_are_refused_and_the_engine_goes_on(
    engine: WeightsEngine, base: Path, versions: list[AdapterRef], tmp_path: Path
) -> None:
    with pytest.raises(UnknownAdapterError, match=r"no model/config\.json"):
        await engine.load_adapter(AdapterRef("gone", 21, str(tmp_path), kind="weights"))
    write_tiny_moe(tmp_path / "moe" / MODEL_FOLDER, tokenizer_from=base)
    with pytest.raises(UnknownAdapterError, match=rf"MixtralForCausalLM.*{base} has \['LlamaForCausalLM'\]"):
        await engine.load_adapter(AdapterRef("moe", 22, str(tmp_path / "moe"), kind="weights"))
    other = write_tiny_llama(tmp_path / "other" / MODEL_FOLDER)
    (other / "tokenizer.json").write_text((base / "tokenizer.json").read_text().replace("Seine", "Marne") + " ")
    with pytest.raises(UnknownAdapterError, match=r"other/model/tokenizer\.json is not the tokenizer file"):
        await engine.load_adapter(AdapterRef("other", 23, str(tmp_path / "other"), kind="weights"))
    assert await answer(engine, versions[0])
    engine.check_health()


async def test_an_engine_for_adapters_alone_says_what_weights_need(base: Path, versions: list[AdapterRef]) -> None:
    engine = build_engine(CONFIG.model_copy(update={"max_weights": 0}), model_folder=base)
    await engine.start()
    with pytest.raises(UnknownAdapterError, match=r"set engine\.max_weights to 2"):
        await engine.load_adapter(versions[0])
    await engine.stop()


def test_the_asynchronous_kind_has_no_versions_of_weights() -> None:
    with pytest.raises(ValidationError, match="'vllm', 'hf' and 'echo'"):
        EngineConfig(kind="vllm-async", max_weights=1)


async def test_the_echo_engine_names_the_version_that_answers(versions: list[AdapterRef], tmp_path: Path) -> None:
    engine = WeightsEngine(EngineConfig(kind="echo", max_weights=1), model_folder=tmp_path)
    await engine.start()
    assert await answer(engine) == PROMPT
    assert await answer(engine, versions[1]) == f"[v-2] {PROMPT}"
    assert await answer(engine, versions[0]) == f"[v-1] {PROMPT}"
    assert engine.stats().adapters == ("v-1",)
    await engine.stop()
    with pytest.raises(EngineDeadError):
        await answer(engine, versions[0])


# An engine in a process of its own.


@pytest.mark.slow
async def test_a_child_process_answers_as_the_same_engine_here_and_ends_with_its_stop(tmp_path: Path) -> None:
    child = ProcessEngine(EngineConfig(kind="echo", max_model_len=64), model_folder=tmp_path)
    here = build_engine(EngineConfig(kind="echo", max_model_len=64), model_folder=tmp_path)
    await here.start()
    with pytest.raises(EngineDeadError, match="not started"):
        child.check_health()
    await child.start()
    requests = [GenerateRequest(f"r{number}", f"{PROMPT} {number}", max_tokens=8) for number in range(3)]
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(all_chunks(child, request) for request in requests))
        assert answers == [await all_chunks(here, request) for request in requests]
        assert await child.score(PROMPT) == await here.score(PROMPT, None)
        with pytest.raises(PromptTooLongError, match="too many"):
            await all_chunks(child, GenerateRequest("r", PROMPT * 30, max_tokens=1))
        left = child.generate(GenerateRequest("r", PROMPT, max_tokens=50))
        await anext(left)
        await left.aclose()
        stats = child.stats()
        assert (stats.num_running, stats.num_requests) == (0, 5)
        assert stats.memory_bytes > 0
        process = child._process
        assert process is not None
        await child.stop()
        await child.stop()
    assert not process.is_alive()
    with pytest.raises(EngineDeadError):
        child.check_health()


async def until_it_fails(child: ProcessEngine) -> None:
    while True:
        await child.score("one two")


async def until_its_end(stream: AsyncIterator[GenerateChunk]) -> None:
    async for _ in stream:
        pass


@pytest.mark.slow
async def test_a_child_that_is_killed_is_told_to_every_waiter(tmp_path: Path) -> None:
    child = ProcessEngine(EngineConfig(kind="echo"), model_folder=tmp_path)
    await child.start()
    assert child._process is not None
    assert child._process.pid is not None
    words = " ".join(["word"] * 1000)
    stream = child.generate(GenerateRequest("r", words, max_tokens=1000))
    await anext(stream)
    os.kill(child._process.pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        with pytest.raises(EngineDeadError, match="process has ended"):
            await until_it_fails(child)
        with pytest.raises(EngineDeadError):
            await until_its_end(stream)
    with pytest.raises(EngineDeadError):
        child.check_health()
    await child.stop()


@pytest.mark.slow
async def test_a_folder_that_the_child_cannot_load_is_the_starts_error(tmp_path: Path) -> None:
    child = ProcessEngine(CONFIG.model_copy(update={"max_weights": 0}), model_folder=tmp_path)
    with pytest.raises(ModelFolderError, match="config"):
        await child.start()
    with pytest.raises(EngineDeadError):
        child.check_health()
