"""Facts out of texts by the model that serves: the extractor of the enrichment queue."""

import re
from typing import Any

from ray import serve as ray_serve

from actors.ports import ENGINE_DEPLOYMENT, SERVE_APPLICATION
from memory.types import Episode

TIMEOUT_S = 120.0
MAX_TOKENS = 200
_LINE = re.compile(r"^[-*\d.\s]*([^|]+)\|([^|]+)\|([^|]+)$")
_PROMPT = (
    "List the facts that the text states, one per line, as: subject | relation | object\n"
    "Use only words of the text. Write nothing else.\n\nText:\n{text}"
)


class EngineExtractor:
    """Asks one replica. What it answers is checked against the text by the queue."""

    def extract(self, episode: Episode) -> list[tuple[str, str, str]]:
        """The triples of the answer's lines. Raises what the engine raises, TimeoutError."""
        handle: Any = ray_serve.get_deployment_handle(ENGINE_DEPLOYMENT, SERVE_APPLICATION)
        messages = [{"role": "user", "content": _PROMPT.format(text=episode.text)}]
        answer: str = handle.ask.remote(messages, MAX_TOKENS).result(timeout_s=TIMEOUT_S)
        return read_triples(answer)


def read_triples(answer: str) -> list[tuple[str, str, str]]:
    """(subject, relation, object) of every line that has this form."""
    matches = (_LINE.match(line.strip()) for line in answer.splitlines())
    return [(match[1].strip(), match[2].strip(), match[3].strip()) for match in matches if match]
