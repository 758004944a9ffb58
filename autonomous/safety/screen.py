"""The safety screen: what may not come in as knowledge, and what may not go out in an answer.

Deterministic and without a model. In: text. Out: a verdict with its reasons, or the text with secrets masked. A screen
is a filter, not a proof: it catches the common phrases of prompt injection (OWASP LLM01), smuggled characters and live
secrets. Every version is judged by the gates as well.
"""

import re
from dataclasses import dataclass
from typing import Literal

from train.data.pii import ALL_KINDS, SECRET_KINDS, find_sensitive, mask_sensitive

Level = Literal["low", "medium", "high"]

MAX_EXCERPT_CHARS = 60

_WHOSE = r"(?:all\s+|any\s+|the\s+|your\s+|of\s+|my\s+|these\s+){0,4}"
_ORDERS = r"(?:instructions?|prompts?|rules|directions|guidelines|messages?)"
_INJECTION = {
    "override": rf"\b(?:ignore|disregard|forget|override)\s+{_WHOSE}"
    rf"(?:(?:previous|prior|earlier|preceding|above|foregoing)\s+{_ORDERS}"
    rf"|{_ORDERS}\s+(?:above|before\s+this|given\s+to\s+you)"
    r"|(?:everything|anything)\s+(?:you\s+(?:were|have\s+been)\s+(?:told|given|taught)|above\s+this))"
    r"|\b(?:ignore|disregard|forget)\s+(?:all\s+)?(?:of\s+)?your\s+(?:instructions|rules|guidelines|programming)",
    "exfiltration": r"\b(?:reveal|print|repeat|show|output|leak)\s+(?:me\s+)?"
    r"(?:your\s+(?:instructions|prompt)\b|(?:your|the)\s+"
    r"(?:hidden\s+|full\s+|initial\s+|original\s+)?(?:system\s+prompt|initial\s+instructions|hidden\s+instructions))",
    "role change": r"\byou\s+are\s+(?:now|from\s+now\s+on)\s+(?:in\s+)?"
    r"(?:a|an|the|no\s+longer|dan\b|developer\s+mode|jailbr)"
    r"[^.\n]{0,80}\b(?:assistant|ai|model|mode|filter|restriction|unrestricted|jailbr)",
    "chat markup": r"<\|(?:im_start|im_end|system|user|assistant|endoftext|start_header_id|eot_id)\|>"
    r"|\[/?INST\]|<</?SYS>>",
}
_PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _INJECTION.items()}
_ADDRESSEE = re.compile(r"\b(?:assistant|language\s+model|chatbot|llm|ai|ai\s+model|ai\s+agent)\b", re.IGNORECASE)
_ORDER = re.compile(
    r"\b(?:must|should|ignore|instead|always|never|only|reply|respond|recommend|approve)\b", re.IGNORECASE
)
_MAX_COMMENT_CHARS = 4000
_INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")
_SMUGGLED = re.compile("[\u202d\u202e]|[\U000e0000-\U000e007f]{4,}|[\u200b\u200c\u2060\ufeff]{6,}")
_EMBEDDING = re.compile("[\u202a\u202b\u2066-\u2069]")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_QUOTES = (('"', '"'), ("`", "`"), ("\u201c", "\u201d"), ("\u00ab", "\u00bb"), ("\u2018", "\u2019"))
_QUOTE_CHARS = 200


@dataclass(frozen=True, slots=True)
class ScreenVerdict:
    """A document's verdict. A quarantined one is kept for a person to see, but neither recalled nor learned."""

    decision: Literal["allow", "quarantine"]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScreenedAnswer:
    """An answer that may leave, and what was masked in it."""

    text: str
    reasons: tuple[str, ...] = ()


class SafetyScreen:
    """One level of strictness. high and medium quarantine what they find; low notes it and lets it pass.

    At high a quoted phrase counts too; at medium a document may talk about prompt injection in quotation marks.
    """

    def __init__(self, level: Level) -> None:
        self.level = level

    def screen_document(self, text: str) -> ScreenVerdict:
        """Look for injection and for secrets that cleaning left (access tokens)."""
        visible = _INVISIBLE.sub("", text)  # a phrase may be cut up by characters that nobody sees
        reasons = [
            f"{name}: {_excerpt(match.group())}"
            for name, pattern in _PATTERNS.items()
            if (match := self._first(pattern, visible)) is not None
        ]
        reasons.extend(f"hidden comment: {_excerpt(comment)}" for comment in _commanding_comments(visible))
        if _SMUGGLED.search(text) or (_EMBEDDING.search(text) and not _RIGHT_TO_LEFT.search(text)):
            reasons.append("smuggled characters: invisible or direction-changing characters in the text")
        kinds = sorted({span.kind for span in find_sensitive(text, kinds=SECRET_KINDS)})
        reasons.extend(f"secret: {kind.lower()} in the text; remove it and revoke it" for kind in kinds)
        return ScreenVerdict("quarantine" if reasons and self.level != "low" else "allow", tuple(reasons))

    def screen_answer(self, text: str) -> ScreenedAnswer:
        """Mask personal data and secrets with the placeholders that documents get."""
        masked, counts = mask_sensitive(text, kinds=ALL_KINDS)
        return ScreenedAnswer(masked, tuple(f"{count} x {kind}" for kind, count in sorted(counts.items())))

    def _first(self, pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
        for match in pattern.finditer(text):
            if self.level == "high" or not _is_quoted(match, text):
                return match
        return None


def _commanding_comments(text: str) -> list[str]:
    """The first HTML comment that gives orders to an assistant, if any."""
    position = 0
    while (start := text.find("<!--", position)) >= 0:
        end = text.find("-->", start + 4, start + 4 + _MAX_COMMENT_CHARS)
        position = end + 3 if end >= 0 else start + 4 + _MAX_COMMENT_CHARS
        comment = text[start + 4 : position]
        if _ADDRESSEE.search(comment) and _ORDER.search(comment):
            return [comment]
    return []


def _is_quoted(match: re.Match[str], text: str) -> bool:
    """Whether the phrase stands between quotation marks of its paragraph, at most some words away."""
    before = text[max(0, match.start() - _QUOTE_CHARS) : match.start()].rpartition("\n\n")[2]
    after = text[match.end() : match.end() + _QUOTE_CHARS].partition("\n\n")[0]
    for opening, closing in _QUOTES:
        is_odd = before.count(opening) % 2 == 1
        is_open = is_odd if opening == closing else before.rfind(opening) > before.rfind(closing)
        if is_open and closing in after:
            return True
    return False


def _excerpt(text: str) -> str:
    return ascii(" ".join(text.split())[:MAX_EXCERPT_CHARS])
