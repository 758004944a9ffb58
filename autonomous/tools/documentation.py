"""Documentation look-up: the passages of the memory that answer a question, with where they stand.

In: a question, and sources if it is not to be all of them. Out: numbered passages, best first, and their citations. Only what
recall may find is found: episodes that wait for a person are not.
"""

from pydantic import Field

from autonomous.tools.tool import (
    Arguments,
    Citation,
    Retrieve,
    ToolArguments,
    ToolResult,
    parse_arguments,
    schema_of,
)
from memory.types import EpisodeFilter, Guard

MAX_PASSAGES = 20


class DocumentationArguments(ToolArguments):
    """Of the look-up."""

    query: str = Field(min_length=1, max_length=4000)
    """What is looked for, in words."""
    k: int | None = Field(None, ge=1, le=MAX_PASSAGES)
    """Most passages."""
    sources: list[str] | None = Field(None, max_length=100)
    """Passages of these sources alone, by their names."""


class DocumentationLookup:
    """See the module. Passages below `min_cosine` are left out, unless sources are named: whoever names them wants them."""

    name = "documentation"
    description = "Finds passages of the stored documents that answer a question. Use it for facts."
    parameters = schema_of(DocumentationArguments)

    def __init__(self, retrieve: Retrieve, *, num_passages: int, min_cosine: float) -> None:
        self._retrieve = retrieve
        self._num_passages = num_passages
        self._min_cosine = min_cosine

    def call(self, arguments: Arguments, *, timeout_s: float, guard: Guard) -> ToolResult:
        """See Tool."""
        del timeout_s  # recall takes milliseconds
        asked = parse_arguments(DocumentationArguments, arguments)
        guard()
        hits = self._retrieve(
            asked.query,
            k=asked.k or self._num_passages,
            min_cosine=self._min_cosine if asked.sources is None else -1.0,
            where=EpisodeFilter(source_ids=None if asked.sources is None else tuple(asked.sources)),
        )
        if not hits:
            return ToolResult("No stored passage answers this.", is_empty=True, details={"num_passages": 0})
        passages = [
            f"[{number}] {' '.join(hit.episode.title.split())}\n{hit.episode.text.strip()}"
            for number, hit in enumerate(hits, start=1)
        ]
        citations = tuple(Citation(hit.episode.title, hit.episode.id, hit.episode.source_id) for hit in hits)
        return ToolResult("\n\n".join(passages), citations, details={"num_passages": len(hits)})
