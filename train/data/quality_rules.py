"""The rules of web-text filters: which statistic of a document may have which values, with the published numbers.

In: a configuration per filter. Out: a list of Rule; and from the statistics of many documents, which rules each breaks and
how far it stays away from breaking one. Every threshold may be None, which switches its rule off. Defaults are those of the
papers as datatrove 0.10.1 and FineWeb apply them. Sources: Gopher (arXiv:2112.11446, section A.1.1 and table A1), C4
(arXiv:1910.10683, section 2.2), FineWeb (arXiv:2406.17557, section 3).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, field_validator

from train.data.quality_kernels import (
    BULLET_LINES,
    CURLY_LINES,
    DUPLICATE_5_GRAM,
    DUPLICATE_LINE_CHARS,
    DUPLICATE_LINES,
    DUPLICATE_PARAGRAPH_CHARS,
    DUPLICATE_PARAGRAPHS,
    ELLIPSES,
    ELLIPSIS_LINES,
    HASHES,
    IS_EMPTY,
    LETTER_WORDS,
    LINE_CHAR_REPEATS,
    LINE_ENDS,
    LOREM_LINES,
    MEAN_WORD_LENGTH,
    NEW_LINES,
    NO_LINES,
    PLAIN_WORDS,
    SENTENCES,
    SHORT_LINES,
    STOP_WORDS,
    TOP_2_GRAM,
)
from train.data.words import MAX_STOP_CHARS, MAX_STOP_WORDS


class _Filter(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GopherQualityConfig(_Filter):
    """Gopher's quality rules. A word is one of spaCy's, punctuation included; a plain word is more than punctuation."""

    enabled: bool = True
    """Whether documents are judged by these rules."""
    min_words: int | None = Field(50, ge=0)
    """Least number of plain words. Gopher A.1.1."""
    max_words: int | None = Field(100_000, gt=0)
    """Greatest number of plain words. Gopher A.1.1."""
    min_mean_word_length: float | None = Field(3.0, ge=0)
    """Least mean length of the plain words, characters. Gopher A.1.1."""
    max_mean_word_length: float | None = Field(10.0, gt=0)
    """Greatest mean length of the plain words, characters. Gopher A.1.1."""
    max_symbols_per_word: float | None = Field(0.1, ge=0)
    """Greatest number of "#" per word, and of "..." or "…" per word. Gopher A.1.1."""
    max_bullet_lines: float | None = Field(0.9, ge=0, le=1)
    """Greatest fraction of lines that begin with "•" or "-". Gopher A.1.1."""
    max_ellipsis_lines: float | None = Field(0.3, ge=0, le=1)
    """Greatest fraction of lines that end with "..." or "…". Gopher A.1.1."""
    min_letter_words: float | None = Field(0.8, ge=0, le=1)
    """Least fraction of words with a letter. Gopher A.1.1."""
    min_stop_words: int | None = Field(2, ge=0)
    """Least number of different stop words. Gopher A.1.1."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """The stop words, compared with case. Gopher A.1.1: English; other languages need their own."""

    @field_validator("stop_words")
    @classmethod
    def _check_stop_words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [word for word in words if not 0 < len(word) <= MAX_STOP_CHARS]
        if wrong or len(words) > MAX_STOP_WORDS:
            raise ValueError(
                f"stop_words has {len(words)} words, of which {wrong} are empty or too long: "
                f"give at most {MAX_STOP_WORDS} words of 1 to {MAX_STOP_CHARS} characters"
            )
        return words


class GopherRepetitionConfig(_Filter):
    """Gopher's repetition rules: fractions of the text's characters unless said otherwise. Gopher table A1.

    An n-gram is n words. Of the most frequent 2 to 4-gram all occurrences count, of 5 to 10-grams those after the first.
    """

    enabled: bool = True
    """Whether documents are judged by these rules."""
    max_duplicate_lines: float | None = Field(0.30, ge=0, le=1)
    """Greatest fraction of lines that occurred before."""
    max_duplicate_paragraphs: float | None = Field(0.30, ge=0, le=1)
    """Greatest fraction of paragraphs, which blank lines divide, that occurred before."""
    max_duplicate_line_chars: float | None = Field(0.20, ge=0, le=1)
    """Greatest fraction of characters in such lines."""
    max_duplicate_paragraph_chars: float | None = Field(0.20, ge=0, le=1)
    """Greatest fraction of characters in such paragraphs."""
    max_top_2_gram: float | None = Field(0.20, ge=0)
    """Characters of the most frequent 2-gram. Also one that occurs once counts, so a short text can fail."""
    max_top_3_gram: float | None = Field(0.18, ge=0)
    """The same for 3-grams."""
    max_top_4_gram: float | None = Field(0.16, ge=0)
    """The same for 4-grams."""
    max_duplicate_5_grams: float | None = Field(0.15, ge=0)
    """Characters in repeated 5-grams; the scan goes on behind a repeated one."""
    max_duplicate_6_grams: float | None = Field(0.14, ge=0)
    """The same for 6-grams."""
    max_duplicate_7_grams: float | None = Field(0.13, ge=0)
    """The same for 7-grams."""
    max_duplicate_8_grams: float | None = Field(0.12, ge=0)
    """The same for 8-grams."""
    max_duplicate_9_grams: float | None = Field(0.11, ge=0)
    """The same for 9-grams."""
    max_duplicate_10_grams: float | None = Field(0.10, ge=0)
    """The same for 10-grams."""


class C4Config(_Filter):
    """C4's rules. Those for lines edit the text: a line that breaks one is removed from it."""

    enabled: bool = True
    """Whether lines are dropped, and documents judged, by these rules."""
    terminal_punctuation: bool = False
    """Keep only lines that end with . ? ! " or '. C4 does; FineWeb does not, since it removes 30 % of all tokens."""
    remove_citations: bool = True
    """Delete "[1]", "[edit]" and "[citation needed]". C4 section 2.2, through datatrove."""
    min_words_per_line: int | None = Field(3, ge=0)
    """Lines with fewer pieces between white space are dropped. C4 section 2.2."""
    max_word_chars: int | None = Field(1000, gt=0)
    """Lines with a longer piece are dropped, characters. C4's published code, through datatrove."""
    drop_javascript: bool = True
    """Drop lines with "javascript" in any case. C4 section 2.2."""
    drop_policy: bool = True
    """Drop lines with a phrase such as "privacy policy" or "use cookies". C4 section 2.2."""
    drop_lorem_ipsum: bool = True
    """Drop documents with "lorem ipsum". C4 section 2.2."""
    drop_curly_bracket: bool = True
    """Drop documents with "{", as code has. C4 section 2.2."""
    min_sentences: int | None = Field(5, ge=0)
    """Least number of sentences in the lines that are left. C4 section 2.2: 5 (its first version says 3)."""


