"""The Encoder: every backend gives the reference's ids, or is not taken."""

import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.schema import DOCUMENT_SCHEMA
from train.data.tokenizer import (
    BackendMismatch,
    Encoder,
    TokenizerTrainConfig,
    cut_points,
    save_tokenizer,
    train_tokenizer,
)
from train.data.tokenizer_backends import BACKENDS, GigatokenBackend, Ids, ReferenceBackend, has_newer_letters
from train.data.tokenizer_file import CannotExpress, TokenizerFile
from train.data.tokenizer_sample import hard_texts

CONFIG = TokenizerTrainConfig(vocab_size=1500)
FAST = ["gigatoken", "tiktoken"]
SEGMENT_BYTES = 4096
BAD_MODEL = '{"model": {"type": "BPE", "vocab": {}, "merges": 3}, "added_tokens": []}'
DIGITS = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}
"""The published SmolLM2's."""

texts_of_all_kinds = st.lists(
    st.one_of(
        st.sampled_from(hard_texts()),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        st.text("ab1 \n\t'.,é中。", max_size=24),
    ),
    max_size=12,
).map("".join)


def _column(texts: list[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(texts, pa.large_string())])


def _train(config: TokenizerTrainConfig) -> Any:
    return train_tokenizer(list(topics.values())[:40], config=config)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small tokenizer per way to split."""
    found = {}
    for pattern in ("gpt2", "llama3", "qwen2"):
        config = CONFIG.model_copy(update={"pattern": pattern})
        found[pattern] = tmp_path_factory.mktemp(pattern)
        save_tokenizer(_train(config), found[pattern], config=config)
    found["digits"] = _edited(
        found["gpt2"], tmp_path_factory.mktemp("digits"), lambda d: d.update(pre_tokenizer=DIGITS)
    )
    return found


def _edited(source: Path, folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    data = json.loads((source / "tokenizer.json").read_text())
    edit(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.data.tokenizer.MAX_SEGMENT_BYTES", SEGMENT_BYTES)


def _kinds(pattern: str) -> list[str]:
    return FAST if pattern != "digits" else ["tiktoken"]  # gigatoken refuses Digits


def _lack_bytes(data: dict[str, Any]) -> None:
    """Takes three control bytes out of the vocabulary, as SmolLM2's lacks some."""
    for character in (chr(256 + byte) for byte in (0x04, 0x06, 0x13)):
        del data["model"]["vocab"][character]


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "qwen2", "digits"])
def test_the_fastest_backend_that_knows_the_split_is_taken(folders: dict[str, Path], pattern: str) -> None:
    assert Encoder.open(folders[pattern]).kind == _kinds(pattern)[0]


@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "qwen2", "digits"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_fast_backends_give_the_ids_of_tokenizers(folders: dict[str, Path], pattern: str, data: st.DataObject) -> None:
    texts = data.draw(st.lists(texts_of_all_kinds, min_size=1, max_size=4))
    for encoder in _encoders(folders[pattern], tuple(_kinds(pattern))):
        encoder.check(texts)


_opened: dict[tuple[Path, tuple[str, ...]], list[Encoder]] = {}


def _encoders(folder: Path, kinds: tuple[str, ...]) -> list[Encoder]:
    if (folder, kinds) not in _opened:
        file = TokenizerFile.read(folder)
        _opened[folder, kinds] = [Encoder(file, kind=kind) for kind in kinds]
    return _opened[folder, kinds]


@pytest.mark.parametrize("kind", ["tokenizers", *FAST])
def test_a_special_token_written_in_a_document_stays_text(folders: dict[str, Path], kind: str) -> None:
    encoder = Encoder(TokenizerFile.read(folders["qwen2"]), kind=kind)
    tokens = encoder.encode(_column([f"a{token}b" for token in CONFIG.special_tokens]))
    assert tokens.tokens.min() >= len(CONFIG.special_tokens)
    assert encoder.file.reference().decode(tokens[0].tolist()) == "a<|endoftext|>b"


