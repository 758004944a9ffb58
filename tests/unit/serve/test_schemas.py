"""Requests: what is accepted, what is refused and how it is said."""

import pytest
from pydantic import ValidationError

from serve.schemas import KnowledgeRequest
from serve.schemas_openai import ChatRequest, CompletionRequest, EmbeddingRequest

HELLO = [{"role": "user", "content": "Hello"}]


def test_content_parts_of_text_are_joined_and_developer_speaks_as_system() -> None:
    body = ChatRequest.model_validate(
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
            ]
        }
    )
    assert body.plain_messages() == [{"role": "system", "content": "Be brief."}, *HELLO]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("retreival", True),
        ("temperature", 3),
        ("temperature", float("nan")),
        ("max_tokens", 0),
        ("n", 2),
        ("tools", []),
        ("logprobs", True),
        ("presence_penalty", 0.5),
        ("response_format", {"type": "json_object"}),
        ("stop", [""]),
        ("stop", list("abcdefghi")),
        ("session", ""),
    ],
)
def test_what_would_change_the_answer_but_is_not_offered_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({"messages": HELLO, field: value})


@pytest.mark.parametrize(
    "extra",
    [
        {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "user": "me"},
        {"temperature": None, "max_tokens": None, "stop": None, "stream": None, "seed": 7},
        {"response_format": {"type": "text"}, "metadata": {"a": "b"}, "store": False},
    ],
)
def test_openai_fields_that_change_nothing_are_accepted(extra: dict[str, object]) -> None:
    ChatRequest.model_validate({"messages": HELLO, **extra})


@pytest.mark.parametrize("content", [[{"type": "image_url", "image_url": {"url": "x"}}], 5, [5]])
def test_content_that_is_not_text_is_refused(content: object) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({"messages": [{"role": "user", "content": content}]})


def test_lists_are_bounded() -> None:
    with pytest.raises(ValidationError):
        KnowledgeRequest.model_validate({"documents": []})
    with pytest.raises(ValidationError):
        EmbeddingRequest.model_validate({"input": []})
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate({"prompt": ["a"] * 17})
    assert CompletionRequest.model_validate({"prompt": "a", "stop": "b"}).stops() == ("b",)


def test_every_field_of_a_request_has_its_meaning_in_the_schema() -> None:
    for model in (ChatRequest, CompletionRequest, EmbeddingRequest, KnowledgeRequest):
        fields = model.model_json_schema()["properties"]
        undocumented = [name for name, field in fields.items() if "description" not in field]
        assert undocumented == []