class FineWebConfig(_Filter):
    """FineWeb's own rules, on what C4's left of the text. Blank lines do not count. FineWeb section 3.6."""

    enabled: bool = True
    """Whether documents are judged by these rules."""
    min_line_ends: float | None = Field(0.12, ge=0, le=1)
    """Least fraction of lines that end with terminal punctuation of any script."""
    except_no_line_ends: bool = False
    """Keep documents where no line at all does. datatrove's line_punct_exclude_zero; off in FineWeb."""
    max_short_lines: float | None = Field(0.67, ge=0, le=1)
    """Greatest fraction of lines with at most `short_line_chars` characters."""
    short_line_chars: int = Field(30, ge=0)
    """Length of a short line, characters."""
    max_duplicate_line_chars: float | None = Field(0.01, ge=0, le=1)
    """Greatest fraction of characters in lines that occurred before. datatrove's code has .01, the paper .1."""
    max_new_lines_per_word: float | None = Field(0.3, ge=0)
    """Greatest number of line ends per word: beyond it the text is a list."""


class LanguageConfig(_Filter):
    """Rules for the detected language. They say nothing of quality and have no part in the score."""

    enabled: bool = True
    """Whether documents are judged by these rules. A document without a detected language breaks none of them."""
    allowed: tuple[str, ...] = ("en",)
    """ISO 639 codes of the languages to keep; empty keeps all. FineWeb: English."""
    min_score: float | None = Field(0.65, ge=0, le=1)
    """The detector's probability has to be above it. FineWeb section 3.3."""


class Rule(NamedTuple):
    """A document has to have `least` <= statistic <= `most`, where they are not None."""

    name: str
    column: int
    least: float | None = None
    most: float | None = None
    is_fraction: bool = False


def gopher_quality_rules(config: GopherQualityConfig) -> list[Rule]:
    """The rules that are on."""
    c, name = config, "gopher_quality"
    return _chosen(
        c.enabled,
        Rule(f"{name}.num_words", PLAIN_WORDS, c.min_words or None, c.max_words),
        Rule(f"{name}.mean_word_length", MEAN_WORD_LENGTH, c.min_mean_word_length or None, c.max_mean_word_length),
        Rule(f"{name}.hashes_per_word", HASHES, most=c.max_symbols_per_word),
        Rule(f"{name}.ellipses_per_word", ELLIPSES, most=c.max_symbols_per_word),
        Rule(f"{name}.bullet_lines", BULLET_LINES, most=c.max_bullet_lines),
        Rule(f"{name}.ellipsis_lines", ELLIPSIS_LINES, most=c.max_ellipsis_lines),
        Rule(f"{name}.letter_words", LETTER_WORDS, c.min_letter_words or None, is_fraction=True),
        Rule(f"{name}.stop_words", STOP_WORDS, c.min_stop_words or None),
    )


