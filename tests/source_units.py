"""Sources at a place, and what their work units give, for the tests of units, listing and access."""

from pathlib import Path
from typing import Any, NamedTuple

from tests.source_items import Item
from train.data.common_crawl import CommonCrawlConfig
from train.data.document import Rejected
from train.data.source_code import CodeConfig
from train.data.source_config import SourceConfig
from train.data.units import plan_units, read_unit


class ReadSources(NamedTuple):
    """What reading a unit needs of a run's configuration."""

    sources: tuple[SourceConfig, ...]
    web: CommonCrawlConfig = CommonCrawlConfig()
    code: CodeConfig = CodeConfig()


def source_at(location: Path | str, kind: str = "text", **fields: Any) -> SourceConfig:
    """A source of this name: "source"."""
    return SourceConfig.model_validate({"name": "source", "kind": kind, "location": str(location), **fields})


def read_source(source: SourceConfig) -> list[Item]:
    """All that its units give."""
    return [item for unit in plan_units([source]) for item in read_unit(unit, ReadSources((source,)))]


def refusals_of(source: SourceConfig) -> dict[str, str]:
    """Path and reason of what was no document."""
    return {item.path: item.reason for item in read_source(source) if isinstance(item, Rejected)}
