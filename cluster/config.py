"""The configuration of a whole system: one TOML file, one frozen object.

In flows a TOML file (configs/laptop.toml is the default); out flows a `SystemConfig` with absolute paths. Each section
is the configuration of one component and is documented there.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from autonomous.config import AutonomousConfig
from autonomous.ingest import IngestConfig
from memory.settings import MemorySettings
from serve.config import EngineConfig, HttpConfig, RAGConfig
from train.model.embedded import MODEL_CACHE
from train.toml_file import set_fields

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = REPOSITORY / "configs" / "laptop.toml"


class ConfigError(ValueError):
    """A configuration that cannot be used: names the field, the value and the fix."""


class ModelConfig(BaseModel):
    """The frozen base model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = "embedded"
    """`embedded`: SmolLM2-135M-Instruct from an installed package; otherwise a Hugging Face folder."""
    cache: Path = MODEL_CACHE
    """Where the embedded model is materialised, once for all systems of this user."""


class RayConfig(BaseModel):
    """The Ray cluster that `autonomous up` starts on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_cpus: int | None = Field(None, gt=0)
    """Logical CPUs of the node; None: as many as the machine has, at least 2."""
    num_gpus: int = Field(0, ge=0)
    """Logical GPUs of the node."""
    dashboard_host: str = "127.0.0.1"
    """Address of the Ray dashboard."""
    dashboard_port: int = Field(0, ge=0, le=65535)
    """0 takes a free port; `autonomous status` prints it."""
    object_store_bytes: int = Field(256 << 20, ge=80 << 20)
    """Shared memory of Ray's object store, bytes. Only small messages pass through it here."""
    start_timeout_s: float = Field(300.0, gt=0)
    """Give up on bring-up after this long."""


class SystemConfig(BaseModel):
    """Everything that `autonomous up` needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Path("~/.autonomous/laptop")
    """Folder of all state: memory, versions, ledger, latch, logs. On a cluster: shared storage."""
    model: ModelConfig = ModelConfig()
    ray: RayConfig = RayConfig()
    http: HttpConfig = HttpConfig()
    engine: EngineConfig = EngineConfig()
    rag: RAGConfig = RAGConfig()
    memory: MemorySettings = MemorySettings()
    ingest: IngestConfig = IngestConfig()
    agent: AutonomousConfig = AutonomousConfig()

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        home = Path(os.path.expandvars(home)).expanduser()
        if not home.is_absolute():
            raise ValueError(
                f"home = '{home}' is relative, but actors and jobs run in other folders; "
                "write an absolute path or one that starts with ~"
            )
        return home.resolve()

    @model_validator(mode="after")
    def _adapters_fit_the_engine(self) -> "SystemConfig":
        if self.agent.learning.lora_r > self.engine.max_lora_rank:
            raise ValueError(
                f"agent.learning.lora_r = {self.agent.learning.lora_r} is larger than engine.max_lora_rank = "
                f"{self.engine.max_lora_rank}; raise engine.max_lora_rank or lower lora_r"
            )
        if self.agent.learning.target == "weights" and self.engine.max_weights < 2:
            raise ValueError(
                f"agent.learning.target = 'weights' with engine.max_weights = {self.engine.max_weights}: the version that "
                "serves and its candidate are in memory at once; set it to 2 or more"
            )
        return self


def load_config(path: Path, *, overrides: Mapping[str, Any] | None = None) -> SystemConfig:
    """Read a TOML file. `overrides` are dotted names ("http.port") and win over the file.

    Raises ConfigError with one sentence per problem.
    """
    path = path.expanduser()
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"no configuration at {path}; give another with --config, for example {DEFAULT_CONFIG}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    set_fields(raw, overrides or {}, error=ConfigError)
    try:
        return SystemConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentences(path, error))) from error


def _sentences(path: Path, error: ValidationError) -> list[str]:
    sentences = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"]) or "configuration"
        if problem["type"] == "extra_forbidden":
            sentences.append(f"{path}: {field} is not a known setting; remove it or check its spelling")
        else:
            sentences.append(f"{path}: {field} = {problem['input']!r}: {problem['msg']}")
    return sentences
