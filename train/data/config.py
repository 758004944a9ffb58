"""PipelineConfig: one run of the token pipeline, from sources to packed tokens; read from a TOML file.

Each section is the configuration of one component and is documented there. Paths may begin with ~; relative ones are taken
from the folder of the configuration file.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from train.data.clean import CleanConfig
from train.data.common_crawl import CommonCrawlConfig
from train.data.decontaminate import DecontaminationConfig
from train.data.dedup import DedupConfig
from train.data.language import LanguageConfig
from train.data.line_dedup import LineDedupConfig
from train.data.quality import QualityConfig
from train.data.source_code import CodeConfig
from train.data.source_config import SourceConfig
from train.data.tokenizer import TokenizerConfig
from train.toml_file import absolute_path, explain, read_toml, with_absolute_locations


class DataConfigError(ValueError):
    """A configuration that cannot be used: names the field, the value and the fix."""


class EvaluationSet(BaseModel):
    """Texts that no training document may contain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Stands in the reasons of removed documents."""
    path: str = Field(min_length=1)
    """JSONL or plain text."""
    fields: tuple[str, ...] = ("text",)
    """JSONL: the fields whose texts count."""


class PackingConfig(BaseModel):
    """How documents become sequences of equal length."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence_length: int = Field(2048, ge=8)
    """Tokens of a sequence."""
    sequences_per_shard: int = Field(8192, ge=1)
    """Sequences of one file."""
    order: Literal["input", "best_fit"] = "input"
    """`input`: one stream of documents, cut every sequence_length tokens. `best_fit`: within a unit documents are ordered so
    that few are cut, at the price of some padding (arXiv:2404.10830)."""
    tail: Literal["pad", "drop"] = "pad"
    """What happens to the run's last tokens, which do not fill a sequence."""
    repository_order: Literal["dependencies", "path", "off"] = "dependencies"
    """Code: files of a repository are joined to documents of at most code.max_chars, what is imported first
    (arXiv:2401.14196, section 2.2), or by path. `off`: every file is a document."""


class IndexConfig(BaseModel):
    """Documents of earlier runs, which count as known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path | None = None
    """Folder of the index (local). None: the run knows only itself. The index holds signatures and no texts: a near duplicate
    of a known document is told by the estimate alone, whose standard error at similarity .8 is .035."""


class PipelineConfig(BaseModel):
    """One run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: str = Field(min_length=1)
    """Folder of the run: a local path or a URI."""
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """What is read, in this order."""
    web: CommonCrawlConfig = CommonCrawlConfig()
    code: CodeConfig = CodeConfig()
    clean: CleanConfig = CleanConfig()
    language: LanguageConfig = LanguageConfig()
    quality: QualityConfig = QualityConfig()
    evaluation_sets: tuple[EvaluationSet, ...] = ()
    """What is kept out of training."""
    decontamination: DecontaminationConfig = DecontaminationConfig()
    dedup: DedupConfig = DedupConfig()
    index: IndexConfig = IndexConfig()
    line_dedup: LineDedupConfig = LineDedupConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    packing: PackingConfig = PackingConfig()
    batch_documents: int = Field(512, ge=1)
    """Documents that are worked on at once."""
    keep_work: bool = False
    """Keep the intermediate files of a finished run."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for field, names in (
            ("sources", [source.name for source in self.sources]),
            ("evaluation_sets", [one.name for one in self.evaluation_sets]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{field}: the name {twice[0]!r} stands twice; give each its own")
        return self

    def written(self) -> dict[str, Any]:
        """What was set, as JSON that can be read again; where a run writes and what it keeps beside is left out."""
        return self.model_dump(mode="json", exclude_unset=True, exclude=_INDECISIVE)

    def sha256(self) -> str:
        """Hash of all that decides what a run writes, defaults included."""
        return hash_json(self.model_dump(mode="json", exclude=_INDECISIVE))


_INDECISIVE = {"output", "keep_work"}


def hash_json(value: Any) -> str:
    """SHA-256 in hex; the order of keys is nothing."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def load_pipeline_config(
    path: Path, *, output: str | None = None, overrides: Mapping[str, Any] | None = None
) -> PipelineConfig:
    """Read a TOML file. `output`, if given, is taken instead of the file's, and from the current folder if it is relative;
    `overrides` replaces top-level fields. Raises DataConfigError naming the file, the field, the fix.
    """
    path = Path(path)
    data = read_toml(path, error=DataConfigError)
    folder = path.resolve().parent
    data |= dict(overrides or {})
    if output:
        data["output"] = output if "://" in output else os.path.abspath(Path(output).expanduser())
    try:
        return PipelineConfig.model_validate(_with_absolute_paths(data, folder))
    except ValidationError as error:
        raise DataConfigError(explain(path, error)) from error


def _with_absolute_paths(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    if "output" in data:
        data["output"] = absolute_path(data["output"], folder=folder)
    for section, field in (("sources", "location"), ("evaluation_sets", "path")):
        if section in data:
            data[section] = with_absolute_locations(data[section], field=field, folder=folder)
    for section, field in (("index", "path"), ("tokenizer", "folder")):
        if isinstance(data.get(section), dict) and field in data[section]:
            data[section] = data[section] | {field: absolute_path(data[section][field], folder=folder)}
    return data
