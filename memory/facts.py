"""Facts by sentence patterns: no model, the same text always gives the same facts, precision before recall.

In: clean English prose, and the head of a package's metadata ("Name: numpy", "Summary: ..."). Out: Fact(subject,
relation, object). A sentence counts when it is "<subject> <verb> <object>." with a subject of 1-8 words that begins the
sentence, a verb of memory.grammar, and an object of 1-25 words, without negation, doubt, condition or unresolved
reference. Questions on facts: memory.questions.
Source of the idea: open information extraction by verb patterns (ReVerb, Fader et al. 2011).
"""

import hashlib
import re
from collections.abc import Iterator

from memory.grammar import (
    AUXILIARIES,
    BE,
    DETERMINERS,
    LEMMA,
    PARTICIPLE,
    PAST_LEMMA,
    PERSON,
    PLURAL_VERBS,
    PREPOSITIONS,
    words_of,
)
from memory.passages import split_sentences
from memory.types import Episode, Fact

MAX_SUBJECT_WORDS = 8
MAX_OBJECT_WORDS = 25


_VERB_PREPOSITIONS = {  # with these the verb means something only together with its preposition
    "default": {"to"}, "refer": {"to"}, "belong": {"to"}, "evaluate": {"to"}, "depend": {"on"},
    "run": {"on", "in", "at"},
    "lie": {"in", "on", "at"}, "live": {"in", "on", "at"}, "work": {"with", "for", "in", "at", "on"}, "apply": {"to"},
    "begin": {"in", "at", "with", "on"}, "end": {"in", "at", "with", "on"}, "occur": {"in", "at", "on"},
    "start": {"in", "at", "with", "on"}, "open": {"at", "on"}, "close": {"at", "on"}, "map": {"to"},
    "wait": {"for"}, "inherit": {"from"}, "serve": {"as"}, "operate": {"at", "on", "in"}, "connect": {"to"},
}  # fmt: skip
_INTRANSITIVE = {"default", "refer", "belong", "depend", "lie", "live", "work", "occur", "wait", "fail", "operate"}
_STATES = words_of(
    """
    based bound built called caused compatible composed connected considered created defined derived described
    designed equal equivalent evaluated founded given identical installed invented kept known licensed limited
    located made maintained named owned part powered published rated read released reserved responsible
    restricted sold stored supported used visible written
    """
)

