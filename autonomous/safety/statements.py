"""Statement: what a sentence gives a value to, so that statements of it in other words can be compared.

"The access code of the Kestrel vault is KX-4471", "KX-4471 is the Kestrel vault's access code" and "The Kestrel vault has
the access code KX-4471" give one value to one slot: the content words of subject and attribute, as a set of stems. Two
statements contradict each other if their slots are equal and their values cannot both hold. A code, which is letters
and digits, is also found in a sentence that no pattern reads. No model: the same text, the same statements.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from autonomous.safety.slots import (
    STOP,
    WORD,
    Slot,
    differ,
    exact_words,
    is_name,
    is_number,
    shape_of,
    shapes_of,
    slot_of,
    stem_of,
)
from memory.claims import is_functional
from memory.facts import extract_facts, fact_of, facts_of
from memory.passages import split_sentences
from memory.types import Episode, Fact
from memory.words import concept_key

_NEAR_WORDS = 6
"""A code belongs to the slot words that it stands so near to."""

_ATTRIBUTE = {
    "costs": "price", "cost": "price", "weighs": "weight", "weigh": "weight", "lasts": "duration", "last": "duration",
    "is headquartered in": "headquarters",
    "is located in": "location", "is located at": "location", "lies in": "location", "lies at": "location",
    "is based in": "location", "was founded in": "founding", "was founded by": "founder",
    "was started by": "founder", "is led by": "leader",
    "is owned by": "owner", "was invented by": "inventor", "was discovered by": "discoverer",
    "was written by": "author", "was designed by": "designer", "was built by": "builder",
    "is licensed under": "licence", "is kept in": "storage", "is stored in": "storage",
    "was published in": "publication", "was released in": "release", "was built in": "construction",
    "is rated for": "rating", "defaults to": "default", "opens at": "opening", "closes at": "closing",
    "begins at": "begin", "starts at": "begin", "ends at": "end",
}  # fmt: skip
"""A relation of which a subject has one object at a time, and the noun that "the NOUN of SUBJECT is" says it with."""
_INVERSE = {
    "founded": "founder", "leads": "leader", "owns": "owner", "invented": "inventor", "discovered": "discoverer",
    "wrote": "author", "designed": "designer", "built": "builder",
}  # fmt: skip
"""Here the object is what has the attribute, and the subject its value."""
_BEING = frozenset({"is", "are", "was", "were", "is called", "was called"})
_ACTIVE = re.compile(r"\w+(?:s|ed)")
_COUNTED = frozenset({"has", "have", "uses", "use", "needs", "requires", "runs on", "listens on"})
"""With these a number or code belongs to the other words of the object: "uses port 7733"."""
_OWNED = re.compile(r"(?:the|an?)\s+\S[^,]*?\s+(?:of|for)\s+\S.*|\S.*['’]s?\s+\S+(?:\s\S+){0,2}", re.IGNORECASE)
_FILLER = frozenset(
    """one each per every new now today currently only just about around exactly precisely sell sold go pay buy
    charge amount total date back take place give get come stand run connect client user patient adult reach set
    know call name all full""".split()
)
"""Words that do not make another thing of what a sentence gives a number to: "one valve sells for 95 euros"."""
_VERSION = re.compile(r"\d+(?:\.\d+)+")
_CODE = re.compile(r"(?=[\w./:-]*\d)(?=[\w./:-]*[A-Za-z])[\w./:-]+")

_LEAD_IN = re.compile(
    r"^(?:(?:according to|contrary to|despite|since|as of|in|from|after|by|for|on|today|officially|actually|note|remember)"
    r"\b[^,.]{0,60},\s+"
    r"|(?:please\s+)?(?:note|remember|be aware)(?:\s+that)?[:,]?\s+"
    r"|(?:it|the truth|the fact|what everybody knows)\s+is\s+(?:[\w-]+\s+){0,2}?(?:known\s+|true\s+|a fact\s+)?that\s+"
    r"|(?:in fact|indeed|officially|actually|today|currently|now|correction|update|important|notice|fact|however)[,:]\s*"
    r"|(?:everybody|everyone|the staff|experts)\s+(?:knows?|agrees?|confirms?)\s+that\s+)",
    re.IGNORECASE,
)
_CHANGED = re.compile(
    r"^(?P<slot>.+?)\s+(?:was|were|is|has been|have been|has|had been)\s+(?:recently\s+|officially\s+)?"
    r"(?:changed|set|updated|corrected|raised|lowered|moved|increased|reduced|reset|switched)"
    r"(?:\s+from\s+.+?)?\s+to\s+(?P<value>[^,;.]+(?:\.\d+)*)"
)
_PASSIVE = re.compile(
    r"^(?P<subject>.+?)\s+"
    r"(?P<verb>(?:is|was)\s+(?:led|built|written|run|\w+ed)\s+by"
    r"|(?:is|was)\s+(?:called|headquartered in))"
    r"\s+(?P<value>[^,;.]+)"
)
_NAME = r"(?P<value>(?:[A-Z][\w.'’-]*)(?:\s+[A-Z][\w.'’-]*){0,3})"
_OFFICE = r"(?:(?:the|our|a)\s+)?(?:(?:new|current)\s+)?(?P<slot>[a-z][\w-]*(?:\s[a-z][\w-]*)?\s+(?:of|for)\s+[^,.]+?)"
_APPOSED = (
    re.compile(
        rf"\b{_NAME}\s+(?:has\s+)?(?:replaced|replaces|succeeded|succeeds)\s+[^,.]+?\s+as\s+{_OFFICE}(?=[,.]|$)"
    ),
    re.compile(rf"\b{_NAME}\s*,\s+{_OFFICE},"),
    re.compile(rf"\b(?i:the|our)\s+{_OFFICE},\s+{_NAME},"),
)
_ASKED = re.compile(r"(?:Q:\s*)?(?:What|Who|Which)\s+(is|was)\s+(.+?)\?\s*(?:A:\s*)?(.+)", re.IGNORECASE | re.DOTALL)
_NOT_BUT = re.compile(r"(?:,|\s+and)\s+not\s+[^,.]+(?:,|(?=\.))")
_NEGATED = (
    (re.compile(r"\b(is|are|was|were|must)\s+(?:not|never)\b"), r"\1"),
    (re.compile(r"\b(is|was)n['’]t\b"), r"\1"),
    (re.compile(r"\b(?:does not|doesn['’]t)\s+(\w+)"), r"\1s"),
    (re.compile(r"\b(?:do not|don['’]t)\s+(\w+)"), r"\1"),
    (re.compile(r"\b(?:no longer|never)\s+"), ""),
)
_PAST = re.compile(r"\b(?:was|were|had|formerly|previously|once|until|used to|old|retired|expired)\b", re.IGNORECASE)
_REPLACES = (
    r"(?:from|not|instead of|rather than|no longer|replaces?|replaced|forget|ignore)\s+(?:the\s+)?(?:\w+\s+){0,2}"
)


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence gives a slot a value, or denies a fact. `slot` None: the fact may hold beside others of its kind."""

    fact: Fact
    slot: Slot | None
    value: str
    is_denial: bool = False
    is_sure: bool = True
    """A subject has one such value at a time. Of a statement that is not, only a sure one says whether it contradicts."""

    @property
    def triple(self) -> tuple[str, str, str]:
        """Keys of subject, relation and object."""
        return concept_key(self.fact.subject), self.fact.relation, concept_key(self.fact.object)

    def contradicts(self, other: "Statement") -> bool:
        """Whether both cannot hold."""
        if self.is_denial != other.is_denial:
            return self.triple == other.triple or (self._is_about(other) and not differ(self.value, other.value))
        return not self.is_denial and self._is_about(other) and differ(self.value, other.value)

    def gives(self, value: str, sentence: str) -> bool:
        """Whether this very sentence states it, and gives the value to something for sure."""
        is_stated = self.is_sure and not self.is_denial and self.fact.sentence == sentence
        return is_stated and value.casefold() in exact_words(self.value)

    def agrees(self, other: "Statement") -> bool:
        """Whether both say the same."""
        if self.is_denial != other.is_denial:
            return False
        return self.triple == other.triple or (self._is_about(other) and not differ(self.value, other.value))

    def _is_about(self, other: "Statement") -> bool:
        if self.slot is None or other.slot is None or self.slot.is_past != other.slot.is_past:
            return False
        if not (self.is_sure or other.is_sure):
            return False
        mine, theirs = self.slot.words, other.slot.words
        if mine == theirs:
            return True
        # "the code of the Kestrel vault" for its access code, where the values are codes of one make
        is_part = (mine < theirs or theirs < mine) and len(mine ^ theirs) == 1 and min(len(mine), len(theirs)) > 2
        shapes = shapes_of(self.value) & shapes_of(other.value)
        return is_part and self.slot.names == other.slot.names and any("a" in shape for shape in shapes)


