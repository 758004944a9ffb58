"""Texts that others wrote, as data in a prompt: delimited, and unable to end their own quotation.

In: any text. Out: the text between <<< and >>>, in which neither these nor a chat template's control tokens (<|im_end|>) can
be forged: they are broken up by spaces.
"""

import re

OPEN, CLOSE = "<<<", ">>>"
_FORGERIES = re.compile(r"<\||\|>|<{3,}|>{3,}")


def neutral(text: str) -> str:
    """Text in which delimiters and control tokens are broken up by a space."""
    return _FORGERIES.sub(lambda match: " ".join(match.group()), text)


def quoted(text: str) -> str:
    """The text as a quotation."""
    return f"{OPEN}\n{neutral(text).strip()}\n{CLOSE}\n"


def shortened(text: str, *, max_chars: int) -> str:
    """The beginning of a text, and how much is missing."""
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars].rstrip()}\n[{len(text) - max_chars} more characters]"