_FUNCTION_WORDS = words_of(
    """
    a above after all also although an and another any as at because before being below both but by can could
    did do does each either every first following for from furthermore given he hence her here his how however i
    if in instead it its like many may maybe might more most much must neither next no none nor not note nothing
    of on once one only or other others otherwise our perhaps please second see several she should similarly
    since so some such suppose than that their them then there therefore these they this those though three thus
    to two typically under unless until usually we what when where whereas whether which while who whose why
    will with without would yes yet you your
    """
)
_UNCLEAR_IN_SUBJECT = words_of(
    """
    above also always another as be because been being below both can cannot could did do does either even
    following former he her here him his how however i if it its just latter may me might must my neither never
    next no not now often only or other others our previous same shall she should sometimes such than that their
    them then there these they this those unless us usually we what when where whether which while who whom
    whose why will would you your
    """
)
_UNCLEAR_IN_OBJECT = words_of(
    """
    above above-mentioned aforementioned below following former he her here him his i if it latter me my
    otherwise our previous she them there these they those unless us we you your
    """
)
_BAD_OBJECT_START = words_of(
    """
    able about all almost already also always and as at because been being both by currently done each even
    false first for from generally going how ideal if in is just likely more necessary never no nor not of often
    on only or possible probably rarely ready same smart so sometimes still such that then this to true
    typically unlikely usually very well what when where which who why with
    """
)
_VAGUE_OBJECT = re.compile(r"\bthis\b|\bits$|[:?!]|\w\. [A-Z]|\b[Ss]ection\b|\bchapter\b|^(?:the same|more|place)\b")
_SKIPPED_ADVERBS = {"also", "now", "currently", "therefore", "thus"}
_BARE_DEFINITE = re.compile(r"The(?: [a-z][a-z-]*){1,3}")  # "The result", "The return value": of what?
_SUBJECT_MARKS = re.compile(r"[,:;?!()\[\]]|^[^\w\"'“‘]")
_EVENT = re.compile(r"[\w-]+(?:ed|ing|ly|wn|ten|ble)|found|kept|made|left|put|set")
_COMPARING = words_of("to on since than as from at by")  # "similar to", "different from"
_LY_NOUNS = {"assembly", "family", "supply", "reply", "anomaly", "monopoly"}
_EMPTY_IT = re.compile(r"It (?:is|was) .*\b(?:to|that|when|if)\b")
_TITLE_ROLE = re.compile(r"^This (?:package|library|module|project|tool|plugin|framework|program)\b", re.IGNORECASE)
_VAGUE_TITLES = words_of(
    """
    about changelog contents docs document documentation example examples faq file guide home index installation
    introduction license metadata notes overview quickstart readme summary text tutorial untitled usage
    """
)
_CLAUSE_END = re.compile(
    r",? and (?:is|are|was|were|may|must|can|will|has|have|does)\b|, and the\b|, (?:which|where|who)\b| [-–—]{1,2} "
)
_CODE = re.compile(r"[{}<>=|\\;@$^~]|::|->|\(\)|\b\w+\([^)]*\)|https?:|(?<!\w)_\w|\.\.\.|…")
_LIST_OR_MARKUP = re.compile(r"^\s*(?:[-*+•]\s|[>|#:]|\.\. |\d+[.)]\s|\[\d+\]|>>>|\$ |```|~~~)")
_METADATA = re.compile(r"^(Name|Summary|Requires-Python|License-Expression): *(\S.*?)\s*$", re.MULTILINE)
_TERM_LINE = re.compile(r"^(([ \t]*)\S[^\n]{0,60}[^\s.,;:])\n(?=\2[ \t]+\S)", re.MULTILINE)  # over an indented text
_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_MARKUP = [
    (re.compile(r"!?\[([^\]]+)\]\([^)]*\)"), r"\1"),
    (re.compile(r":\w+:`([^`<]+)(?:<[^>]*>)?`"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*(?:<[^>]*>)`_+"), r"\1"),
    (re.compile(r"``?([^`]+)``?_*"), r"\1"),
    (re.compile(r"(?<!\w)(\*\*|__|\*)(\S(?:[^*\n]*?\S)?)\1(?!\w)"), r"\2"),
]


def facts_of(episode: Episode) -> list[Fact]:
    """The facts that an episode states."""
    return extract_facts(episode.text, title=episode.title, episode_id=episode.id)


def extract_facts(text: str, *, title: str, episode_id: str) -> list[Fact]:
    """The facts of one passage, in order, each once.

    Ids depend on subject, relation and object alone, so that the same statement in another passage has the same id.
    `title` stands in for "It" and "This package" where it names a thing.
    """
    found = {fact.id: fact for fact in _metadata_facts(text, episode_id=episode_id)}
    name = title.strip() if _is_clear_noun(title) else None
    prose = _TERM_LINE.sub(r"\1\n\n", _FENCE.sub("\n\n", text))
    for paragraph in re.split(r"\n[^\S\n]*\n", prose):
        if _METADATA.search(paragraph) or any(_LIST_OR_MARKUP.match(line) for line in paragraph.splitlines()):
            continue
        # "It" is the title after a sentence that begins with the title, or at the very start under a proper name
        may_be_it = name is not None and name[0].isupper() and text.lstrip().startswith("It ")
        for sentence in split_sentences(" ".join(_plain(paragraph).split())):
            resolved = sentence if name is None else _resolve(sentence, name=name, may_be_it=may_be_it)
            may_be_it = name is not None and resolved.casefold().startswith(name.casefold())
            parts = _parse(resolved, name=name)
            if parts is not None:
                fact = fact_of(*parts, sentence=resolved, episode_id=episode_id)
                found.setdefault(fact.id, fact)
    return list(found.values())


