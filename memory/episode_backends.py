"""Where an EpisodicMemory lies: its configuration, and the opening of its rows and indexes in SQLite or PostgreSQL."""

import logging
import uuid
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from memory.backends import open_tables
from memory.embed import Embedder
from memory.episode_index import SQLITE_SCHEMA, EpisodeIndex, SqliteEpisodeIndex
from memory.episode_rows import INDEXED, MAX_TEXT_CHARS, SCHEMA_VERSION
from memory.rag_index import IndexConfig
from memory.store import Database, SqlDatabase

logger = logging.getLogger(__name__)


class EpisodicConfig(BaseModel):
    """Bounded store of experiences with vector and keyword recall."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    """Holds episodic.db (the truth) and episodic.index (rebuildable). One process at a time should write to it."""
    database: str = ""
    """URL of a PostgreSQL database with pgvector, postgresql://user@host/name, instead of files in the folder. The password
    comes from PGPASSWORD or ~/.pgpass. Several processes may write to it."""
    namespace: str = "episodic"
    """The schema there."""
    capacity: int = Field(100_000, gt=0)
    """Most episodes kept; beyond it repeats go first, then the least salient, the oldest of equal ones."""
    max_text_chars: int = Field(MAX_TEXT_CHARS, gt=0)
    """Of one passage. The embedder sees some 1,000 of them."""
    index: IndexConfig = IndexConfig()


def open_backend(config: EpisodicConfig, *, embedder: Embedder) -> tuple[SqlDatabase, EpisodeIndex]:
    """The rows, and the index in step with them. Raises StoreProblem."""
    schema = SQLITE_SCHEMA
    if config.database:
        from memory.episode_index_postgres import POSTGRES_SCHEMA

        schema = POSTGRES_SCHEMA
    database = open_tables(
        schema, version=SCHEMA_VERSION, path=config.folder / "episodic.db", url=config.database,
        namespace=config.namespace, vector=f"vector({embedder.dimension:d})",
    )  # fmt: skip
    try:
        return database, _open_index(database, config, embedder=embedder)
    except BaseException:
        database.close()
        raise


def _open_index(database: SqlDatabase, config: EpisodicConfig, *, embedder: Embedder) -> EpisodeIndex:
    identity, dimension = _claim(database, embedder=embedder), embedder.dimension
    if isinstance(database, Database):
        path = config.folder / "episodic.index"
        return SqliteEpisodeIndex.open(database, path, dimension=dimension, identity=identity, config=config.index)
    from memory.episode_index_postgres import PostgresEpisodeIndex
    from memory.postgres import PostgresDatabase

    assert isinstance(database, PostgresDatabase)
    return PostgresEpisodeIndex(database, dimension=dimension, config=config.index)


def _claim(database: SqlDatabase, *, embedder: Embedder) -> str:
    """Name the store and its embedder; vectors that another embedder made become pending. The index's identity."""
    name = f"{embedder.name}/{embedder.dimension}"
    with database.write() as connection:
        for key, value in (("store_id", uuid.uuid4().hex), ("embedder", name)):
            connection.execute(
                "INSERT INTO meta(key, value) VALUES(:key, :value) ON CONFLICT DO NOTHING", {"key": key, "value": value}
            )
        meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        if meta["embedder"] != name:
            num_dropped = connection.execute(f"UPDATE episode SET embedding = NULL WHERE {INDEXED}").rowcount
            connection.execute("UPDATE meta SET value = :name WHERE key = 'embedder'", {"name": name})
            logger.warning(
                "embedder changed from %s to %s: embedding %d episodes again", meta["embedder"], name, num_dropped
            )
    return f"{meta['store_id']} {name}"
