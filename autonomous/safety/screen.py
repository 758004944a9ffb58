"""The safety screen: what may not come in as knowledge, and what may not go out in an answer.

Deterministic and without a model. In: text. Out: a verdict with its reasons, or the text with secrets masked. A screen is
a filter, not a proof: it catches the common phrases of prompt injection (OWASP LLM01), smuggled characters and live
secrets. Every version is judged by the gates as well.
"""

import re
from dataclasses import dataclass
from typing import Literal

from train.data.pii import ALL_KINDS, SECRET_KINDS, find_sensitive, mask_sensitive

Level = Literal["low", "medium", "high"]

MAX_EXCERPT_CHARS = 60

_INJECTION = {
    "override": r"\b(?:ignore|disregard|forget|override)\s+(?:all\s+|any\s+|the\s+|your\s+|of\s+|my\s+){0,3}"
    r"(?:previous|prior|earlier|preceding|above|foregoing)\s+(?:instructions?|prompts?|rules|directions|messages?)",
    "exfiltration": r"\b(?:reveal|print|repeat|show|output|leak)\s+(?:me\s+)?(?:your|the)\s+"
    r"(?:hidden\s+|full\s+|initial\s+|original\s+)?(?:system\s+prompt|initial\s+instructions|hidden\s+instructions)",
    "role change": r"\byou\s+are\s+(?:now|from\s+now\s+on)\s+(?:in\s+)?(?:a|an|the|no\s+longer|dan\b|developer\s+mode|jailbr)"
    r"[^.\n]{0,80}\b(?:assistant|ai|model|mode|filter|restriction|unrestricted|jailbr)",
    "chat markup": r"<\|(?:im_start|im_end|system|user|assistant|endoftext|start_header_id|eot_id)\|>"
    r"|\[/?INST\]|<</?SYS>>",
    "hidden comment": r"<!--[^>]{0,400}\b(?:assistant|language\s+model|chatbot|llm|ai\s+model)\b[^>]{0,400}"
    r"\b(?:must|should|ignore|instead|always|never)\b",
    "smuggled characters": r"[\u202a-\u202e\u2066-\u2069]|[\U000e0000-\U000e007f]{4,}|[\u200b\u200c\u2060\ufeff]{6,}",
}
_PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _INJECTION.items()}
_QUOTES = "\"'`“”‘’«»"


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
        reasons = [
            f"{name}: {_excerpt(match)}"
            for name, pattern in _PATTERNS.items()
            if (match := self._first(pattern, text)) is not None
        ]
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


def _is_quoted(match: re.Match[str], text: str) -> bool:
    before, after = text[: match.start()].rstrip()[-1:], text[match.end() : match.end() + 2]
    return before != "" and before in _QUOTES and any(mark in after for mark in _QUOTES)


def _excerpt(match: re.Match[str]) -> str:
    return ascii(" ".join(match.group().split())[:MAX_EXCERPT_CHARS])
