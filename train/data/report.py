"""What a run did to its documents: a funnel, the rules that dropped them, duplicates, languages, tokens.

In: the facts that jobs committed. Out: report.json, and report.html, a page that needs nothing from outside. Both depend on
the inputs and the configuration alone; times are in run.json.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jinja2
from pydantic import BaseModel, ConfigDict, Field

REPORT_VERSION = 2
JSON_NAME, HTML_NAME = "report.json", "report.html"
QUALITY_BINS = 10
OUT = "out"
"""Step of the funnel that holds what the run gives."""


class FunnelRow(BaseModel):
    """Documents that left at one step, or that were there; `tokens` is estimated where they were never tokenised. `pieces`:
    lines or paragraphs that left, of documents that stayed."""

    model_config = ConfigDict(extra="forbid")

    step: str
    documents: int
    chars: int
    tokens: int
    is_estimate: bool = True
    pieces: int = 0


class SourceRow(BaseModel):
    """One source: what was read of it and what came out."""

    model_config = ConfigDict(extra="forbid")

    name: str
    kind: str
    units: int
    input_bytes: int
    documents_read: int
    documents_out: int
    tokens_out: int
    losses: int
    lost_bytes: int


class PipelineReport(BaseModel):
    """The whole run."""

    model_config = ConfigDict(extra="forbid")

    version: int = REPORT_VERSION
    config_sha256: str
    funnel: list[FunnelRow]
    """Read, then one row per rule (a document counts where the first of its rules is) and one for repeated pieces, then out;
    then what of it is in no sequence."""
    responses: dict[str, int]
    """Of web archives: `pages` that were read, `truncated` ones among them, and responses passed over by why
    (CommonCrawlProcessor)."""
    rules: dict[str, int]
    """Documents that broke each rule; one document may stand under several."""
    cleaning: dict[str, int]
    """What the cleaner did: placeholders by kind, repairs."""
    duplicates: dict[str, Any]
    """Exact and near ones, groups, comparisons left out in the run and with the index, and `estimate` (DedupEstimate)."""
    languages: dict[str, int]
    """Documents out, by language."""
    quality: list[int] = Field(min_length=QUALITY_BINS, max_length=QUALITY_BINS)
    """Documents out, by tenths of the quality score."""
    sources: list[SourceRow]
    documents_out: int
    tokens_out: int
    """Tokens of all documents, each with its end-of-document token."""
    sequences: int
    padding_tokens: int
    dropped_tokens: int
    """Of the run's end, which packing.tail = "drop" leaves out."""
    shards: int
    losses: int
    lost_bytes: int


def build_report(
    *,
    config_sha256: str,
    sources: Iterable[tuple[str, str]],
    units: Iterable[tuple[str, int, Mapping[str, int], Mapping[str, int]]],
    duplicates: Mapping[str, Any],
    packing: Mapping[str, int],
) -> PipelineReport:
    """`sources`: (name, kind); `units`: (source, input bytes, facts of `prepare`, facts of `finish`) for each unit."""
    total: Counter[str] = Counter()
    by_source = {name: Counter[str]() for name, _ in sources}
    for source, size_bytes, *facts in units:
        own = by_source[source]
        own.update({"units": 1, "input_bytes": size_bytes})
        for part in facts:
            total.update(part)
            own.update(part)
    rows = [
        SourceRow(name=name, kind=kind, **{field: by_source[name][field] for field in _SOURCE_FIELDS})
        for name, kind in sources
    ]
    return PipelineReport(
        config_sha256=config_sha256,
        funnel=_funnel(total, dropped_tokens=packing["dropped_tokens"]),
        responses=_by_prefix(total, "responses:"),
        rules=_by_prefix(total, "rule:"),
        cleaning=_by_prefix(total, "count:"),
        duplicates=dict(duplicates),
        languages=_by_prefix(total, "language:"),
        quality=[total[f"quality:{place}"] for place in range(QUALITY_BINS)],
        sources=rows,
        documents_out=total["documents_out"],
        tokens_out=total["tokens_out"],
        sequences=packing["sequences"],
        padding_tokens=packing["padding_tokens"],
        dropped_tokens=packing["dropped_tokens"],
        shards=packing["shards"],
        losses=total["losses"],
        lost_bytes=total["lost_bytes"],
    )


_SOURCE_FIELDS = ("units", "input_bytes", "documents_read", "documents_out", "tokens_out", "losses", "lost_bytes")


def _funnel(total: Mapping[str, int], *, dropped_tokens: int) -> list[FunnelRow]:
    tokens_per_char = total["tokens_out"] / total["chars_out"] if total["chars_out"] else 0.0

    def row(step: str, documents: int, chars: int) -> FunnelRow:
        return FunnelRow(step=step, documents=documents, chars=chars, tokens=round(chars * tokens_per_char))

    first = row("read", total["documents_read"], total["chars_read"])
    dropped = [row(rule, count, total[f"first_chars:{rule}"]) for rule, count in _by_prefix(total, "first:").items()]
    if joined := total["documents_joined"]:
        dropped.append(row("joined to others of their repository", joined, 0))
    if pieces := total["pieces_dropped"]:
        dropped.append(row("repeated pieces of documents that stay", 0, total["piece_chars_dropped"]))
        dropped[-1].pieces = pieces
    last = row(OUT, total["documents_out"], total["chars_out"])
    last.tokens, last.is_estimate = total["tokens_out"], False
    if not dropped_tokens:
        return [first, *dropped, last]
    tail = FunnelRow(step="of these in no sequence (packing.tail)", documents=0, chars=0, tokens=dropped_tokens)
    tail.is_estimate = False
    return [first, *dropped, last, tail]


def _by_prefix(total: Mapping[str, int], prefix: str) -> dict[str, int]:
    """The most frequent first; equal ones by name."""
    found = {name.removeprefix(prefix): count for name, count in total.items() if name.startswith(prefix) and count}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def render_html(report: PipelineReport) -> str:
    """The page. Everything that came from documents is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("train.data", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["percent"] = lambda value: "-" if value is None else f"{value:.1%}"
    return environment.get_template("report.html.j2").render(report=report)
