"""A trained vocabulary: the same for the same texts, complete, split as configured, within its limits."""

import string
from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from train.data.tokenizer import TokenizerTrainConfig, train_tokenizer
from train.data.tokenizer_sample import hard_texts

CONFIG = TokenizerTrainConfig(vocab_size=1500)
TEXTS = list(topics.values())[:40]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    """One small tokenizer per pattern."""
    return {
        pattern: train_tokenizer(TEXTS, config=CONFIG.model_copy(update={"pattern": pattern}))
        for pattern in ("gpt2", "llama3", "qwen2")
    }


def test_the_same_texts_give_the_same_bytes(tokenizers: dict[str, Any]) -> None:
    assert tokenizers["qwen2"].to_str(pretty=True) == train_tokenizer(TEXTS, config=CONFIG).to_str(pretty=True)


def test_the_vocabulary_has_the_special_tokens_first_and_every_byte(tokenizers: dict[str, Any]) -> None:
    for tokenizer in tokenizers.values():
        vocabulary = tokenizer.get_vocab()
        assert sorted(vocabulary.values()) == list(range(CONFIG.vocab_size))
        assert [vocabulary[token] for token in CONFIG.special_tokens] == [0, 1, 2, 3]
        assert sum(len(token) == 1 for token in vocabulary) == 256


@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "qwen2"])
@settings(max_examples=20)
@given(text=st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(hard_texts())))
def test_decoding_gives_the_text_back(tokenizers: dict[str, Any], pattern: str, text: str) -> None:
    tokenizer = tokenizers[pattern]
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("pattern", "numbers"), [("gpt2", ["12345"]), ("llama3", ["123", "45"]), ("qwen2", list(string.digits[1:6]))]
)
def test_numbers_are_split_as_the_pattern_says(tokenizers: dict[str, Any], pattern: str, numbers: list[str]) -> None:
    assert [text for text, _ in tokenizers[pattern].pre_tokenizer.pre_tokenize_str("12345")] == numbers


def test_no_token_is_longer_than_the_limit() -> None:
    texts = ["=" * length for length in range(1, 200)] * 3 + TEXTS[:30]
    longest = {}
    for limit in (8, 64):
        tokenizer = train_tokenizer(texts, config=TokenizerTrainConfig(vocab_size=400, max_token_bytes=limit))
        longest[limit] = max(map(len, tokenizer.get_vocab().keys() - CONFIG.special_tokens))
    assert longest[8] <= 8 < longest[64] <= 64


def test_text_beyond_max_bytes_is_not_read() -> None:
    def texts() -> Iterator[str]:
        yield from TEXTS
        pytest.fail("a text was asked for that the limit leaves out")

    num_bytes = sum(len(text.encode()) for text in TEXTS)
    train_tokenizer(texts(), config=TokenizerTrainConfig(vocab_size=600, max_bytes=num_bytes))


def test_too_little_text_for_the_vocabulary_is_an_error_that_says_how_far_it_goes() -> None:
    with pytest.raises(ValueError, match=r"vocab_size = 1500, but .* for 26\d only: give more text"):
        train_tokenizer(["a a a"], config=CONFIG)


@pytest.mark.parametrize("tokens", [("<a>",), ("<a>", "<a>"), ("<a>", "")])
def test_special_tokens_must_be_two_and_different(tokens: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="special_tokens"):
        TokenizerTrainConfig(special_tokens=tokens)
