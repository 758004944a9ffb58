"""The echo engine keeps the protocol of an engine, so that tests around it say something about the real ones."""

from pathlib import Path

import pytest

from serve.config import EngineConfig
from serve.engine import (
    AdapterRef,
    Engine,
    EngineDeadError,
    GenerateChunk,
    GenerateRequest,
    PromptTooLongError,
    UnknownAdapterError,
    build_engine,
)


@pytest.fixture
async def engine(tmp_path: Path) -> Engine:
    echo = build_engine(EngineConfig(kind="echo", max_model_len=32), model_folder=tmp_path)
    await echo.start()
    return echo


@pytest.fixture
def adapter(tmp_path: Path) -> AdapterRef:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return AdapterRef("ver-a", 1, str(folder))


async def collect(engine: Engine, prompt: str, **options: object) -> list[GenerateChunk]:
    options = {"max_tokens": 16, **options}
    return [chunk async for chunk in engine.generate(GenerateRequest("r", prompt, **options))]  # type: ignore[arg-type]


def text_of(chunks: list[GenerateChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


async def test_the_last_user_message_comes_back_word_by_word(engine: Engine) -> None:
    prompt = engine.render_chat(
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "hello small world"},
        ]
    )
    chunks = await collect(engine, prompt)
    assert [chunk.text for chunk in chunks] == ["hello ", "small ", "world", ""]
    assert chunks[-1].finish_reason == "stop"
    assert (chunks[-1].num_prompt_tokens, chunks[-1].num_output_tokens) == (engine.count_tokens(prompt), 3)


async def test_max_tokens_cuts_with_reason_length(engine: Engine) -> None:
    chunks = await collect(engine, "one two three", max_tokens=2)
    assert (text_of(chunks), chunks[-1].finish_reason) == ("one two ", "length")


async def test_a_stop_string_ends_the_answer_before_it_even_across_pieces(engine: Engine) -> None:
    chunks = await collect(engine, "one two three four", stop=("o th",))
    assert (text_of(chunks), chunks[-1].finish_reason) == ("one tw", "stop")


async def test_an_adapter_shows_by_name_and_is_listed_until_it_is_unloaded(engine: Engine, adapter: AdapterRef) -> None:
    assert text_of(await collect(engine, "hello", adapter=adapter)) == "[ver-a] hello"
    assert engine.stats().adapters == ("ver-a",)
    await engine.unload_adapter(adapter)
    await engine.unload_adapter(adapter)
    assert engine.stats().adapters == ()


async def test_a_missing_adapter_folder_is_refused_and_the_engine_lives(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(UnknownAdapterError, match=r"adapter_config\.json"):
        await collect(engine, "hello", adapter=AdapterRef("gone", 2, str(tmp_path / "gone")))
    engine.check_health()


async def test_a_number_is_never_given_to_another_adapter(engine: Engine, adapter: AdapterRef) -> None:
    await engine.load_adapter(adapter)
    with pytest.raises(UnknownAdapterError, match="take a new number"):
        await engine.load_adapter(AdapterRef("ver-b", adapter.number, adapter.folder))


async def test_a_prompt_that_is_too_long_says_by_how_much(engine: Engine) -> None:
    with pytest.raises(PromptTooLongError, match="prompt has 40 tokens, 9 too many: the context of 32"):
        await collect(engine, "word " * 40)


async def test_after_stop_nothing_answers(engine: Engine) -> None:
    await engine.stop()
    await engine.stop()
    with pytest.raises(EngineDeadError):
        engine.check_health()
    with pytest.raises(EngineDeadError):
        await collect(engine, "hello")
