"""Who acts: names as people type them, compared so that one person has one name; and which names are the program's own.

A name is what its caller says it is: this compares names, it does not prove them (docs/security.md).
"""

import unicodedata

MACHINE_ACTORS = ("agent", "system")
"""Names under which the program itself acts, alone or before a colon ("agent:scheduler")."""
BY_API = "agent:api"
"""Who asked for a run over the API or from a program, where no person gave a name."""
_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp"})
"""Unicode categories of characters that nobody sees: controls, joiners, marks of direction."""


def person_of(name: str) -> str:
    """The name as it is compared: NFKC, case-folded, trimmed, one blank between words, no invisible characters.

    Source: Unicode Standard Annex 15 (NFKC) and section 3.13 (caseless matching, definition D146).
    """
    seen = "".join(
        character if character.isspace() or unicodedata.category(character) not in _INVISIBLE else ""
        for character in name
    )
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold())
    return " ".join(folded.split())


def is_same_person(name: str, other: str) -> bool:
    """Whether two names are one person's."""
    return person_of(name) == person_of(other)


def is_machine(name: str) -> bool:
    """Whether the program itself acts under this name, or nobody does."""
    return person_of(name).split(":", 1)[0].strip() in ("", *MACHINE_ACTORS)
