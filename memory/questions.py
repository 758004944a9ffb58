"""Questions on a fact whose answer is its object. Rules, no model: the same fact always gives the same questions.

`question_of` and `echo_of` are taught; `paraphrase_of` asks the same in other words and is kept out of training.
"""

import re

from memory.grammar import BE, DETERMINERS, LEMMA, PARTICIPLE, PAST_LEMMA, PERSON, PLURAL_VERBS, PREPOSITIONS
from memory.types import Fact

_MEASURES = {"cost": "the price", "weigh": "the weight", "last": "the duration", "mean": "the meaning"}


def question_of(fact: Fact) -> str:
    """A natural question whose answer is `fact.object`."""
    subject, (verb, *rest) = _in_question(fact), fact.relation.split()
    tail = " ".join(["", *rest])
    if verb in BE:
        asks = _circumstance(fact)
        if asks is not None:
            return f"{asks.capitalize()} {verb} {subject} {rest[0]}?"
        asks = "Who" if not rest and PERSON.match(fact.subject) else "What"
        return f"{asks} {verb} {subject}{tail}?"
    if verb == "must":
        return f"What must {subject}{tail}?"
    auxiliary, lemma = _auxiliary(verb)
    if lemma in {"cost", "weigh"}:
        return f"How much {auxiliary} {subject} {lemma}?"
    if lemma == "last":
        return f"How long {auxiliary} {subject} last?"
    return f"What {auxiliary} {subject} {lemma}{tail}?"


def paraphrase_of(fact: Fact) -> str:
    """The same question in other words: never equal to `question_of`, and kept out of training."""
    subject, (verb, *rest) = _in_question(fact), fact.relation.split()
    owned = re.fullmatch(r"(?:the|an?) ([^,]+?) of (.+)", subject)
    if fact.relation == "is" and owned and not PREPOSITIONS & set(owned[1].split()):
        return f"Which {owned[1]} does {owned[2]} have?"
    if verb in BE or verb == "must" or rest:
        asks = _circumstance(fact)
        if asks is not None:
            return f"Can you tell me {asks} {subject} {verb} {rest[0]}?"
        asks = "who" if not rest and PERSON.match(fact.subject) else "what"
        return f"Can you tell me {asks} {subject} {fact.relation}?"
    auxiliary, lemma = _auxiliary(verb)
    if lemma == "have":
        return f"Name what {subject} {verb}."
    if lemma in _MEASURES:
        return f"State {_MEASURES[lemma]} of {subject}."
    being = "was" if auxiliary == "did" else "is"
    return f"What {being} {PARTICIPLE[lemma]} {'in' if lemma in {'contain', 'include'} else 'by'} {subject}?"


def echo_of(fact: Fact) -> str:
    """An echo question: the statement with a question word in the object's place ("The valve is rated for what?")."""
    verb, *rest = fact.relation.split()
    if (asks := _circumstance(fact)) is not None:
        return f"{fact.subject} {verb} {rest[0]} {asks}?"
    asks = "what"
    if verb in BE:
        asks = "who" if not rest and PERSON.match(fact.subject) else "what"
    elif verb != "must":
        asks = {"cost": "how much", "weigh": "how much", "last": "how long"}.get(_auxiliary(verb)[1], "what")
    return f"{fact.subject} {fact.relation} {asks}?"


def _circumstance(fact: Fact) -> str | None:
    """ "when" for "was founded in | 1931", "where" for "is located in | ...", else None."""
    _, *rest = fact.relation.split()
    if len(rest) != 2 or rest[1] not in {"in", "on", "at"}:
        return None
    if re.match(r"(?:[A-Z][a-z]+ )?(?:1\d|20)\d\d\b", fact.object):
        return "when"
    return "where" if rest[0] in {"located", "stored", "kept"} else None


def _in_question(fact: Fact) -> str:
    """The subject as it stands inside a sentence: articles and plain plurals lose their capital."""
    first, _, rest = fact.subject.partition(" ")
    verb = fact.relation.split()[0]
    is_plural = verb in {"are", "were", "have"} or (verb in PLURAL_VERBS and verb not in LEMMA)
    is_common = is_plural and re.fullmatch(r"[A-Z][a-z]+[^s]s", first) and not re.search(r"[A-Z]", rest)
    if first.casefold() in DETERMINERS or is_common:
        return f"{first.lower()} {rest}".rstrip()
    return fact.subject


def _auxiliary(verb: str) -> tuple[str, str]:
    """("does", "require") for "requires", ("did", "found") for "founded", ("do", "support") for "support"."""
    if verb in LEMMA:
        return "does", LEMMA[verb]
    return ("did", PAST_LEMMA[verb]) if verb in PAST_LEMMA else ("do", verb)