def statements_of(episode: Episode) -> list[Statement]:
    """What a passage states, and what it denies, each once."""
    found = [statement_of(fact) for fact in facts_of(episode)]
    for sentence in sentences_of(episode):
        found.extend(_restated(sentence, title=episode.title, episode_id=episode.id))
    return list({(one.fact.id, one.is_denial): one for one in reversed(found)}.values())[::-1]


def statement_of(fact: Fact) -> Statement:
    """The slot and the value of a fact."""
    subject, relation, object_ = fact.subject, fact.relation, fact.object
    if relation in _INVERSE:
        return Statement(fact, slot_of(object_, _INVERSE[relation]), subject)
    if relation in _ATTRIBUTE:
        return Statement(fact, slot_of(subject, _ATTRIBUTE[relation]), object_)
    if relation in _BEING:
        return _being(fact)
    if relation in _COUNTED and exact_words(object_) and not _VERSION.search(object_):
        return _counted(fact)
    return _acting(fact)


def _being(fact: Fact) -> Statement:
    """ "is" and "was": of what is owned, of what has an office, of what may be anything."""
    subject, object_, is_past = fact.subject, fact.object, fact.relation.startswith("w")
    if _OWNED.fullmatch(subject):
        return Statement(fact, slot_of(subject, is_past=is_past), object_)
    if re.match(r"the\s", object_) and _OWNED.fullmatch(object_) and is_name(subject):
        return Statement(fact, slot_of(object_, is_past=is_past), subject)  # "Bob Stone is the director of ..."
    return Statement(fact, slot_of(subject, is_past=is_past), object_, is_sure=False)