@pytest.mark.parametrize("kind", FAST)
@settings(max_examples=15, deadline=None)
@given(text=st.text("ab \x04\x06\x13é", max_size=30))
def test_bytes_that_the_vocabulary_lacks_are_left_out_as_tokenizers_does(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, kind: str, text: str
) -> None:
    key = Path(f"lacking-{kind}")
    if (key, (kind,)) not in _opened:
        folder = _edited(folders["gpt2"], tmp_path_factory.mktemp("lacking"), _lack_bytes)
        _opened[key, (kind,)] = [Encoder.open(folder, backend=kind)]
    encoder = _opened[key, (kind,)][0]
    encoder.check([text, "between", text + "\x04"])
    assert encoder.encode(_column(["\x04"])).tokens.size == 0


@pytest.mark.parametrize("kind", FAST)
def test_added_tokens_that_are_not_special_are_found_in_documents(
    folders: dict[str, Path], tmp_path: Path, short_segments: None, kind: str
) -> None:
    tool = {
        "id": 1500,
        "content": "<tool>",
        "single_word": False,
        "lstrip": False,
        "rstrip": True,
        "normalized": False,
        "special": False,
    }
    folder = _edited(folders["qwen2"], tmp_path, lambda data: data["added_tokens"].append(tool))
    encoder = Encoder(TokenizerFile.read(folder), kind=kind)
    encoder.check(["a <tool>  b", "<tool", "no tool", "word " * 900 + "<tool>   " + "word " * 500])
    assert 1500 in encoder.encode(_column(["x <tool>  y"])).tokens


def test_offsets_tell_documents_apart_in_a_cut_table_with_empty_rows_and_nulls(folders: dict[str, Path]) -> None:
    encoder = Encoder(TokenizerFile.read(folders["qwen2"]), kind="gigatoken")
    texts = ["one two", "", None, "drei", "四", "six" * 9]
    chunked = pa.chunked_array([pa.array(texts[:4], pa.large_string()), pa.array(texts[4:], pa.large_string())])
    for column, rows in (
        (_column(texts), texts),
        (chunked, texts),
        (_column(texts).slice(3), texts[3:]),
        (chunked.slice(5), texts[5:]),
    ):
        found = encoder.encode(column)
        assert [encoder.file.reference().decode(found[row].tolist()) for row in range(len(found))] == [
            t or "" for t in rows
        ]
    assert len(encoder.encode(_column([]))) == 0
    table = pa.table(
        {"text": pa.array(["one two"], pa.large_string())}, schema=pa.schema([DOCUMENT_SCHEMA.field("text")])
    )
    assert encoder.encode_table(table)[0].tolist() == encoder.encode(_column(["one two"]))[0].tolist()


def test_tokens_take_two_bytes_while_the_vocabulary_allows(folders: dict[str, Path], tmp_path: Path) -> None:
    assert (
        Encoder(TokenizerFile.read(folders["gpt2"]), kind="gigatoken").encode(_column(["x"])).tokens.dtype == np.uint16
    )
    big = _edited(folders["gpt2"], tmp_path, lambda data: data["model"]["vocab"].update({"Ġ" * 90: 70_000}))
    assert Encoder(TokenizerFile.read(big), kind="gigatoken").encode(_column(["x"])).tokens.dtype == np.uint32


class _Wrong:
    """A library with a fault: a text that ends with "jaq" loses its last id."""

    def __init__(self, file: TokenizerFile, *, num_threads: int) -> None:
        self._right = ReferenceBackend(file, num_threads=num_threads)

    def encode(self, texts: pa.LargeStringArray) -> Ids:
        ids = self._right.encode(texts)
        is_hit = np.array([text.endswith("jaq") for text in texts.to_pylist()], np.int64)
        kept = np.ones(len(ids.tokens), bool)
        kept[ids.offsets[1:][is_hit > 0] - 1] = False
        return Ids(ids.tokens[kept], ids.offsets - np.concatenate([[0], np.cumsum(is_hit)]))


