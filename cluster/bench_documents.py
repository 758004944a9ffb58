"""Documents about stations that do not exist: what no model has seen, with questions that only they answer."""

import random
from dataclasses import dataclass

_SYLLABLES = (
    "ka",
    "lo",
    "mi",
    "ter",
    "van",
    "dor",
    "sel",
    "qui",
    "bra",
    "nox",
    "pel",
    "zu",
    "rim",
    "fen",
    "gor",
    "tal",
)
_CITIES = ("Oslo", "Quito", "Hanoi", "Accra", "Perth", "Sofia", "Lima", "Turku", "Porto", "Nairobi")
FACTS_PER_DOCUMENT = 3
DOCUMENTS_PER_BATCH = 2
"""What one batch of the default size takes whole."""


@dataclass(frozen=True)
class MadeUp:
    """A made-up document, and a question that only it answers."""

    name: str
    text: str
    question: str


def make_documents(count: int, *, seed: int) -> list[MadeUp]:
    """Documents about stations that do not exist."""
    rng = random.Random(seed)
    documents = []
    for _ in range(count):
        name = "".join(rng.choices(_SYLLABLES, k=4)).capitalize() + f"-{rng.randrange(100, 1000)}"
        city, code = rng.choice(_CITIES), f"{rng.choice('ABCDEFGH')}{rng.randrange(1000, 10000)}"
        text = (
            f"{name} is a weather station in {city}. {name} requires the access code {code}. "
            f"The keeper of {name} writes a report every {rng.randrange(2, 30)} days."
        )
        documents.append(MadeUp(name, text, f"What does {name} require?"))
    return documents