def _counted(fact: Fact) -> Statement:
    """ "uses port 7733" gives a number to a port, "has 4 lanes" to how many lanes there are."""
    words, values = WORD.findall(fact.object), exact_words(fact.object)
    rest = " ".join(word for word in words if word.casefold() not in values)
    count = ["number"] if words[0].casefold() in values else []
    return Statement(fact, slot_of(f"{fact.subject} {rest}", *count), " ".join(sorted(values)))


def _acting(fact: Fact) -> Statement:
    """ "Bob Stone directs the museum" and "is directed by": unsure, but for what is of one object at a time."""
    subject, relation, object_ = fact.subject, fact.relation, fact.object
    if match := re.fullmatch(r"(?:is|was) (\w+) by", relation):
        return Statement(fact, slot_of(subject, match[1]), object_, is_sure=False)
    if _ACTIVE.fullmatch(relation) and is_name(subject):
        return Statement(fact, slot_of(object_, relation), subject, is_sure=False)
    return Statement(fact, slot_of(subject, relation) if is_functional(fact) else None, object_)


def sentences_of(episode: Episode) -> list[str]:
    """Sentences; a question and its answer are one."""
    sentences: list[str] = []
    for sentence in split_sentences(" ".join(episode.text.split())):
        if sentences and sentences[-1].endswith("?"):
            sentences[-1] += f" {sentence}"
        else:
            sentences.append(sentence)
    return sentences


def other_code(sentence: str, belief: Statement) -> str | None:
    """The code that a sentence gives to a slot in the place of the believed one, if it gives one; patterns aside."""
    codes = {word.casefold() for word in _CODE.findall(belief.value)}
    if belief.slot is None or belief.slot.is_past or not codes or not belief.slot.names:
        return None
    words = list(WORD.finditer(sentence))
    said = {match.group().casefold() for match in words}
    is_known = bool(codes & said)
    if (is_known and not _is_replaced(sentence, codes)) or (not is_known and _PAST.search(sentence)):
        return None
    stems = [stem_of(match.group()) for match in words]
    missing = belief.slot.words - set(stems)
    if belief.slot.names & missing or len(missing) > len(belief.slot.words) // 2:
        return None
    shapes = {shape_of(code) for code in codes}
    ours = belief.slot.words | {stem_of(word) for word in WORD.findall(belief.value)}
    foreign = [
        place
        for place, match in enumerate(words)
        if match.group()[0].isupper() and stems[place] not in ours and not exact_words(match.group())
        if _begins_no_sentence(match, sentence)
    ]
    names = [place for place, stem in enumerate(stems) if stem in belief.slot.names]
    for place, match in enumerate(words):
        if match.group().casefold() in codes or shape_of(match.group()) not in shapes:
            continue
        near = min(abs(place - one) for one in names)
        is_nearest = near <= _NEAR_WORDS and not any(abs(place - one) <= near for one in foreign)
        if is_nearest or not foreign:  # else it is the code of what else is named
            return match.group()
    return None


