"""Our filters against datatrove's, and our words against spaCy's, on documents of installed packages."""

import ast
import importlib.metadata
import itertools
import random
import re
import sysconfig
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import spacy
from datatrove.pipeline import filters as datatrove_filters

from train.data.quality import QualityConfig, score_table
from train.data.schema import DOCUMENT_SCHEMA
from train.data.word_rules import (
    ALPHA,
    ICON,
    LAST_LETTER,
    LOWER,
    PREFIX,
    PUNCTUATION,
    QUOTE,
    SENTENCE_END,
    SUFFIX,
    SYMBOL,
    TERMINAL,
    UNITS,
    UPPER,
    character_classes,
    special_words,
)
from train.data.words import NUM_SENTENCES, new_scratch, segment, split_words, word_tables

NUM_DOCUMENTS = 2_000
LEAST_AGREEMENT = 0.99
OFF = {"enabled": False}
FILTERS = ("language", "gopher_repetition", "gopher_quality", "c4", "fineweb")
RULES = {
    "gopher_short_doc": "num_words", "gopher_long_doc": "num_words", "gopher_below_avg_threshold": "mean_word_length",
    "gopher_above_avg_threshold": "mean_word_length", "gopher_too_many_hashes": "hashes_per_word",
    "gopher_too_many_ellipsis": "ellipses_per_word", "gopher_too_many_bullets": "bullet_lines",
    "gopher_too_many_end_ellipsis": "ellipsis_lines", "gopher_below_alpha_threshold": "letter_words",
    "gopher_enough_stop_words": "stop_words", "dup_para_frac": "duplicate_paragraphs",
    "dup_para_char_frac": "duplicate_paragraph_chars", "dup_line_frac": "duplicate_lines",
    "dup_line_char_frac": "duplicate_line_chars", "line_punct_ratio": "line_ends", "short_line_ratio": "short_lines",
    "char_dup_ratio": "duplicate_line_chars", "list_ratio": "new_lines_per_word", "too_few_sentences": "num_sentences",
    "lorem_ipsum": "lorem_ipsum", "curly_bracket": "curly_bracket", "empty": "empty",
} | {f"top_{n}_gram": f"top_{n}_gram" for n in (2, 3, 4)} | {
    f"duplicated_{n}_n_grams": f"duplicate_{n}_grams" for n in range(5, 11)
}  # fmt: skip
"""datatrove's names of rules -> ours."""


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """Texts of many packages, cut into pieces of 200 to some 4,000 characters: the same ones for the same installation."""
    generator = random.Random(0)
    by_source: dict[str, list[str]] = {}
    for source, text in _texts():
        pieces = by_source.setdefault(source, [])
        position = 0
        while position < len(text) and len(pieces) < 400:
            end = position + min(4_000, max(200, int(generator.lognormvariate(6.8, 0.8))))
            end = text.find("\n", end) + 1 or len(text)
            pieces.append(text[position:end][:8_000])
            position = end
    assert len(by_source) >= 6, sorted(by_source)
    for pieces in by_source.values():
        generator.shuffle(pieces)
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_source.values()))
    found = list(dict.fromkeys(piece for piece in in_turn if piece is not None))[:NUM_DOCUMENTS]
    assert len(found) == NUM_DOCUMENTS
    return found


def _texts() -> Iterator[tuple[str, str]]:
    """(kind or package, text): manual, docstrings and source of the standard library, what packages say of themselves."""
    from pydoc_data.topics import topics

    yield from (("topics", text) for text in topics.values())
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    for path in [*sorted(stdlib.glob("*.py"))[:60], *sorted(stdlib.glob("email/*.py"))]:
        source = path.read_text("utf-8")
        yield "source", source[:6_000]
        nodes = (
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        )
        yield "docstrings", "\n\n".join(filter(None, map(ast.get_docstring, nodes)))
    for distribution in sorted(importlib.metadata.distributions(), key=lambda one: one.metadata["Name"]):
        name = distribution.metadata["Name"]
        for file in sorted(distribution.files or (), key=str)[:3_000]:
            if file.name == "METADATA" or file.suffix in (".rst", ".md", ".txt"):
                path = Path(str(distribution.locate_file(file)))
                if path.is_file():
                    yield f"package {name}", path.read_text("utf-8", "replace")[:20_000]


