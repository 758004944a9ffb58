"""Where personal data and secrets stand in a text: candidates by pattern, certainty by checksum and context.

In: texts. Out: spans with a kind, or the texts with typed placeholders like <EMAIL>. A union of plain patterns runs in RE2
over chunks of all texts, then over the lines of those it flags, then its parts over the lines left (linear by construction).
Python's `re`, whose patterns have bounded, unambiguous repeats, searches those lines for the kinds that they may hold. No
kind but PRIVATE_KEY crosses a line end, and context is looked for within the line.
Sources: Luhn, ISO/IEC 7812; IBAN, ISO 13616 (mod 97, lengths by country); public addresses, IANA's registries.
"""

import functools
import ipaddress
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

PII_KINDS = frozenset({"EMAIL", "PHONE", "IPV4", "IPV6", "CARD", "IBAN", "SSN", "AWS_KEY", "PRIVATE_KEY"})
"""What a document loses before it is kept."""
SECRET_KINDS = frozenset({"AWS_KEY", "PRIVATE_KEY", "TOKEN"})
"""What opens something to who reads it."""
ALL_KINDS = PII_KINDS | SECRET_KINDS

CHUNK_BYTES, FEW_CHARS = 2048, 256
NEW_LINE = 10
MAX_KEY_CHARS = 20_000


class Span(NamedTuple):
    """text[start:end] is of this kind."""

    kind: str
    start: int
    end: int


_GATES = {
    "TOKEN": r"gh[pousr]_\w{36}|github_pat_|glpat-|xox[abeprs]-|sk-[\w-]{20}|[sr]k_live_|AIza|npm_\w{36}|pypi-AgE|hf_\w{34}"
    r"|eyJ|hooks\.slack\.com/services/T|/api/webhooks/\d{17}|(?:Account|SharedAccess)Key=|GOCSPX-|ya29\.|SG\.[\w-]{22}\."
    r"|\d{8}:AA[\w-]{33}|do[opr]_v1_|shp(?:at|ca|pa|ss)_|dckr_pat_|dapi[0-9a-f]{32}|glsa_|lin_api_|rubygems_[0-9a-f]{48}"
    r"|NRAK-|PMAK-|AGE-SECRET-KEY-1|key-[0-9a-f]{32}",
    "AWS_KEY": r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}|(?i:secret_?access_?key)",
    "EMAIL": r"@[A-Za-z0-9\x80-\xff-]{1,189}\.",
    "IBAN": r"[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11}",
    "CARD": r"\d{13}|\d{4}[ -]\d{4}[ -]\d{4}|\d{4}[ -]\d{6}[ -]\d{4}",
    "SSN": r"\d{3}-\d{2}-\d{4}",
    "IPV4": r"\d\.\d{1,3}\.\d{1,3}\.\d",
    "IPV6": r"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]",
    "PHONE": r"\+[1-9][\d .()-]{7}|00[1-9]\d{0,2}[ (/-]|\(\d{3}\) ?\d{3}|\d{3}[-.]\d{3}[-.]\d{4}",
}
"""What every candidate of a kind has, for RE2."""