def other_number(sentence: str, belief: Statement) -> str | None:
    """The number with the unit of the believed one that a sentence gives to a slot, if it is about nothing else.

    One slot word may be missing, the attribute; all others of the sentence are words that make no other thing of it.
    """
    believed = [word for word in WORD.findall(belief.value) if is_number(word)]
    if belief.slot is None or belief.slot.is_past or not belief.slot.names or len(believed) != 1 or not belief.is_sure:
        return None
    units = [stem_of(word) for word in WORD.findall(belief.value) if word not in believed]
    words = WORD.findall(sentence)
    stems = [stem_of(word) for word in words]
    missing = belief.slot.words - set(stems)
    numbers = [place for place, word in enumerate(words) if is_number(word)]
    if len(numbers) != 1 or believed[0] in words or len(missing) > 1 or belief.slot.names & missing:
        return None
    (place,) = numbers
    fillers = {stem_of(word) for word in _FILLER | STOP}
    is_alike = stems[place + 1 : place + 1 + len(units)] == units if units else len(words[place]) == len(believed[0])
    is_plain = set(stems) <= belief.slot.words | set(units) | fillers | {stems[place]}
    return words[place] if is_alike and is_plain and not _PAST.search(sentence) else None


def same_make_values(episode: Episode, belief: Statement) -> list[str]:
    """Codes and numbers of the make of a belief's value, in the sentences of a passage that share a name with its slot."""
    if belief.slot is None or len(exact_words(belief.value)) != 1:
        return []
    (believed,) = exact_words(belief.value)
    is_code, shape = bool(_CODE.fullmatch(believed)), shape_of(believed)
    found = []
    for sentence in sentences_of(episode):
        words = WORD.findall(sentence)
        stems = {stem_of(word) for word in words}
        if not belief.slot.names & stems if belief.slot.names else not belief.slot.words <= stems:
            continue
        for word in words:
            is_alike = shape_of(word) == shape and (is_code or len(word) == len(believed))
            if is_alike and word.casefold() != believed:
                found.append(word)
    return found


def _restated(sentence: str, *, title: str, episode_id: str) -> Iterator[Statement]:
    """What a sentence states under its lead-in, in passive voice, as an answer, as a change, or by a denial."""

    def read(text: str) -> list[Fact]:
        return extract_facts(text, title=title, episode_id=episode_id)

    plain = sentence
    while (shorter := _LEAD_IN.sub("", plain, count=1)) != plain and shorter:
        plain = shorter[0].upper() + shorter[1:]
    if asked := _ASKED.fullmatch(plain):
        answer = asked[3].strip().rstrip(".")
        plain = f"{asked[2][0].upper()}{asked[2][1:]} {asked[1]} {answer}."
    plain = _NOT_BUT.sub("", plain)
    if plain != sentence:
        yield from (statement_of(fact) for fact in read(plain))
    for pattern, relation in ((_CHANGED, "is"), (_PASSIVE, None)):
        if match := pattern.match(plain):
            slot = match["slot"] if relation else match["subject"]
            verb = relation or " ".join(match["verb"].split())
            fact = fact_of(slot, verb, match["value"].strip(), sentence=sentence, episode_id=episode_id)
            yield statement_of(fact)
    for pattern in _APPOSED:
        for match in pattern.finditer(sentence):
            told = fact_of(f"The {match['slot']}", "is", match["value"], sentence=sentence, episode_id=episode_id)
            yield statement_of(told)
    for pattern, positive in _NEGATED:
        if pattern.search(plain):
            for fact in read(pattern.sub(positive, plain, count=1)):
                yield replace(statement_of(fact), is_denial=True)


def _is_replaced(sentence: str, codes: set[str]) -> bool:
    told = "|".join(re.escape(code) for code in sorted(codes))
    after = r"\s+(?:is|was)\s+(?:wrong|outdated|false|incorrect|a mistake|obsolete)"
    return re.search(rf"{_REPLACES}(?:{told})\b|\b(?:{told}){after}", sentence, re.IGNORECASE) is not None


def _begins_no_sentence(match: re.Match[str], sentence: str) -> bool:
    before = sentence[: match.start()].rstrip()
    return bool(before) and before[-1] not in ".?!:"
