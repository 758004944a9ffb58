"""Slot: what has a value, as a set of stems; and when two values of a slot cannot both hold.

"director", "directs" and "directed" have one stem. A number, a name and a plain word are values of different kinds, of which
none contradicts another. No model.
"""

import re
from dataclasses import dataclass

MIN_OVERLAP = 0.5
"""Share of common words above which two wordings of a value say the same."""

WORD = re.compile(r"[^\W_]+(?:[-.:/'’_][^\W_]+)*")
STOP = frozenset(
    """a an the of in on at to for from with by and or as is are was were be been has have had it its this that these
    those which who what when where how than then into must do does did will would can may i you we they he she""".split()
)
_SYNONYM = {
    "passcode": "code", "pin": "code", "password": "code", "combination": "code", "cost": "price", "weigh": "weight",
    "establish": "found", "fee": "price", "tariff": "price", "license": "licence", "colour": "color", "boss": "leader",
    "chief": "leader",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Slot:
    """What has a value. `words` are stems; `names` those of them that are written with a capital or a digit."""

    words: frozenset[str]
    names: frozenset[str]
    is_past: bool = False
    """What was is no contradiction to what is."""


def slot_of(text: str, *attribute: str, is_past: bool = False) -> Slot:
    """The slot that these words name, with the noun or verb of an attribute."""
    words = [word for word in WORD.findall(re.sub(r"['’]s?\b", "", text)) if word.casefold() not in STOP]
    stems = frozenset(stem_of(word) for word in words)
    names = frozenset(stem_of(word) for word in words if word != word.lower() or any(c.isdigit() for c in word))
    return Slot(
        stems | {stem_of(word) for one in attribute for word in one.split() if word not in STOP}, names, is_past
    )


def differ(first: str, second: str) -> bool:
    """Whether two values of one slot cannot both hold. A number and a name are values of different kinds."""
    exact, others = exact_words(first), exact_words(second)
    if exact and others:
        return not (exact <= others or others <= exact)
    if exact or others or _has_names(first) != _has_names(second):
        return False
    words, more = ({stem_of(word) for word in WORD.findall(one)} - STOP for one in (first, second))
    if not words or not more or words <= more or more <= words:
        return False
    return len(words & more) / len(words | more) < MIN_OVERLAP


def exact_words(text: str) -> set[str]:
    """Numbers and codes."""
    return {word.casefold() for word in WORD.findall(text) if any(character.isdigit() for character in word)}


def is_number(word: str) -> bool:
    """Digits, perhaps with a point or commas."""
    return word.replace(".", "").replace(",", "").isdigit()


def shapes_of(text: str) -> set[str]:
    """Of the numbers and codes of a text."""
    return {shape_of(word) for word in exact_words(text)}


def shape_of(word: str) -> str:
    """ "KX-4471" -> "aa-9999"; a number of any length is "9"."""
    if not any(character.isalpha() for character in word):
        return "9" if any(character.isdigit() for character in word) else ""
    if not any(character.isdigit() for character in word):
        return ""
    return re.sub(r"[^\W\d_]", "a", re.sub(r"\d", "9", word.casefold()))


def stem_of(word: str) -> str:
    """What a word has in common with its other forms."""
    word = re.sub(r"['’]s?$", "", word.casefold())
    if len(word) > 4 and word.endswith("ies"):
        word = f"{word[:-3]}y"
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    word = _SYNONYM.get(word, word)
    # "director", "directed", "directing" and "direct" are of one stem, as are "owner" and "owns"
    return re.sub(r"(?<=\w{3})(?:or|er|ed|ing)$", "", word) if word.isalpha() else word


def _has_names(text: str) -> bool:
    return any(word[0].isupper() for word in WORD.findall(text) if word.casefold() not in STOP)


def is_name(text: str) -> bool:
    """Capitalised words, or a code."""
    words = [word for word in text.split() if word.casefold() not in STOP]
    return bool(words) and all(word[0].isupper() or any(c.isdigit() for c in word) for word in words)
