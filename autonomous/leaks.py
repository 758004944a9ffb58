"""Leaks: which training texts hold an evaluation item, by the word n-grams that they share.

In: texts, and items by id. Out: which text holds what of which item. Words, hashes and the rule for short items are those of
`train.data.decontaminate`: case and punctuation do not count; an item with fewer words than an n-gram counts as a whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

NGRAM_WORDS = 8
MIN_ITEM_WORDS = 4
"""An item of fewer words is too common to count."""
MAX_ITEMS = 4096
"""Looked for at once: the table of counts has a row per text and a column per item."""


@dataclass(frozen=True, slots=True)
class Leak:
    """Text number `text` shares `num_shared` n-grams with the item, repeats counted."""

    text: int
    item_id: str
    num_shared: int


def find_leaks(texts: Sequence[str], items: Mapping[str, str], *, n: int = NGRAM_WORDS) -> list[Leak]:
    """Every text that shares `n` words in a row with an item, or holds a shorter one whole; in the order of the texts.

    Items with fewer than `MIN_ITEM_WORDS` words (or than `n`, if that is less) are never found.
    """
    import pyarrow as pa

    from train.data.decontaminate import Contamination, DecontaminationConfig, count_matches

    config = DecontaminationConfig(ngram_words=n, min_item_words=min(MIN_ITEM_WORDS, n))
    column = pa.chunked_array([pa.array(texts, pa.large_string())])
    leaks = []
    names = iter(items)
    while part := list(islice(names, MAX_ITEMS)):
        contamination = Contamination.build({name: [items[name]] for name in part}, config)
        counts = count_matches(column, contamination)
        for text, which in zip(*counts.nonzero(), strict=True):
            leaks.append(Leak(int(text), contamination.set_names[which], int(counts[text, which])))
    return sorted(leaks, key=lambda leak: (leak.text, leak.item_id))
