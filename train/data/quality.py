"""Quality of documents: which rules they break, and a score.

In: tables of DOCUMENT_SCHEMA. Out: the same rows with `quality` filled and every broken rule among the `reasons`, with the
value that broke it. Order and meaning are FineWeb's: language, Gopher repetition, Gopher quality, C4 (which edits the text),
FineWeb.

The score: a rule's margin is 0 where it is broken and 1 where the statistic is at half of the greatest allowed value or less,
at twice the least or more (a least fraction: at 1), linear between. With w the least of all margins of enabled rules, language
aside, and m their mean, quality = sqrt(w * m): 0 exactly if a rule is broken or its statistic stands on a threshold, and never
less when a statistic moves away from its threshold. A classifier, where one is set, gives the quality instead.
Sources: see quality_rules; agreement with datatrove is measured in tests/parity/test_data_quality.py.
"""

import importlib
import itertools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from train.data.byte_kernels import Bytes, count_byte
from train.data.quality_c4 import edit_texts, gather_texts
from train.data.quality_kernels import LINE_ENDS, NUM_COLUMNS, Measures, measure_documents
from train.data.quality_rules import (
    C4Config,
    FineWebConfig,
    GopherQualityConfig,
    GopherRepetitionConfig,
    LanguageConfig,
    Rule,
    broken_rules,
    c4_rules,
    fineweb_rules,
    gopher_quality_rules,
    gopher_repetition_rules,
    rule_margins,
)
from train.data.schema import Reason, set_column, text_bytes, with_reasons
from train.data.word_kernels import Ints
from train.data.words import new_scratch, segment, word_tables

LARGE_BYTES = 1 << 22
"""The words of a larger document are counted before memory for them is taken."""
C4_LINES_DROPPED = "c4_lines_dropped"
NEW_LINE = 10

Classifier = Callable[[pa.Table], npt.NDArray[np.floating[Any]]]


