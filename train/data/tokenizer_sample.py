"""Texts in which tokenizers differ, if they do.

Out: short texts of many scripts and of every kind of character, blanks in all ways, numbers, contractions, code, rulers, long
words, look-alikes of special tokens; and seeded mixtures of them. The start-up check of a fast backend compares ids on these.
"""

import functools
import random
import sys
import unicodedata

NUM_MIXTURES = 100
NUM_OF_CATEGORY = 48

_BLANKS = (
    " ", "  ", "   ", "\n", "\n\n", "\n\n\n\n", "\r\n", "\t", "\t\t", " \n \n", "\n    ", "\u00a0", "\u3000",
    "\u2028", "\x85", "\v", "\f", " " * 200, "\n" * 200, "\t" * 90,
)  # fmt: skip
_CONTROLS = (
    "\x00", "\x04", "\x06", "\x13", "\x1b[0m", "\x7f", "\ufeff", "\u200b", "\u200d", "\u00ad", "\ufffd",
    "\U0010ffff", "\U00040000", "\ue000",
)  # fmt: skip
_WORDS = (
    "a", "A", " the", "The quick brown fox", "I'm don't we'll they've you're he'd it's", "I'M DON'T 'S 'Tis",
    "’s it’s", "'", "''", "pneumonoultramicroscopicsilicovolcanoconiosis", "x" * 300, "ab" * 200, "Aa" * 50,
    "aGVsbG8gd29ybGQ=", "word-word", "_", "__init__",
)  # fmt: skip
_NUMBERS = (
    "0", "7", "12", "123", "1234", "12345678901234567890", "3.14159", "1,000,000", "0x1F", "1e-10", "2nd", "²½Ⅷ",
    "١٢٣", "1" * 200, "d41d8cd98f00b204e9800998ecf8427e",
)  # fmt: skip
_SIGNS = (
    "!", "?!", "...", "…", "==", "=" * 70, "-" * 33, "#" * 7, "*" * 100, "(", ")", "[]", "{}", "://", "@", "•",
    "“x”", "←∑∞", "!\n", ".\n\n",
)  # fmt: skip
_CODE = (
    "def f(x):\n    return x ** 2  # noqa\n\n\n", "for (int i = 0; i < n; ++i) {\n\t\ta[i] += 1;\n\t}\n",
    '{"key": [1, 2.5, null]}', "<p class='x'>&nbsp;</p>", "https://example.org/a/b?c=d&e=%20#f",
    "C:\\Windows\\System32", "SELECT * FROM t WHERE a<>'b';", "\\frac{a}{b}$x^2$",
)  # fmt: skip
_SCRIPTS = (
    "Straße Ärger über", "İstanbul", "e\u0301", "\u0301\u0302", "مرحبا", "שלום", "Привет мир", "Γειά", "नमस्ते",
    "สวัสดี", "你好，世界。", "中" * 200, "こんにちはカタカナ", "안녕하세요", "ἀ𝓐", "😀", "👨\u200d👩\u200d👧", "🇩🇪",
    "❤\ufe0f", "👍🏽", "\u088f\n", "\U000323b0\na", "\U00011de1\U00016ff4",
)  # fmt: skip
_SPECIAL = (
    "<|endoftext|>", "a<|endoftext|>b", "<|im_start|>user", "<|pad|>", "<|", "|>", "[INST]", "<s>", "</s>", "<unk>",
    "<|endoftext|",
)  # fmt: skip
_PIECES = (*_BLANKS, *_CONTROLS, *_WORDS, *_NUMBERS, *_SIGNS, *_CODE, *_SCRIPTS, *_SPECIAL)


@functools.cache
def hard_texts() -> tuple[str, ...]:
    """The sample: about 1,100 texts, 80 KB; the same on every machine with the same Unicode tables."""
    of_category: dict[str, list[str]] = {}
    for code in range(0, sys.maxunicode, 7):
        of_category.setdefault(unicodedata.category(chr(code)), []).append(chr(code))
    del of_category["Cs"]  # halves of characters are no text
    picked = [found[:: max(1, len(found) // NUM_OF_CATEGORY)] for _, found in sorted(of_category.items())]
    single = [f"a{c}b {c} {c}{c}1{c}" for found in picked for c in found]
    draw = random.Random(0)
    mixed = ["".join(draw.choices(_PIECES, k=draw.randrange(1, 40))) for _ in range(NUM_MIXTURES)]
    return ("", *_PIECES, *single, *mixed)