def gopher_repetition_rules(config: GopherRepetitionConfig) -> list[Rule]:
    """The rules that are on."""
    c, name = config, "gopher_repetition"
    top = (c.max_top_2_gram, c.max_top_3_gram, c.max_top_4_gram)
    duplicate = (
        c.max_duplicate_5_grams, c.max_duplicate_6_grams, c.max_duplicate_7_grams, c.max_duplicate_8_grams,
        c.max_duplicate_9_grams, c.max_duplicate_10_grams,
    )  # fmt: skip
    return _chosen(
        c.enabled,
        Rule(f"{name}.empty", IS_EMPTY, most=0.0),
        Rule(f"{name}.duplicate_paragraphs", DUPLICATE_PARAGRAPHS, most=c.max_duplicate_paragraphs),
        Rule(f"{name}.duplicate_paragraph_chars", DUPLICATE_PARAGRAPH_CHARS, most=c.max_duplicate_paragraph_chars),
        Rule(f"{name}.duplicate_lines", DUPLICATE_LINES, most=c.max_duplicate_lines),
        Rule(f"{name}.duplicate_line_chars", DUPLICATE_LINE_CHARS, most=c.max_duplicate_line_chars),
        *(Rule(f"{name}.top_{n}_gram", TOP_2_GRAM + n - 2, most=most) for n, most in enumerate(top, start=2)),
        *(
            Rule(f"{name}.duplicate_{n}_grams", DUPLICATE_5_GRAM + n - 5, most=most)
            for n, most in enumerate(duplicate, start=5)
        ),
    )


def c4_rules(config: C4Config) -> list[Rule]:
    """The rules for whole documents that are on."""
    return _chosen(
        config.enabled,
        Rule("c4.lorem_ipsum", LOREM_LINES, most=0.0 if config.drop_lorem_ipsum else None),
        Rule("c4.curly_bracket", CURLY_LINES, most=0.0 if config.drop_curly_bracket else None),
        Rule("c4.num_sentences", SENTENCES, config.min_sentences or None),
    )


def fineweb_rules(config: FineWebConfig) -> list[Rule]:
    """The rules that are on."""
    c, name = config, "fineweb"
    return _chosen(
        c.enabled,
        Rule(f"{name}.empty", NO_LINES, most=0.0),
        Rule(f"{name}.line_ends", LINE_ENDS, c.min_line_ends or None, is_fraction=True),
        Rule(f"{name}.short_lines", SHORT_LINES, most=c.max_short_lines),
        Rule(f"{name}.duplicate_line_chars", LINE_CHAR_REPEATS, most=c.max_duplicate_line_chars),
        Rule(f"{name}.new_lines_per_word", NEW_LINES, most=c.max_new_lines_per_word),
    )


def _chosen(enabled: bool, *rules: Rule) -> list[Rule]:
    return [rule for rule in rules if enabled and (rule.least is not None or rule.most is not None)]


def broken_rules(statistics: npt.NDArray[np.float64], rules: list[Rule]) -> npt.NDArray[np.bool_]:
    """[documents, rules]: whether the document breaks the rule."""
    broken = np.zeros((len(statistics), len(rules)), np.bool_)
    for index, rule in enumerate(rules):
        values = statistics[:, rule.column]
        if rule.least is not None:
            broken[:, index] |= values < rule.least
        if rule.most is not None:
            broken[:, index] |= values > rule.most
    return broken


def rule_margins(statistics: npt.NDArray[np.float64], rules: list[Rule]) -> npt.NDArray[np.float64]:
    """[documents, rules] in [0, 1]: 0 where the rule is broken; 1 at half of the greatest allowed value or less, and at twice
    the least or more, or at 1 if it is a fraction; linear between."""
    margins = np.ones((len(statistics), len(rules)))
    for index, rule in enumerate(rules):
        values = statistics[:, rule.column]
        if rule.least is not None:
            room = 1.0 - rule.least if rule.is_fraction else rule.least
            margins[:, index] = (values - rule.least) / room if room else values >= rule.least
        if rule.most is not None:
            below = (rule.most - values) / (rule.most / 2) if rule.most else values <= 0
            margins[:, index] = np.minimum(margins[:, index], below)
    return np.clip(margins, 0.0, 1.0)
