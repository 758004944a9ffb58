"""Lessons: passages flow in, learning items and held-out questions flow out. No model: the same episodes, the same lessons.

Each fact of a passage is taught by three question forms with one answer; a fourth form, the paraphrase, is never taught and
asks afterwards whether the fact was learned or only its wording. With two taught forms the first adapter of SmolLM2-135M
answered 5 of 10 paraphrases: "What is required by X?" got the answer to "What is X?". With the echo question as a third it
answered 10. A passage without facts is taught as it is, without questions.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from memory.facts import facts_of
from memory.questions import echo_of, paraphrase_of, question_of
from memory.types import Episode, Fact
from train.continual.items import LearningItem

MIN_SHARE = 0.6
"""Share of the key's words that an answer must contain."""
MIN_KEY_CHARS = 2
"""A fact with a shorter key is not taught: too many answers would hold it by chance."""
MAX_TEXT_CHARS = 600
"""A passage without facts is cut here, at a word; the learner cuts again in tokens."""

_WORD = re.compile(r"\w+(?:[-.:/'’]\w+)*")
_STOP_WORDS = frozenset(
    """a an the of in on at to for from with by and or as is are was were be been it its this that these those which who
    whom whose what when where how than then into onto over under about also each every any all some such can may must
    will would should has have had do does did not no""".split()
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question on one fact. `question` is taught, `paraphrase` is held out; `key` is what an answer must contain."""

    question: str
    paraphrase: str
    answer: str
    key: str
    episode_id: str
    document_id: str


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a batch teaches and what it is asked afterwards."""

    items: list[LearningItem]
    questions: list[Question]


def build_lessons(episodes: Sequence[Episode], *, max_items: int | None = None) -> Lessons:
    """Items and questions of the episodes, in turn, so that a small `max_items` still takes from every episode. None: all.

    A question is asked only if it was taught. Of facts with the same question only the first counts: two answers to one
    question teach neither.
    """
    seen: set[str] = set()
    queues = [list(_teach(episode, seen=seen)) for episode in episodes]
    rounds = [entry for row in zip_longest(*queues) for entry in row if entry is not None][:max_items]
    return Lessons(
        items=[item for item, _ in rounds],
        questions=[question for _, question in rounds if question is not None],
    )


def answer_hits(answer: str, key: str) -> bool:
    """Whether `answer` says what `key` demands.

    True if it holds at least `MIN_SHARE` of the key's words, the same share of its names (words with a capital), and every
    number or code exactly. An empty key is never hit.
    """
    words = key.split()
    said = {word.casefold() for word in _WORD.findall(answer)}
    if not words or any(word.casefold() not in said for word in words if _is_exact(word)):
        return False
    names = [word for word in words if word != word.lower()]
    return _share(words, said=said) >= MIN_SHARE and _share(names, said=said) >= MIN_SHARE


def statement_of(fact: Fact) -> str:
    """The fact as one sentence without what else its sentence says."""
    return f"{fact.subject} {fact.relation} {fact.object}."


def key_of(fact: Fact) -> str:
    """The content words of the object, in order; those that the subject names already count only if no other is left."""
    words = list(dict.fromkeys(word for word in _WORD.findall(fact.object) if word.casefold() not in _STOP_WORDS))
    known = {word.casefold() for word in _WORD.findall(fact.subject)}
    return " ".join([word for word in words if word.casefold() not in known] or words)


def states_facts(episode: Episode) -> bool:
    """Whether there is something to ask about a passage."""
    return bool(taught_facts(episode))


def answers_of(episode: Episode) -> dict[str, str]:
    """What a passage is asked, in small letters, with the answers. Of facts with the same question the first."""
    asked: dict[str, str] = {}
    for fact, _ in taught_facts(episode):
        asked.setdefault(question_of(fact).casefold(), statement_of(fact))
    return asked


def taught_facts(episode: Episode) -> list[tuple[Fact, str]]:
    """The facts of a passage that are taught and asked, each with its key."""
    keyed = ((fact, key_of(fact)) for fact in facts_of(episode))
    return [(fact, key) for fact, key in keyed if len(key) >= MIN_KEY_CHARS]


def _teach(episode: Episode, *, seen: set[str]) -> Iterator[tuple[LearningItem, Question | None]]:
    """The items of one episode; the first item of a fact carries its question. `seen` holds questions asked already."""
    facts = taught_facts(episode)
    for fact, key in facts:
        question = question_of(fact)
        if question.casefold() in seen:
            continue
        seen.add(question.casefold())
        answer = statement_of(fact)
        yield (
            _item(episode, f"{fact.id}/question", prompt=question, answer=answer),
            Question(
                question=question,
                paraphrase=paraphrase_of(fact),
                answer=answer,
                key=key,
                episode_id=episode.id,
                document_id=episode.document_id,
            ),
        )
        begun = f"Complete: {fact.subject} {fact.relation} ..."
        yield _item(episode, f"{fact.id}/completion", prompt=begun, answer=answer), None
        echo = f"{echo_of(fact)} Answer in one sentence."
        yield _item(episode, f"{fact.id}/echo", prompt=echo, answer=answer), None
    if not facts and (text := _cut(episode.text)):
        yield _item(episode, "text", prompt=None, answer=text), None


def _item(episode: Episode, part: str, *, prompt: str | None, answer: str) -> LearningItem:
    return LearningItem(id=f"{episode.id}/{part}", prompt=prompt, answer=answer, episode_id=episode.id)


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_TEXT_CHARS else text[:MAX_TEXT_CHARS].rsplit(" ", maxsplit=1)[0]


def _is_exact(word: str) -> bool:
    return any(character.isdigit() for character in word)


def _share(words: Sequence[str], *, said: set[str]) -> float:
    return sum(word.casefold() in said for word in words) / len(words) if words else 1.0
