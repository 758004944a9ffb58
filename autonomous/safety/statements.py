"""Statement: what a sentence gives a value to, so that statements of it in other words can be compared.

"The access code of the Kestrel vault is KX-4471", "KX-4471 is the Kestrel vault's access code" and "The Kestrel vault has
the access code KX-4471" give one value to one slot: the content words of subject and attribute, as a set of stems. Two
statements contradict each other if their slots are equal and their values cannot both hold. A code, which is letters
and digits, is also found in a sentence that no pattern reads. No model: the same text, the same statements.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from memory.claims import is_functional
from memory.facts import extract_facts, fact_of
from memory.passages import split_sentences
from memory.types import Episode, Fact
from memory.words import concept_key

MIN_OVERLAP = 0.5
"""Share of common words above which two wordings of a value say the same."""
_NEAR_WORDS = 6
"""A code belongs to the slot words that it stands so near to."""

_WORD = re.compile(r"[^\W_]+(?:[-.:/'’_][^\W_]+)*")
_STOP = frozenset(
    """a an the of in on at to for from with by and or as is are was were be been has have had it its this that these
    those which who what when where how than then into must do does did will would can may i you we they he she""".split()
)
_SYNONYM = {
    "passcode": "code", "pin": "code", "password": "code", "combination": "code", "cost": "price", "weigh": "weight",
    "fee": "price", "tariff": "price", "license": "licence", "colour": "color", "boss": "leader", "chief": "leader",
}  # fmt: skip
_ATTRIBUTE = {
    "costs": "price", "cost": "price", "weighs": "weight", "weigh": "weight", "lasts": "duration", "last": "duration",
    "is located in": "location", "is located at": "location", "lies in": "location", "lies at": "location",
    "is based in": "location", "was founded in": "founding", "was founded by": "founder", "is led by": "leader",
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
_COUNTED = frozenset({"has", "have", "uses", "use", "needs", "requires", "runs on", "listens on"})
"""With these a number or code belongs to the other words of the object: "uses port 7733"."""
_OWNED = re.compile(r"(?:the|an?)\s+\S[^,]*?\s+(?:of|for)\s+\S.*|\S.*['’]s?\s+\S+(?:\s\S+){0,2}", re.IGNORECASE)
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
    r"^(?P<subject>.+?)\s+(?P<verb>(?:is|was)\s+(?:led|owned|founded|invented|discovered|written|designed|built)\s+by)"
    r"\s+(?P<value>[^,;.]+)"
)
_ASKED = re.compile(r"(?:Q:\s*)?(?:What|Who|Which)\s+(is|was)\s+(.+?)\?\s*(?:A:\s*)?(.+)", re.IGNORECASE | re.DOTALL)
_NOT_BUT = re.compile(r"(?:,|\s+and)\s+not\s+[^,.]+(?:,|(?=\.))")
_NEGATED = (
    (re.compile(r"\b(is|are|was|were|must)\s+(?:not|never)\b"), r"\1"),
    (re.compile(r"\b(is|was)n['’]t\b"), r"\1"),
    (re.compile(r"\b(?:does not|doesn['’]t)\s+(\w+)"), r"\1s"),
    (re.compile(r"\b(?:do not|don['’]t)\s+(\w+)"), r"\1"),
    (re.compile(r"\bno longer\s+"), ""),
)
_PAST = re.compile(r"\b(?:was|were|had|formerly|previously|once|until|used to|old|retired|expired)\b", re.IGNORECASE)
_REPLACES = (
    r"(?:from|not|instead of|rather than|no longer|replaces?|replaced|forget|ignore)\s+(?:the\s+)?(?:\w+\s+){0,2}"
)


@dataclass(frozen=True, slots=True)
class Slot:
    """What has a value. `words` are stems; `names` those of them that are written with a capital or a digit."""

    words: frozenset[str]
    names: frozenset[str]
    is_past: bool = False
    """What was is no contradiction to what is."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence gives a slot a value, or denies a fact. `slot` None: the fact may hold beside others of its kind."""

    fact: Fact
    slot: Slot | None
    value: str
    is_denial: bool = False

    @property
    def triple(self) -> tuple[str, str, str]:
        """Keys of subject, relation and object."""
        return concept_key(self.fact.subject), self.fact.relation, concept_key(self.fact.object)

    def contradicts(self, other: "Statement") -> bool:
        """Whether both cannot hold."""
        if self.is_denial != other.is_denial:
            return self.triple == other.triple or (self._is_about(other) and not _differ(self.value, other.value))
        return not self.is_denial and self._is_about(other) and _differ(self.value, other.value)

    def agrees(self, other: "Statement") -> bool:
        """Whether both say the same."""
        if self.is_denial != other.is_denial:
            return False
        return self.triple == other.triple or (self._is_about(other) and not _differ(self.value, other.value))

    def _is_about(self, other: "Statement") -> bool:
        if self.slot is None or other.slot is None or self.slot.is_past != other.slot.is_past:
            return False
        mine, theirs = self.slot.words, other.slot.words
        if mine == theirs:
            return True
        # "the code of the Kestrel vault" for its access code, where the values are of one make
        is_part = (mine < theirs or theirs < mine) and len(mine ^ theirs) == 1 and min(len(mine), len(theirs)) > 2
        return is_part and self.slot.names == other.slot.names and bool(_shapes(self.value) & _shapes(other.value))