_PATTERNS = {
    "TOKEN": r"(?<![\w-])(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255}|glpat-[\w-]{20,64}"
    r"|xox[abeprs]-[A-Za-z0-9-]{10,255}|sk-[\w-]{20,255}|[sr]k_live_[A-Za-z0-9]{24,255}|AIza[\w-]{35}"
    r"|npm_[A-Za-z0-9]{36}|pypi-AgE[\w-]{50,500}|hf_[A-Za-z0-9]{34}"
    r"|eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,1000}"
    r"|(?:hooks\.slack\.com/services/T[A-Z0-9]{7,12}/B[A-Z0-9]{7,12}/[A-Za-z0-9]{20,32}"
    r"|(?:discord|discordapp)\.com/api/webhooks/\d{17,20}/[\w-]{60,100}"
    r"|AccountKey=[A-Za-z0-9+/]{86}==|SharedAccessKey=[A-Za-z0-9+/]{43}="
    r"|GOCSPX-[\w-]{28}|ya29\.[\w-]{20,1000}|SG\.[\w-]{22}\.[\w-]{43}|\d{8,10}:AA[\w-]{33}"
    r"|do[opr]_v1_[0-9a-f]{64}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}|dckr_pat_[\w-]{27,40}|dapi[0-9a-f]{32}"
    r"|glsa_[A-Za-z0-9]{32}_[0-9a-fA-F]{8}|lin_api_[A-Za-z0-9]{40}|rubygems_[0-9a-f]{48}|NRAK-[A-Z0-9]{27}"
    r"|PMAK-[0-9a-f]{24}-[0-9a-f]{34}|AGE-SECRET-KEY-1[0-9A-Z]{58}|key-[0-9a-f]{32})(?![\w-]))",
    "AWS_KEY": r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])"
    r"|(?i:secret_?access_?key)[\"']?[ \t]{0,8}[=:][ \t]{0,8}[\"']?(?P<value>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])",
    "EMAIL": r"(?<![\w%+-])[\w%+\u00c0-\u024f-][\w.%+\u00c0-\u024f-]{0,127}"
    r"@(?:[A-Za-z0-9\u00a1-\uffdc-]{1,63}\.){1,8}(?:[A-Za-z]{2,24}|[\u0370-\u1fff]{2,24})(?![A-Za-z0-9-])",
    "IBAN": r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}",
    "CARD": r"(?<![\w.-])(?:\d{13,19}|\d{4}(?P<s4>[ -])\d{4}(?P=s4)\d{4}(?P=s4)\d{1,7}"
    r"|\d{4}(?P<s6>[ -])\d{6}(?P=s6)\d{4,5})(?![\w-]|\.\d)",
    "SSN": r"(?<![\w.-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-]|\.\d)",
    "IPV4": r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w)",
    "IPV6": r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:])",
    "PHONE": r"(?<![\w+.])\+[1-9](?:[ .()-]{0,2}\d){7,14}(?![\w-]|\.\d)"
    r"|(?<![\w+.,:/-])00[1-9]\d{0,2}[ (/-](?:[ ()/-]{0,2}\d){7,12}(?![\w,:/-]|\.\d)"
    r"|(?<![\w(.-])(?:1[-. ]?)?\(\d{3}\) ?\d{3}[-. ]\d{4}(?![\w-]|\.\d)"
    r"|(?<![\w.-])(?:1[-. ])?\d{3}(?P<s3>[-.])\d{3}(?P=s3)\d{4}(?![\w-]|\.\d)",
}
_ANY_GATE = "|".join(_GATES.values())
_KEY_MARK = "-----BEGIN "
_KEY_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----")
_KEY_BODY = re.compile(r"(?:[A-Za-z0-9+/=\s]|\\n)*")

