"""The official OpenAI client against the API."""

from collections.abc import AsyncIterator

import httpx
import openai
import pytest

HELLO = [{"role": "user", "content": "hello there my friend"}]


@pytest.fixture
async def client(api: httpx.AsyncClient) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url="http://test/v1", api_key="unused", http_client=api, max_retries=0
    ) as official:
        yield official


async def test_chat(client: openai.AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(model="v1", messages=HELLO, temperature=0, max_tokens=50)
    assert reply.choices[0].message.content == "[ver-new] hello there my friend"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 5
    assert reply.model_extra is not None
    assert reply.model_extra["version"] == "ver-new"


@pytest.mark.parametrize("include_usage", [False, True])
async def test_chat_stream(client: openai.AsyncOpenAI, include_usage: bool) -> None:
    stream = await client.chat.completions.create(
        model="v2", messages=HELLO, stream=True, stream_options={"include_usage": include_usage}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == "hello there my friend"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert bool(chunks[-1].choices) is not include_usage
    assert chunks[-1].model_extra is not None
    assert {"version", "sources", "timings"} <= set(chunks[-1].model_extra)


async def test_our_extensions_pass_through_extra_body(client: openai.AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(
        model="v2", messages=HELLO, extra_body={"retrieval": False, "session": "s"}
    )
    assert reply.choices[0].message.content == "hello there my friend"


async def test_completions(client: openai.AsyncOpenAI) -> None:
    reply = await client.completions.create(model="v2", prompt="one two three", max_tokens=2)
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("one two ", "length")
    stream = await client.completions.create(model="v2", prompt="one two three", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "one two three"


async def test_embeddings_in_both_encodings(client: openai.AsyncOpenAI) -> None:
    default = await client.embeddings.create(model="all-MiniLM-L6-v2", input=["a gate", "a tower"])
    floats = await client.embeddings.create(model="all-MiniLM-L6-v2", input="a gate", encoding_format="float")
    assert len(default.data) == 2
    assert default.data[0].embedding == pytest.approx(floats.data[0].embedding, abs=1e-6)
    with pytest.raises(openai.NotFoundError, match="all-MiniLM-L6-v2"):
        await client.embeddings.create(model="other", input="a")


async def test_models(client: openai.AsyncOpenAI) -> None:
    names = [model.id async for model in client.models.list()]
    assert {"v1", "v2", "base", "ver-new", "all-MiniLM-L6-v2"} <= set(names)
    assert "v3" not in names
    assert (await client.models.retrieve("v1")).model_extra == {"version": "ver-new"}


async def test_errors_become_the_clients_typed_errors(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="temperature = 9"):
        await client.chat.completions.create(model="v2", messages=HELLO, temperature=9)