def fact_of(subject: str, relation: str, object_: str, *, sentence: str, episode_id: str) -> Fact:
    """A fact whose id depends on what it says alone."""
    key = "\x00".join(part.casefold() for part in (subject, relation, object_))
    return Fact(hashlib.sha256(key.encode()).hexdigest()[:32], subject, relation, object_, sentence, episode_id)


def _metadata_facts(text: str, *, episode_id: str) -> Iterator[Fact]:
    fields: dict[str, str] = {}
    for match in _METADATA.finditer(text):
        fields.setdefault(match[1], match[2])
    name = fields.get("Name")
    if name is None:
        return
    summary = fields.get("Summary", "").rstrip(".")
    if 2 <= len(summary.split()) <= MAX_OBJECT_WORDS and ". " not in summary:
        stated = re.match(rf"{re.escape(name)} is (.+)", summary, re.IGNORECASE)
        summary = stated[1] if stated else summary
        yield fact_of(name, "is", summary, sentence=f"{name} is {summary}.", episode_id=episode_id)
    if "Requires-Python" in fields:
        wanted = f"Python {fields['Requires-Python']}"
        yield fact_of(name, "requires", wanted, sentence=f"{name} requires {wanted}.", episode_id=episode_id)
    if "License-Expression" in fields:
        terms = fields["License-Expression"]
        sentence = f"{name} is licensed under {terms}."
        yield fact_of(name, "is licensed under", terms, sentence=sentence, episode_id=episode_id)


def _plain(paragraph: str) -> str:
    for pattern, replacement in _MARKUP:
        paragraph = pattern.sub(replacement, paragraph)
    return paragraph


def _is_clear_noun(title: str) -> bool:
    """A name of one thing: up to five words, no sentence, no file path, not "README" and its like."""
    words = title.strip().split()
    if not 1 <= len(words) <= 5 or re.search(r"[/\\.:?!,]", title):
        return False
    lowered = {word.casefold() for word in words}
    return not lowered & (_VAGUE_TITLES | _FUNCTION_WORDS - {"of", "and", "for"}) and any(c.isalpha() for c in title)


def _resolve(sentence: str, *, name: str, may_be_it: bool) -> str:
    """Put the name for "This package", and for an "It" that stands for a thing ("It is an error to ..." does not)."""
    if may_be_it and sentence.startswith("It ") and not _EMPTY_IT.match(sentence):
        return name + sentence[2:]
    return _TITLE_ROLE.sub(lambda _: name, sentence, count=1)


def _parse(sentence: str, *, name: str | None) -> tuple[str, str, str] | None:
    """(subject, relation, object) of a sentence that states one thing plainly, else None."""
    if not sentence.endswith(".") or _CODE.search(sentence):
        return None
    words = sentence[:-1].rstrip().split()
    for position in range(1, min(len(words) - 1, MAX_SUBJECT_WORDS + 1)):
        relation = _relation(words, position)
        if relation:
            subject_words = words[:position]
            if len(subject_words) > 1 and subject_words[-1].lower() in _SKIPPED_ADVERBS:
                subject_words = subject_words[:-1]
            object_words = words[position + len(relation) :]
            object_words = object_words[1:] if object_words[0].lower() in _SKIPPED_ADVERBS else object_words
            subject, object_ = " ".join(subject_words), _first_clause(" ".join(object_words))
            if _is_subject(subject, name=name) and _is_object(object_, relation=relation):
                return subject, " ".join(relation), object_
            return None
    return None