def statements_of(episode: Episode) -> list[Statement]:
    """What a passage states, and what it denies, each once."""
    told = extract_facts(episode.text, title=episode.title, episode_id=episode.id)
    found = [statement_of(fact) for fact in told]
    for sentence in sentences_of(episode):
        found.extend(_restated(sentence, title=episode.title, episode_id=episode.id))
    return list({(one.fact.id, one.is_denial): one for one in reversed(found)}.values())[::-1]


def statement_of(fact: Fact) -> Statement:
    """The slot and the value of a fact."""
    subject, relation, object_ = fact.subject, fact.relation, fact.object
    if relation in _INVERSE:
        return Statement(fact, _slot(object_, _INVERSE[relation]), subject)
    if relation in _ATTRIBUTE:
        return Statement(fact, _slot(subject, _ATTRIBUTE[relation]), object_)
    if relation in {"is", "are", "was", "were"}:
        is_past = relation in {"was", "were"}
        if _OWNED.fullmatch(subject):
            return Statement(fact, _slot(subject, is_past=is_past), object_)
        if (
            relation in {"is", "was"}
            and re.match(r"the\s", object_)
            and _OWNED.fullmatch(object_)
            and _is_name(subject)
        ):
            return Statement(fact, _slot(object_, is_past=is_past), subject)  # "Bob Stone is the director of ..."
    values = _exact(object_)
    if relation in _COUNTED and values and not _VERSION.search(object_):
        rest = " ".join(word for word in _WORD.findall(object_) if word.casefold() not in values)
        return Statement(fact, _slot(f"{subject} {rest}"), " ".join(sorted(values)))
    return Statement(fact, _slot(subject, relation) if is_functional(fact) else None, object_)


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
    words = list(_WORD.finditer(sentence))
    said = {match.group().casefold() for match in words}
    is_known = bool(codes & said)
    if (is_known and not _is_replaced(sentence, codes)) or (not is_known and _PAST.search(sentence)):
        return None
    stems = [_stem(match.group()) for match in words]
    missing = belief.slot.words - set(stems)
    if belief.slot.names & missing or len(missing) > len(belief.slot.words) // 2:
        return None
    shapes = {_shape(code) for code in codes}
    ours = belief.slot.words | {_stem(word) for word in _WORD.findall(belief.value)}
    foreign = [
        place
        for place, match in enumerate(words)
        if match.group()[0].isupper() and stems[place] not in ours and not _exact(match.group())
        if _begins_no_sentence(match, sentence)
    ]
    names = [place for place, stem in enumerate(stems) if stem in belief.slot.names]
    for place, match in enumerate(words):
        if match.group().casefold() in codes or _shape(match.group()) not in shapes:
            continue
        near = min(abs(place - one) for one in names)
        is_nearest = near <= _NEAR_WORDS and not any(abs(place - one) <= near for one in foreign)
        if is_nearest or not foreign:  # else it is the code of what else is named
            return match.group()
    return None