class _Swapped(_Wrong):
    """Another fault: "q" and "z" are mixed up, which no count of bytes shows."""

    def encode(self, texts: pa.LargeStringArray) -> Ids:
        ids = self._right.encode(texts)
        q, z = self._right.encode(pa.array(["qz"], pa.large_string())).tokens
        return Ids(np.where(ids.tokens == q, z, ids.tokens).astype(np.uint32), ids.offsets)


def test_a_backend_that_differs_is_named_with_the_text_or_passed_over(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(BACKENDS, "gigatoken", _Swapped)
    assert Encoder(TokenizerFile.read(folders["qwen2"]), kind="gigatoken").check(["fine"]) is None
    with pytest.raises(
        BackendMismatch, match=r"backend = 'gigatoken' cannot be used .* text \d+ of .*, has \[\d+.* tokens from"
    ):
        Encoder.open(folders["qwen2"], backend="gigatoken")
    with caplog.at_level(logging.WARNING):
        assert Encoder.open(folders["qwen2"]).kind == "tiktoken"
    assert "gigatoken is not used" in caplog.text


def test_the_check_covers_a_sample_of_the_run(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "gigatoken", _Swapped)
    monkeypatch.setattr("train.data.tokenizer.hard_texts", lambda: ("fine",))
    assert Encoder.open(folders["qwen2"], backend="gigatoken").kind == "gigatoken"
    with pytest.raises(BackendMismatch, match="'a q'"):
        Encoder.open(folders["qwen2"], backend="gigatoken", sample=["text", "a q"])


def test_a_text_whose_tokens_do_not_add_up_is_encoded_again(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKENDS, "gigatoken", _Wrong)
    Encoder(TokenizerFile.read(folders["qwen2"]), kind="gigatoken").check(["a jaq", "jaq", "", "b jaq"])


def _swap_ids(data: dict[str, Any]) -> None:
    vocab = data["model"]["vocab"]
    first, second = ["".join(merge) for merge in data["model"]["merges"][:2]]
    vocab[first], vocab[second] = vocab[second], vocab[first]


def _unmerged_token(data: dict[str, Any]) -> None:
    data["model"]["vocab"]["qqq"] = 1500


def _unknown_split(data: dict[str, Any]) -> None:
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W+"


def _normalizer(data: dict[str, Any]) -> None:
    data["normalizer"] = {"type": "NFC"}


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (_swap_ids, "order of ids"),
        (_unmerged_token, "no merge gives"),
        (_unknown_split, "pattern"),
        (_normalizer, "normalizer"),
    ],
)
def test_tiktoken_refuses_what_it_cannot_say_exactly(
    folders: dict[str, Path], tmp_path: Path, edit: Callable[[dict[str, Any]], None], reason: str
) -> None:
    folder = _edited(folders["qwen2"], tmp_path, edit)
    with pytest.raises(CannotExpress, match=reason):
        Encoder.open(folder, backend="tiktoken")
    Encoder.open(folder).check(["any text is encoded all the same", "q" * 9])


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "qwen2", "digits"])
@settings(max_examples=150, deadline=None)
@given(text=st.one_of(texts_of_all_kinds, st.text("ab1 \n\t'.!,é中。", max_size=60)))
def test_cuts_that_are_not_forced_are_where_the_pattern_splits(
    folders: dict[str, Path], pattern: str, text: str
) -> None:
    data = text.encode()
    cuts, num_forced = cut_points(data, max_bytes=8)
    pieces = [data[start:stop].decode() for start, stop in itertools.pairwise([0, *cuts, len(data)])]
    assert max(len(piece.encode()) for piece in pieces) <= 8
    if num_forced == 0:
        split = _tokenizer(TokenizerFile.read(folders[pattern])).pre_tokenizer.pre_tokenize_str
        assert [word for piece in pieces for word, _ in split(piece)] == [word for word, _ in split(text)]


_tokenizers: dict[Path, Any] = {}