class QualityConfig(BaseModel):
    """Which filters judge documents, and with which thresholds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    language: LanguageConfig = LanguageConfig()
    """Detected language."""
    gopher_repetition: GopherRepetitionConfig = GopherRepetitionConfig()
    """Repeated lines, paragraphs and n-grams."""
    gopher_quality: GopherQualityConfig = GopherQualityConfig()
    """Words, symbols and lines that running text has."""
    c4: C4Config = C4Config()
    """Lines that are no text."""
    fineweb: FineWebConfig = FineWebConfig()
    """Lists, and lines without an end."""
    classifier: str | None = Field(None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """ "package.module:callable": called with a table, returns one number in [0, 1] per row, which becomes the quality."""
    min_quality: float = Field(0.0, ge=0, le=1)
    """Documents of less quality are dropped."""

    @model_validator(mode="after")
    def _check_ranges(self) -> "QualityConfig":
        words = self.gopher_quality
        for name, least, most in (
            ("words", words.min_words, words.max_words),
            ("mean_word_length", words.min_mean_word_length, words.max_mean_word_length),
        ):
            if least is not None and most is not None and least > most:
                raise ValueError(
                    f"gopher_quality: min_{name} = {least} is above max_{name} = {most}, which no document can meet; "
                    "lower the first or raise the second"
                )
        return self


def score_table(table: pa.Table, config: QualityConfig) -> pa.Table:
    """The table with `quality` filled, broken rules added to `reasons`, and without the lines that C4 drops.

    Raises ValueError if the classifier cannot be imported or does not return one number in [0, 1] per row.
    """
    if not table.num_rows:
        return table
    statistics = np.zeros((table.num_rows, NUM_COLUMNS))
    reasons = _language_reasons(table, config.language)
    _measure(table, statistics, config, is_before_c4=True)
    if config.c4.enabled:
        table = _edit_table(table, config.c4, statistics)
        _measure(table, statistics, config, is_before_c4=False)
    rules = [
        *gopher_repetition_rules(config.gopher_repetition),
        *gopher_quality_rules(config.gopher_quality),
        *c4_rules(config.c4),
        *fineweb_rules(config.fineweb),
    ]
    _add_reasons(reasons, statistics, rules)
    quality = _quality_of(statistics, rules)
    if config.classifier is not None:
        quality = _classify(table, config.classifier)
    quality = quality.astype(np.float32)
    for row in np.flatnonzero(quality < np.float32(config.min_quality)):
        reasons[row].append({"rule": "quality.min_quality", "value": float(quality[row])})
    table = set_column(table, "quality", pa.array(quality, pa.float32()))
    return with_reasons(table, reasons) if any(reasons) else table


def load_classifier(name: str) -> Classifier:
    """The callable that "package.module:callable" names. Raises ValueError if there is none."""
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute, None)
    except ImportError as error:
        raise ValueError(
            f"classifier {name!r}: its module cannot be imported ({error}); install it or correct the name"
        ) from error
    if not callable(found):
        raise ValueError(f"classifier {name!r}: {module_name} has no callable {attribute!r}; correct the name")
    return cast("Classifier", found)


def _measure(
    table: pa.Table, statistics: npt.NDArray[np.float64], config: QualityConfig, *, is_before_c4: bool
) -> None:
    """Fill the statistics of Gopher's filters before C4, and of FineWeb's after it, or at once where C4 is off."""
    has_quality = config.gopher_quality.enabled and is_before_c4
    has_repetition = config.gopher_repetition.enabled and is_before_c4
    has_fineweb = config.fineweb.enabled and is_before_c4 is not config.c4.enabled
    if not (has_quality or has_repetition or has_fineweb):
        return
    data, offsets = _bytes_of(table)
    tables = word_tables(config.gopher_quality.stop_words)
    num_words = max(_most_words(data, offsets), 4) if has_repetition else 0
    num_lines = 1 + max(count_byte(data, start, stop, NEW_LINE) for start, stop in itertools.pairwise(offsets))
    slots = np.empty(4 * max(num_words, num_lines, 4), np.int64)
    measures = _measures_of(
        config.fineweb, has_quality=has_quality, has_repetition=has_repetition, has_fineweb=has_fineweb
    )
    measure_documents(data, offsets, tables, new_scratch(num_words), slots, measures, statistics)
    if has_fineweb and config.fineweb.except_no_line_ends:
        statistics[statistics[:, LINE_ENDS] == 0, LINE_ENDS] = 1.0


def _most_words(data: Bytes, offsets: Ints) -> int:
    """No document has more words: its bytes are a bound, and the words of a large one are counted instead."""
    most = 0
    scratch, tables = new_scratch(0), word_tables()
    for start, stop in itertools.pairwise(offsets):
        is_large = stop - start > LARGE_BYTES
        most = max(most, segment(data, start, stop, tables, scratch, np.inf) if is_large else int(stop - start))
    return most


def _measures_of(config: FineWebConfig, *, has_quality: bool, has_repetition: bool, has_fineweb: bool) -> Measures:
    is_strict = config.min_line_ends is not None and not config.except_no_line_ends
    limits = (config.max_short_lines, config.max_duplicate_line_chars, config.max_new_lines_per_word)
    most = (np.inf if limit is None else limit for limit in limits)
    least = (config.min_line_ends or 0.0) if is_strict else 0.0
    return Measures(has_quality, has_repetition, has_fineweb, config.short_line_chars, least, *most)


def _bytes_of(table: pa.Table) -> tuple[Bytes, Ints]:
    """text_bytes, always of the one type for which the kernels are compiled."""
    data, offsets = text_bytes(table["text"])
    data, offsets = data.view(), offsets.view()
    data.flags.writeable = offsets.flags.writeable = False
    return data, offsets


def _edit_table(table: pa.Table, config: C4Config, statistics: npt.NDArray[np.float64]) -> pa.Table:
    data, offsets = _bytes_of(table)
    edited = edit_texts(data, offsets, config=config, statistics=statistics)
    is_edited: npt.NDArray[np.bool_] = np.logical_not(broken_rules(statistics, c4_rules(config)).any(axis=1))
    sizes = np.where(is_edited, edited.stops - edited.starts, np.diff(offsets))
    out, ends = np.empty(int(sizes.sum()), np.uint8), np.zeros(len(offsets), np.int64)
    gather_texts(data, offsets, edited, is_edited, out, ends)
    text = pa.LargeStringArray.from_buffers(table.num_rows, pa.py_buffer(ends), pa.py_buffer(out))
    table = set_column(table, "text", text)
    dropped = np.where(is_edited, edited.dropped, 0)
    if not dropped.any():
        return table
    counts = table["counts"].to_pylist()
    for row in np.flatnonzero(dropped):
        merged = dict(counts[row])
        merged[C4_LINES_DROPPED] = merged.get(C4_LINES_DROPPED, 0) + int(dropped[row])
        counts[row] = list(merged.items())
    return set_column(table, "counts", pa.array(counts, table.schema.field("counts").type))


def _language_reasons(table: pa.Table, config: LanguageConfig) -> list[list[Reason]]:
    reasons: list[list[Reason]] = [[] for _ in range(table.num_rows)]
    if not config.enabled:
        return reasons
    for row, (language, score) in enumerate(
        zip(table["language"].to_pylist(), table["language_score"].to_pylist(), strict=True)
    ):
        if language and config.allowed and language not in config.allowed:
            reasons[row].append({"rule": "language.allowed", "value": score})
        if language and config.min_score is not None and score <= config.min_score:
            reasons[row].append({"rule": "language.min_score", "value": score})
    return reasons


def _add_reasons(reasons: list[list[Reason]], statistics: npt.NDArray[np.float64], rules: list[Rule]) -> None:
    for row, index in np.argwhere(broken_rules(statistics, rules)):
        rule = rules[index]
        reasons[row].append({"rule": rule.name, "value": float(statistics[row, rule.column])})


def _quality_of(statistics: npt.NDArray[np.float64], rules: list[Rule]) -> npt.NDArray[np.float64]:
    if not rules:
        return np.ones(len(statistics))
    margins = rule_margins(statistics, rules)
    quality: npt.NDArray[np.float64] = np.sqrt(margins.min(axis=1) * margins.mean(axis=1))
    return quality


def _classify(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    scores = np.asarray(load_classifier(name)(table), dtype=np.float64)
    if scores.shape != (table.num_rows,):
        raise ValueError(
            f"classifier {name!r} returned an array of shape {scores.shape} for {table.num_rows} rows; "
            "it has to return one number per row"
        )
    wrong = scores[~((scores >= 0) & (scores <= 1))]
    if len(wrong):
        raise ValueError(f"classifier {name!r} returned {wrong[0]}; its numbers have to lie in [0, 1]")
    return scores