def same_make_values(episode: Episode, belief: Statement) -> list[str]:
    """Codes and numbers of the make of a belief's value, in the sentences of a passage that share a name with its slot."""
    if belief.slot is None or len(_exact(belief.value)) != 1:
        return []
    (believed,) = _exact(belief.value)
    is_code, shape = bool(_CODE.fullmatch(believed)), _shape(believed)
    found = []
    for sentence in sentences_of(episode):
        words = _WORD.findall(sentence)
        stems = {_stem(word) for word in words}
        if not belief.slot.names & stems if belief.slot.names else not belief.slot.words <= stems:
            continue
        for word in words:
            is_alike = _shape(word) == shape and (is_code or len(word) == len(believed))
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
    for pattern, positive in _NEGATED:
        if pattern.search(plain):
            for fact in read(pattern.sub(positive, plain, count=1)):
                yield replace(statement_of(fact), is_denial=True)


def _slot(text: str, *attribute: str, is_past: bool = False) -> Slot:
    words = [word for word in _WORD.findall(re.sub(r"['’]s?\b", "", text)) if word.casefold() not in _STOP]
    stems = frozenset(_stem(word) for word in words)
    names = frozenset(_stem(word) for word in words if word != word.lower() or any(c.isdigit() for c in word))
    return Slot(stems | {_stem(word) for one in attribute for word in one.split() if word not in _STOP}, names, is_past)


def _differ(first: str, second: str) -> bool:
    """Whether two values of one slot cannot both hold. A number and a name are values of different kinds."""
    exact, others = _exact(first), _exact(second)
    if exact and others:
        return not (exact <= others or others <= exact)
    if exact or others:
        return False
    words, more = ({_stem(word) for word in _WORD.findall(one)} - _STOP for one in (first, second))
    if not words or not more or words <= more or more <= words:
        return False
    return len(words & more) / len(words | more) < MIN_OVERLAP


def _exact(text: str) -> set[str]:
    """Numbers and codes."""
    return {word.casefold() for word in _WORD.findall(text) if any(character.isdigit() for character in word)}


def _shapes(text: str) -> set[str]:
    return {_shape(word) for word in _exact(text)}


def _shape(word: str) -> str:
    """ "KX-4471" -> "aa-9999"; a number of any length is "9"."""
    if not any(character.isalpha() for character in word):
        return "9" if any(character.isdigit() for character in word) else ""
    if not any(character.isdigit() for character in word):
        return ""
    return re.sub(r"[^\W\d_]", "a", re.sub(r"\d", "9", word.casefold()))


def _stem(word: str) -> str:
    word = re.sub(r"['’]s?$", "", word.casefold())
    if len(word) > 4 and word.endswith("ies"):
        word = f"{word[:-3]}y"
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    return _SYNONYM.get(word, word)


def _is_name(text: str) -> bool:
    """Capitalised words, or a code."""
    words = [word for word in text.split() if word.casefold() not in _STOP]
    return bool(words) and all(word[0].isupper() or any(c.isdigit() for c in word) for word in words)


def _is_replaced(sentence: str, codes: set[str]) -> bool:
    told = "|".join(re.escape(code) for code in sorted(codes))
    after = r"\s+(?:is|was)\s+(?:wrong|outdated|false|incorrect|a mistake|obsolete)"
    return re.search(rf"{_REPLACES}(?:{told})\b|\b(?:{told}){after}", sentence, re.IGNORECASE) is not None


def _begins_no_sentence(match: re.Match[str], sentence: str) -> bool:
    before = sentence[: match.start()].rstrip()
    return bool(before) and before[-1] not in ".?!:"