def _table(texts: list[str]) -> pa.Table:
    defaults: dict[str, Any] = {
        "source_id": "s", "title": "", "happened_at": 0.0, "metadata": [], "counts": [], "language": "en",
        "language_score": 1.0, "quality": 0.0, "reasons": [],
    }  # fmt: skip
    columns = {name: [value] * len(texts) for name, value in defaults.items()}
    columns |= {"id": [str(number) for number in range(len(texts))], "text": texts}
    return pa.table({name: columns[name] for name in DOCUMENT_SCHEMA.names}, schema=DOCUMENT_SCHEMA)


def _peer(name: str) -> tuple[Any, dict[str, Any]]:
    """(datatrove's filter, our configuration of it)."""
    f = datatrove_filters
    return {
        "gopher_repetition": (f.GopherRepetitionFilter(), {"gopher_repetition": {}}),
        "gopher_quality": (f.GopherQualityFilter(), {"gopher_quality": {}}),
        "fineweb": (f.FineWebQualityFilter(), {"fineweb": {}}),
        "c4": (f.C4QualityFilter(filter_no_terminal_punct=False), {"c4": {}}),
        "c4 with terminal punctuation": (f.C4QualityFilter(), {"c4": {"terminal_punctuation": True}}),
    }[name]  # fmt: skip


def _judge(name: str, texts: list[str]) -> tuple[list[str | None], list[str], pa.Table]:
    """(datatrove's first reason or None, the text that it leaves, our scored table)."""
    from datatrove.data import Document

    peer, ours = _peer(name)
    verdicts, left = [], []
    for text in texts:
        document = Document(text=text, id="0")
        verdict = peer.filter(document)
        verdicts.append(None if verdict is True else verdict[1])
        left.append(document.text)
    return verdicts, left, score_table(_table(texts), QualityConfig(**dict.fromkeys(FILTERS, OFF) | ours))


@pytest.mark.parametrize(
    "name", ["gopher_repetition", "gopher_quality", "fineweb", "c4", "c4 with terminal punctuation"]
)
def test_verdicts_first_reasons_and_edited_texts_are_those_of_datatrove(name: str, documents: list[str]) -> None:
    verdicts, left, table = _judge(name, documents)
    reasons = [[reason["rule"].split(".")[1] for reason in row] for row in table["reasons"].to_pylist()]
    agreeing = [(peer is None) == (not ours) for peer, ours in zip(verdicts, reasons, strict=True)]
    explained = [RULES[peer] in ours for peer, ours in zip(verdicts, reasons, strict=True) if peer is not None]
    num_dropped = len(explained)
    print(f"{name}: {sum(agreeing)} of {len(agreeing)} verdicts agree, {num_dropped} dropped")  # noqa: T201 - the measurement
    assert num_dropped >= 20, "a filter that drops nothing shows nothing"
    assert num_dropped <= len(documents) - 20
    assert sum(agreeing) >= LEAST_AGREEMENT * len(agreeing)
    assert sum(explained) >= LEAST_AGREEMENT * num_dropped
    same_text = sum(ours == peer for ours, peer in zip(table["text"].to_pylist(), left, strict=True))
    assert same_text >= LEAST_AGREEMENT * len(documents)


def test_odd_texts_are_judged_as_datatrove_judges_them() -> None:
    generator = random.Random(3)
    words = (
        "the be to of and that have with data list self.value foo() x=1 don't e.g. U.S. 3.14 10% [1] [edit] [١٢] Lorem ipsum"
        " JavaScript javascript terms of use Privacy Policy cookies { } ... … • - # Überall größe дом 中文。 テスト"
        " \" ' a.bc/d?e u@ex.com :) (so). end. What? Yes! \u2028 \x85 \u00a0 😀"
    ).split(" ")
    breaks = [" "] * 12 + [
        "  ",
        "\n",
        "\n",
        "\n\n",
        "\n\n\n",
        "\r\n",
        "\t",
        " \n",
        "\u2028",
        "\x0b",
        "\x85",
        "\u3000",
        ". ",
    ]
    texts = ["", "\n", "\n\n", " ", "a", "…", "\u3000", "x" * 2000, "{", "." * 500, "-\n" * 50, "• a\n" * 60, "#" * 100]
    texts += ["a\n\nb\n\na\n\nb", "word. " * 200, "[1] [2] [3]\n[1] a b", "w" * 1001 + " the end of it. and more"]
    for _ in range(250):
        vocabulary, between = generator.sample(words, 12), generator.sample(breaks, 4)
        size = int(generator.lognormvariate(3.5, 1.2))
        texts.append("".join(generator.choice(vocabulary) + generator.choice(between) for _ in range(size)))
    for name in ("gopher_repetition", "gopher_quality", "fineweb", "c4 with terminal punctuation"):
        verdicts, left, table = _judge(name, texts)
        for text, peer, reasons, ours, theirs in zip(
            texts, verdicts, table["reasons"].to_pylist(), table["text"].to_pylist(), left, strict=True
        ):
            rules = [reason["rule"].split(".")[1] for reason in reasons]
            assert (RULES[peer] in rules) if peer else not rules, (name, text, peer, rules)
            assert ours == theirs, (name, text)