def _tokenizer(file: TokenizerFile) -> Any:
    return _tokenizers.setdefault(file.path, file.reference())


@pytest.mark.parametrize("kind", ["tokenizers", *FAST])
def test_a_long_document_has_the_ids_of_its_whole(folders: dict[str, Path], short_segments: None, kind: str) -> None:
    line = " ".join(topics.values()).replace("\n", " ")[: 5 * SEGMENT_BYTES]
    encoder = Encoder(TokenizerFile.read(folders["gpt2"]), kind=kind)
    found = encoder.encode(_column(["before", line, "", line[::-1], "after"]))
    assert found[1].tolist() == _tokenizer(encoder.file).encode(line).ids
    assert found[3].tolist() == _tokenizer(encoder.file).encode(line[::-1]).ids
    assert encoder.file.reference().decode(found[4].tolist()) == "after"


def test_a_run_without_a_place_to_split_is_cut_alike_by_all_and_said(
    folders: dict[str, Path], short_segments: None, caplog: pytest.LogCaptureFixture
) -> None:
    texts = _column(["x", " " * (5 * SEGMENT_BYTES), "é" * SEGMENT_BYTES, "y"])
    with caplog.at_level(logging.WARNING):
        found = [
            Encoder(TokenizerFile.read(folders["gpt2"]), kind=kind).encode(texts) for kind in ("tokenizers", *FAST)
        ]
    assert "5 runs of 4096 bytes" in caplog.text
    for other in found[1:]:
        assert np.array_equal(found[0].tokens, other.tokens)
        assert np.array_equal(found[0].offsets, other.offsets)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a" * 200, False),
        ("a" * 63 + "\u088f", True),
        ("नमस्ते 中文 😀", False),
        ("é\ua7ce", True),
        ("a" * 63 + "\U00033479a", True),
        ("", False),
    ],
)
def test_letters_on_which_libraries_do_not_agree_yet_are_found(text: str, expected: bool) -> None:
    data = np.frombuffer(f"\u088f{text}\u088f".encode(), np.uint8)
    assert has_newer_letters(data, np.array([3, len(data) - 3])).tolist() == [expected]


def test_gigatoken_is_made_anew_when_its_caches_have_grown(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.data.tokenizer_backends.CHECK_BYTES", 1 << 16)
    monkeypatch.setattr("train.data.tokenizer_backends.MAX_CACHE_BYTES", 1 << 20)
    file = TokenizerFile.read(folders["gpt2"])
    backend, reference = GigatokenBackend(file, num_threads=1), ReferenceBackend(file, num_threads=1)
    letters = np.random.default_rng(0).integers(97, 123, (8, 1 << 19), dtype=np.uint8)
    letters[:, ::9] = 32
    for row in letters:
        text = pa.array([row.tobytes().decode()], pa.large_string())
        assert np.array_equal(
            backend.encode(text).tokens[:1000], reference.encode(pa.array([text[0].as_py()[:9000]])).tokens[:1000]
        )
    assert backend.num_renewals > 0


def test_the_end_token_may_be_named_or_comes_from_the_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    assert Encoder.open(folders["qwen2"]).end_of_document_id == 0
    assert Encoder.open(folders["qwen2"], end_of_document="<|im_end|>").end_of_document_id == 3
    config = TokenizerTrainConfig(vocab_size=400, special_tokens=("<eod>", "<fill>"))
    save_tokenizer(_train(config), tmp_path, config=config)
    assert Encoder.open(tmp_path).end_of_document_id == 0
    with pytest.raises(ValueError, match=r"no token '<end>' .* are <eod>, <fill>: name one"):
        Encoder.open(tmp_path, end_of_document="<end>")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "is no JSON"),
        ("{}", "has no model"),
        ("[]", "has no model"),
        (BAD_MODEL, "is not accepted"),
    ],
)
def test_what_is_no_tokenizer_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=rf"tokenizer.json {message}.*give the folder"):
        Encoder.open(tmp_path)
