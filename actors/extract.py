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
_EXAMPLES = (
    ("Marie Curie, who was born in Warsaw, won two Nobel prizes.",
     "Marie Curie | was born in | Warsaw\nMarie Curie | won | two Nobel prizes"),
    ("Last year Kestrel sold its old server to a school in Ghent.", "Kestrel | sold its old server to | a school in Ghent"),
    ("In 2004 the council closed the harbour, because it was too shallow.",
     "the council | closed | the harbour\nthe harbour | was | too shallow"),
)  # fmt: skip
"""Without them a small model answers in sentences."""


class EngineExtractor:
    """Asks one replica. What it answers is checked against the text by the queue."""

    def extract(self, episode: Episode) -> list[tuple[str, str, str]]:
        """The triples of the answer's lines. Raises what the engine raises, TimeoutError."""
        handle: Any = ray_serve.get_deployment_handle(ENGINE_DEPLOYMENT, SERVE_APPLICATION)
        answer: str = handle.ask.remote(messages_for(episode.text), MAX_TOKENS).result(timeout_s=TIMEOUT_S)
        return read_triples(answer)


def messages_for(text: str) -> list[dict[str, str]]:
    """The question with its examples."""
    turns = [
        turn for example, lines in _EXAMPLES for turn in (("user", _PROMPT.format(text=example)), ("assistant", lines))
    ]
    return [{"role": role, "content": said} for role, said in (*turns, ("user", _PROMPT.format(text=text)))]


def read_triples(answer: str) -> list[tuple[str, str, str]]:
    """(subject, relation, object) of every line that has this form."""
    matches = (_LINE.match(line.strip()) for line in answer.splitlines())
    return [(match[1].strip(), match[2].strip(), match[3].strip()) for match in matches if match]
