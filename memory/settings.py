"""The section [memory] of a system's configuration: sizes, where the stores lie, and what consolidation may do."""

from pydantic import BaseModel, ConfigDict, Field

from memory.consolidate import ConsolidationConfig
from memory.enrichment import EnrichmentConfig
from memory.management import ContextConfig
from memory.rag_index import IndexConfig
from memory.semantic import SemanticConfig
from memory.types import Trust
from memory.working import WorkingConfig


class MemorySettings(BaseModel):
    """Sizes and policies of all stores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    capacity: int = Field(100_000, gt=0)
    """Most episodes kept, over all shards; beyond it the least salient go first."""
    num_shards: int = Field(1, ge=1, le=64)
    """Actors that hold the episodes; more than one deals them by their words, with the results of one."""
    database: str = ""
    """URL of a PostgreSQL database with pgvector instead of files: postgresql://user@host/name, the password from
    PGPASSWORD or ~/.pgpass."""
    index: IndexConfig = IndexConfig()
    source_trust: Trust = Trust.STANDARD
    """Of a source that nobody has spoken for. 1, untrusted: all it says waits until it is released."""
    hold_on_alarm: bool = True
    """Hold back a source that contradicts many facts of others until a person settles the alarm."""
    alarm_facts: int = Field(SemanticConfig.model_fields["alarm_facts"].default, gt=0)
    """See SemanticConfig."""
    alarm_share: float = Field(SemanticConfig.model_fields["alarm_share"].default, gt=0, le=1)
    """See SemanticConfig."""
    enrich: bool = False
    """Let the serving model read facts that no sentence pattern finds, beside the writes."""
    enrichment: EnrichmentConfig = EnrichmentConfig()
    context: ContextConfig = ContextConfig()
    consolidation: ConsolidationConfig = ConsolidationConfig()
    working: WorkingConfig = WorkingConfig()