_IBAN_LENGTHS = {
    country: int(length)
    for length, countries in {
        "15": "NO", "16": "BE", "18": "DK FI FK FO GL NL SD", "19": "MK SI", "20": "AT BA EE KZ LT LU MN XK",
        "21": "CH HR LI LV", "22": "BG BH CR DE GB GE IE ME RS VA", "23": "AE GI IL IQ OM SO TL",
        "24": "AD CZ ES MD PK RO SA SE SK TN VG", "25": "LY PT ST", "26": "IS TR",
        "27": "BI DJ FR GR IT MC MR SM", "28": "AL AZ BY CY DO GT HU LB NI PL SV", "29": "BR EG PS QA UA",
        "30": "JO KW MU YE", "31": "MT SC", "32": "LC", "33": "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip

_VERSION_BEFORE = re.compile(
    r"(?:\b(?:versions?|ver|releases?|rev|build|section|sec|chapter|clause|since|oid|v)\b[\"'.]?\s*[:=]?\s*[\"']?"
    r"|[=~<>!]=\s?|§\s?|\w[-_/])$",
    re.IGNORECASE,
)
_NETWORK_BEFORE = re.compile(r"\b(?:ips?|ipv4|addr\w*|hosts?|server|clients?|from|dns|ping)\b|://", re.IGNORECASE)
_NO_MAIL_DOMAIN = frozenset({"png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "css", "js", "ts", "html"})


def find_sensitive(text: str, *, kinds: frozenset[str] = ALL_KINDS) -> list[Span]:
    """Spans in order, without overlaps."""
    return find_sensitive_all([text], kinds=kinds)[0]


def find_sensitive_all(texts: Sequence[str], *, kinds: frozenset[str] = ALL_KINDS) -> list[list[Span]]:
    """`find_sensitive` of each text; many at once take a tenth of the time."""
    keys = [list(_private_keys(text)) if "PRIVATE_KEY" in kinds and _KEY_MARK in text else [] for text in texts]
    found = [list(spans) for spans in keys]
    for number, start, line, plausible in _flagged_lines(texts):
        for span in find_in_line(line, offset=start, kinds=plausible):
            if span.kind in kinds and not any(key.start < span.end and span.start < key.end for key in keys[number]):
                found[number].append(span)
    return [sorted(spans, key=lambda span: span.start) for spans in found]


def mask_sensitive(text: str, *, kinds: frozenset[str] = ALL_KINDS) -> tuple[str, dict[str, int]]:
    """The text with placeholders like <EMAIL>, and how many of each kind were put."""
    return mask_sensitive_all([text], kinds=kinds)[0]


def mask_sensitive_all(texts: Sequence[str], *, kinds: frozenset[str] = ALL_KINDS) -> list[tuple[str, dict[str, int]]]:
    """`mask_sensitive` of each text."""
    masked = []
    for text, spans in zip(texts, find_sensitive_all(texts, kinds=kinds), strict=True):
        pieces: list[str] = []
        counts: dict[str, int] = {}
        position = 0
        for span in spans:
            pieces += (text[position : span.start], f"<{span.kind}>")
            position = span.end
            counts[span.kind] = counts.get(span.kind, 0) + 1
        masked.append(("".join((*pieces, text[position:])) if spans else text, counts))
    return masked


def is_luhn_valid(digits: str) -> bool:
    """Checksum of payment card numbers (ISO/IEC 7812-1, annex B)."""
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + index % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def _flagged_lines(texts: Sequence[str]) -> Iterator[tuple[int, int, str, frozenset[str]]]:
    """(number of the text, offset, line, kinds) of the lines that may hold something of these kinds."""
    if sum(map(len, texts)) <= FEW_CHARS:  # cheaper than to set up RE2
        for number, text in enumerate(texts):
            start = 0
            for line in text.split("\n"):
                yield number, start, line, ALL_KINDS
                start += len(line) + 1
        return
    encoded = [text.encode("utf-8", "replace") for text in texts]
    data = np.frombuffer(b"".join(part for one in encoded for part in (one, b"\n")), np.uint8)
    bounds = np.append(0, np.flatnonzero(data == NEW_LINE) + 1)
    is_chunk = np.diff(bounds // CHUNK_BYTES, prepend=-1) > 0  # lines together, of several texts too: each call costs
    is_chunk[-1] = True
    chunks = np.flatnonzero(is_chunk)
    in_flagged = np.repeat(_has(_cut(data, bounds[chunks]), _ANY_GATE), np.diff(chunks))
    candidates = _cut(data, bounds).filter(pa.array(in_flagged))
    is_flagged = _has(candidates, _ANY_GATE)
    candidates = candidates.filter(pa.array(is_flagged))
    lines = np.flatnonzero(in_flagged)[is_flagged]
    plausible = np.stack([_has(candidates, gate) for gate in _GATES.values()], axis=1)
    firsts = np.cumsum([0, *(len(one) + 1 for one in encoded)])
    numbers = np.searchsorted(firsts, bounds[lines], side="right") - 1
    last, position, num_chars = -1, 0, 0
    places = zip(numbers.tolist(), bounds[lines].tolist(), bounds[lines + 1].tolist(), plausible.tolist(), strict=True)
    for number, start, stop, which in places:
        if number != last:
            last, position, num_chars = number, int(firsts[number]), 0
        num_chars += len(data[position:start].tobytes().decode())
        position = start
        yield number, num_chars, data[start:stop].tobytes().decode(), frozenset(itertools.compress(_GATES, which))


def _cut(data: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64]) -> pa.LargeBinaryArray:
    """The bytes between each bound and the next one, not copied."""
    buffers = [None, pa.py_buffer(np.ascontiguousarray(bounds, np.int64)), pa.py_buffer(data)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(bounds) - 1, buffers)


def _has(pieces: pa.LargeBinaryArray, gate: str) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.match_substring_regex(pieces, gate).to_numpy(zero_copy_only=False), np.bool_)


@functools.cache
def _candidate(kinds: frozenset[str]) -> re.Pattern[str]:
    """Finds what may be of these kinds; where two match, the one that is named first in `_PATTERNS` counts."""
    chosen = (f"(?P<{kind}>{pattern})" for kind, pattern in _PATTERNS.items() if kind in kinds)
    return re.compile("|".join(chosen), re.ASCII)


def find_in_line(chunk: str, *, offset: int = 0, kinds: frozenset[str] = ALL_KINDS) -> Iterator[Span]:
    """Spans of a line, of these kinds but PRIVATE_KEY, by Python's `re` alone; `offset` is added to them."""
    position = 0
    pattern = _candidate(kinds)
    while (match := pattern.search(chunk, position)) is not None:
        kind = str(match.lastgroup)
        start, end = match.span("value") if kind == "AWS_KEY" and match["value"] else match.span()
        check = _CHECKS.get(kind)
        if check is not None:
            end = start + check(match, chunk)
        if end > start:
            yield Span(kind, offset + start, offset + end)
            position = end
        else:
            position = match.start() + 1


def _private_keys(text: str) -> Iterator[Span]:
    """PEM blocks with a body, closed or cut off. The mere header, as manuals show it, is none."""
    position = 0
    while (begin := _KEY_BEGIN.search(text, position)) is not None:
        position = begin.end()
        end = text.find("-----END ", begin.end(), begin.end() + MAX_KEY_CHARS)
        if end >= 0 and (close := text.find("-----", end + 9, end + 100)) >= 0:
            body, end = text[begin.end() : end], close + 5
        else:
            run = _KEY_BODY.match(text, begin.end(), begin.end() + MAX_KEY_CHARS)
            body, end = (run[0], run.end()) if run else ("", begin.end())
        if sum(character.isalnum() for character in body) >= 40:
            yield Span("PRIVATE_KEY", begin.start(), end)
            position = end


def _token_length(match: re.Match[str], chunk: str) -> int:
    """Placeholders such as ghp_xxxx and names such as sk-learn-contrib-something are no tokens."""
    token = match[0]
    is_plain_name = token.startswith("sk-") and not (
        re.search(r"\d", token) and re.search("[A-Z]", token) and re.search("[a-z]", token[3:])
    )
    return 0 if is_plain_name or len(set(token)) < 10 else len(token)


def _email_length(match: re.Match[str], chunk: str) -> int:
    is_remote = match[0].startswith("git@") and chunk[match.end() : match.end() + 1] in (":", "/")
    is_file = match[0].rpartition(".")[2].lower() in _NO_MAIL_DOMAIN
    return 0 if is_remote or is_file else len(match[0])


def _iban_length(match: re.Match[str], chunk: str) -> int:
    """Length of the account number that the candidate starts with, 0 if its checksum fails."""
    wanted = _IBAN_LENGTHS.get(match[0][:2])
    ends = [index + 1 for index, character in enumerate(match[0]) if character != " "]
    if wanted is None or len(ends) < wanted:
        return 0
    end = ends[wanted - 1]
    if chunk[match.start() + end : match.start() + end + 1].isalnum():
        return 0
    compact = match[0][:end].replace(" ", "")
    number = "".join(str(int(character, 36)) for character in compact[4:] + compact[:4])
    return end if int(number) % 97 == 1 else 0


def _card_length(match: re.Match[str], chunk: str) -> int:
    digits = re.sub(r"\D", "", match[0])
    prefix, size = int(digits[:4]), len(digits)
    is_issued = (
        (prefix // 1000 == 4 and size in (16, 19))
        or ((5100 <= prefix <= 5599 or 2221 <= prefix <= 2720) and size == 16)
        or (prefix // 100 in (34, 37) and size == 15)
        or ((prefix == 6011 or prefix // 100 in (62, 65) or 6440 <= prefix <= 6499) and 16 <= size <= 19)
        or (3528 <= prefix <= 3589 and 16 <= size <= 19)
        or ((3000 <= prefix <= 3059 or prefix // 100 in (36, 38, 39)) and size == 14)
    )
    return len(match[0]) if is_issued and is_luhn_valid(digits) else 0


def _ipv4_length(match: re.Match[str], chunk: str) -> int:
    """Only addresses that lead to someone: public ones that are no version or section number.

    Four small numbers are a version unless a word of networks stands before: .06 % of the addresses look so.
    """
    before = chunk[max(0, match.start() - 32) : match.start()]
    is_small = max(map(int, match[0].split("."))) < 40
    if _VERSION_BEFORE.search(before) or (is_small and not _NETWORK_BEFORE.search(before)):
        return 0
    return _public_length(match[0])


def _ipv6_length(match: re.Match[str], chunk: str) -> int:
    return _public_length(match[0])


def _public_length(address: str) -> int:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return 0
    return len(address) if parsed.is_global and not parsed.is_multicast else 0


def _phone_length(match: re.Match[str], chunk: str) -> int:
    """Added lines of a diff also begin with a plus: dates, addresses, decimals and lists of numbers are no phones; nor are
    columns of numbers that are filled with zeros."""
    groups = re.findall(r"\d+", match[0])
    if match[0].startswith("00"):
        is_area = len(groups) >= 3 or len(groups[1]) >= 8
        return len(match[0]) if is_area and not any(group.startswith("00") for group in groups[1:]) else 0
    if not match[0].startswith("+"):
        return len(match[0])
    num_digits = sum(map(len, groups))
    is_plain = len(groups) == 1 and num_digits >= 10
    is_grouped = 2 <= len(groups) <= 7 and max(map(len, groups)) >= 2 and num_digits >= 8
    is_date = re.match(r"\+\d{4}-\d{2}-\d{2}", match[0]) is not None
    is_dotted = re.fullmatch(r"\+\d+(?:\.\d+|(?:\.\d{1,3}){3})", match[0]) is not None
    return len(match[0]) if (is_plain or is_grouped) and not is_date and not is_dotted else 0


_CHECKS: dict[str, Callable[[re.Match[str], str], int]] = {
    "TOKEN": _token_length,
    "EMAIL": _email_length,
    "IBAN": _iban_length,
    "CARD": _card_length,
    "IPV4": _ipv4_length,
    "IPV6": _ipv6_length,
    "PHONE": _phone_length,
}
"""By kind: length of the certain part of a candidate, 0 if it is none. Kinds without a check are certain."""