def test_words_are_those_of_spacy_on_the_documents(documents: list[str]) -> None:
    tokenizer, tables = spacy.blank("en").tokenizer, word_tables()
    for text in documents[::4]:
        assert split_words(text, tables) == [token.text for token in tokenizer(text) if not token.text.isspace()], text


def test_words_are_those_of_spacy_on_marks_and_special_words_thrown_together() -> None:
    tokenizer, tables = spacy.blank("en").tokenizer, word_tables()
    generator = random.Random(1)
    special = sorted(special_words())
    marks = [*"abzABZ019.,:;!?'\"()[]{}<>-_/\\@#$%^&*+=~|`…—–’‘“”"]
    marks += [*"éÉßяЯ中。，こー😀©°²µ€£٪مı\u200b𝒳½", *UNITS, "http://", "..", "US$", "'s"]
    differing = 0
    for _ in range(4_000):
        pieces = [
            generator.choice(special)
            if generator.random() < 0.3
            else "".join(generator.choices(marks, k=generator.randint(1, 7)))
            for _ in range(3)
        ]
        text = "  ".join(pieces)
        differing += split_words(text, tables) != [token.text for token in tokenizer(text) if not token.text.isspace()]
    assert differing == 0


def test_sentences_are_those_of_spacys_sentencizer(documents: list[str]) -> None:
    pipeline = spacy.blank("en")
    pipeline.add_pipe("sentencizer")
    scratch, tables = new_scratch(0), word_tables()
    for text in documents[::40]:
        for line in filter(str.strip, text.splitlines()):
            data = pa.py_buffer(line.encode())
            segment(_bytes(data), 0, data.size, tables, scratch, float("inf"))
            assert scratch.totals[NUM_SENTENCES] == len(list(pipeline(line).sents)), line


def _bytes(buffer: pa.Buffer) -> Any:
    import numpy as np

    return np.frombuffer(buffer, np.uint8)


def test_special_words_are_those_of_spacy() -> None:
    rules = spacy.blank("en").tokenizer.rules
    orth = spacy.symbols.ORTH
    wanted = {word: tuple(part[orth] for part in parts) for word, parts in rules.items() if not word.isspace()}
    assert special_words() == wanted


def test_character_classes_are_those_of_spacy_and_datatrove() -> None:
    from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION
    from spacy.lang import char_classes
    from spacy.pipeline import Sentencizer

    tokenizer, classes = spacy.blank("en").tokenizer, character_classes()
    characters = [chr(code) for code in range(LAST_LETTER) if not 0xD800 <= code < 0xE000]
    patterns = {
        ALPHA: char_classes.ALPHA, LOWER: char_classes.ALPHA_LOWER, UPPER: char_classes.ALPHA_UPPER,
        ICON: char_classes.ICONS, QUOTE: char_classes.CONCAT_QUOTES,
    }  # fmt: skip
    for bit, members in patterns.items():
        matcher = re.compile(f"[{members}]")
        assert [one for one in characters if bool(matcher.match(one)) != bool(classes[ord(one)] & bit)] == []
    sets = {SYMBOL: PUNCTUATION_SET, TERMINAL: TERMINAL_PUNCTUATION, SENTENCE_END: set(Sentencizer.default_punct_chars)}
    for bit, found in sets.items():
        assert [one for one in characters if (one in found) != bool(classes[ord(one)] & bit)] == []
    assert [
        one for one in characters if unicodedata.category(one).startswith("P") != bool(classes[ord(one)] & PUNCTUATION)
    ] == []
    for one in characters:
        assert (tokenizer.find_prefix(one) > 0) == (classes[ord(one)] & PREFIX > 0 or one == "+"), one
        assert (tokenizer.find_suffix(one) > 0) == (classes[ord(one)] & SUFFIX > 0), one
