"""Streams: fewer pieces, no split secrets, no leaked sources."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine import GenerateChunk
from serve.stream import StreamScreen, coalesce, collect, screen_chunks

SECRET = re.compile(r"sk-[A-Za-z0-9]{20,}|\b\d{4}( ?\d{4}){3}\b|eyJ[\w-]+\.[\w-]+\.[\w-]+")
KEY = "sk-" + "a1B2" * 12
CARD = "4111 1111 1111 1111"
TOKEN = "eyJ" + "x" * 90 + "." + "y" * 80 + "." + "z" * 40


def mask(text: str) -> str:
    return SECRET.sub("[secret]", text)


async def source(*texts: str) -> AsyncIterator[GenerateChunk]:
    for text in texts:
        yield GenerateChunk(text)
    yield GenerateChunk("", finish_reason="stop", num_prompt_tokens=3, num_output_tokens=len(texts))


class Clock:
    """Each reading is a step later than the one before."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


async def test_pieces_are_joined_and_no_text_is_lost() -> None:
    words = [f"w{n} " for n in range(200)]
    pieces = [piece async for piece in coalesce(source(*words), interval_s=0.3, clock=Clock(0.01))]
    assert "".join(piece.text for piece in pieces) == "".join(words)
    assert len(pieces) < 40
    assert pieces[0].text == words[0]
    assert (pieces[-1].finish_reason, pieces[-1].num_output_tokens) == ("stop", 200)
    assert all(piece.finish_reason is None for piece in pieces[:-1])


async def test_text_goes_out_while_the_engine_pauses() -> None:
    resume = asyncio.Event()

    async def pausing() -> AsyncIterator[GenerateChunk]:
        yield GenerateChunk("a")
        yield GenerateChunk("b")
        await resume.wait()
        yield GenerateChunk("c", finish_reason="stop")

    pieces = coalesce(pausing(), interval_s=0.01)
    assert [(await anext(pieces)).text, (await anext(pieces)).text] == ["a", "b"]
    resume.set()
    assert [piece.text async for piece in pieces] == ["c"]


async def test_closing_the_joined_stream_closes_its_source_while_it_waits() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[GenerateChunk]:
        try:
            yield GenerateChunk("a")
            await asyncio.Event().wait()
        finally:
            closed.set()

    pieces = coalesce(endless(), interval_s=0.01)
    await anext(pieces)
    reading = asyncio.ensure_future(anext(pieces))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait({reading})
    assert closed.is_set()


async def test_a_stream_past_its_deadline_ends_with_a_timeout() -> None:
    async def stuck() -> AsyncIterator[GenerateChunk]:
        await asyncio.Event().wait()
        yield GenerateChunk("never")

    with pytest.raises(TimeoutError):
        await anext(coalesce(stuck(), interval_s=0.3, deadline_s=5.0, clock=Clock(4.99)))


async def test_an_error_of_the_source_comes_through() -> None:
    async def failing() -> AsyncIterator[GenerateChunk]:
        yield GenerateChunk("a")
        raise ValueError("engine said no")

    pieces = coalesce(failing(), interval_s=0.01)
    await anext(pieces)
    with pytest.raises(ValueError, match="engine said no"):
        await anext(pieces)


async def test_collecting_gives_the_whole_answer_with_its_counts() -> None:
    answer = await collect(source("a ", "b"))
    assert (answer.text, answer.finish_reason, answer.num_prompt_tokens, answer.num_output_tokens) == (
        "a b",
        "stop",
        3,
        2,
    )


def push_all(text: str, cuts: list[int]) -> tuple[str, list[str]]:
    screen, edges = StreamScreen(mask), sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [screen.push(text[a:b]) for a, b in itertools.pairwise(edges)]
    return "".join([*pieces, screen.finish()]), pieces


@settings(max_examples=150)
@given(
    words=st.lists(
        st.sampled_from([KEY, CARD, TOKEN, "the", "key is", "12", "4111", ".", "\n", "日本語の文"]), max_size=40
    ),
    cuts=st.lists(st.integers(0, 5000), max_size=60),
)
def test_masking_in_pieces_equals_masking_the_whole_wherever_the_pieces_end(words: list[str], cuts: list[int]) -> None:
    text = " ".join(words)
    screened, _ = push_all(text, cuts)
    assert screened == mask(text)


def test_ordinary_text_flows_with_a_short_holdback() -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 20
    _, pieces = push_all(text, list(range(0, len(text), 30)))
    assert len("".join(pieces)) > len(text) - 100


@pytest.mark.parametrize("secret", [KEY, CARD, TOKEN])
async def test_a_secret_streamed_character_by_character_never_shows(secret: str) -> None:
    text = f"Here it is: {secret} and that was all that there is to say about this matter, really nothing more."
    pieces = [piece async for piece in screen_chunks(source(*text), mask=mask)]
    assert "".join(piece.text for piece in pieces) == mask(text)
    assert pieces[-1].finish_reason == "stop"