def _relation(words: list[str], position: int) -> list[str]:
    """The verb at this position, with its preposition or participle; empty if there is none, or nothing after it."""
    verb, before, following = words[position], words[position - 1], words[position + 1 :]
    if following[0] in AUXILIARIES or following[0] in LEMMA:  # "relative imports is ...": a noun after all
        return []
    if verb in BE or (verb == "must" and following[0] == "be"):
        verbs = ["must", "be"] if verb == "must" else [verb]
        state = following[len(verbs) - 1 :]
        if len(state) > 2 and state[0] in _STATES and state[1] in PREPOSITIONS and _is_state(state[0], state[1]):
            return [*verbs, *state[:2]]
        return verbs if state else []
    head = next((words[i - 1] for i in range(1, position) if words[i] in PREPOSITIONS), before)
    is_plural = re.fullmatch(r"[A-Za-z-]+[^s\W]s", head) is not None
    lemma = LEMMA.get(verb) or PAST_LEMMA.get(verb) or (verb if is_plural and verb in PLURAL_VERBS else None)
    if lemma is None or before.lower() in DETERMINERS or _is_participle(verb, lemma=lemma, after=following[0]):
        return []
    if following[0] in _VERB_PREPOSITIONS.get(lemma, ()) and len(following) > 1:
        return [verb, following[0]]
    return [] if lemma in _INTRANSITIVE or following[0] in PREPOSITIONS else [verb]


def _is_participle(verb: str, *, lemma: str, after: str) -> bool:
    """True of "the types designed internally" and "has moved": part of a noun phrase, or of another verb."""
    if lemma == "have":
        return after.endswith("ed") or after in PARTICIPLE.values()
    return verb in PAST_LEMMA and after.islower() and after not in DETERMINERS


def _is_state(word: str, preposition: str) -> bool:
    """True of "rated for", "known as", "equal to"; not of "used to" do or "made as" needed."""
    if preposition == "to":
        return word in {"bound", "connected", "equal", "equivalent", "identical", "limited", "restricted"}
    return preposition != "as" or word in {"defined", "known", "named", "written", "used"}


def _first_clause(text: str) -> str:
    return _CLAUSE_END.split(text, maxsplit=1)[0].rstrip(",: ")


def _is_subject(subject: str, *, name: str | None) -> bool:
    """A noun phrase that says by itself what it is about."""
    words = [word.casefold() for word in re.findall(r"[\w'’-]+", subject)]
    if not any(len(word) > 1 for word in words) or not _is_balanced(subject) or _SUBJECT_MARKS.search(subject):
        return False
    names = set() if name is None else set(name.casefold().split())
    begins_well = subject[0].isupper() or not subject[0].isalpha() or words[0] in names
    is_unclear = bool(_UNCLEAR_IN_SUBJECT & set(words)) or words[0] in _FUNCTION_WORDS - DETERMINERS
    is_vague = bool(_BARE_DEFINITE.fullmatch(subject) or words[-1] in _VAGUE_TITLES) and not names & set(words)
    is_cut = words[-1] in PREPOSITIONS | DETERMINERS | {"and"}
    is_two_sentences = re.search(r"\w\. \w", subject) is not None and not PERSON.match(subject)
    is_clause = len(words) > 1 and subject[0].isupper() and words[0].endswith(("ing", "ly"))
    has_adverb = any(re.fullmatch(r"[a-z]{3,}ly", word) and word not in _LY_NOUNS for word in subject.split())
    return begins_well and not (is_unclear or is_vague or is_cut or is_two_sentences or is_clause or has_adverb)


def _is_object(text: str, *, relation: list[str]) -> bool:
    """A short phrase that stands for itself; after "is", a thing and not a property or an event."""
    words = re.findall(r"[\w'’-]+", text.casefold())
    if not words or len(text.split()) > MAX_OBJECT_WORDS or not _is_balanced(text) or _VAGUE_OBJECT.search(text):
        return False
    if _UNCLEAR_IN_OBJECT & set(words) or words[0] in _BAD_OBJECT_START or words[-1] in PREPOSITIONS | DETERMINERS:
        return False
    if relation[-1] not in BE | {"be"}:
        return True
    is_property = len(words) == 1 and text.islower() and text.isalpha()
    is_event = _EVENT.fullmatch(words[0]) is not None
    is_compared = relation[-1] != "be" and words[1:2] and words[1] in _COMPARING
    return not (is_property or is_event or is_compared)


def _is_balanced(text: str) -> bool:
    return text.count('"') % 2 == 0 and text.count("(") == text.count(")") and text.count("[") == text.count("]")
