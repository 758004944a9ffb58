"""Questions whose answer is known to stand in certain passages, for the measurement of recall.

faq            the questions of the FAQ pages of Python, Django and seven other projects, answered by the sections below them
sections       titles of sections of Python's library reference, answered by the sections, whose titles are taken away
conversations  generated: two people over twenty dated sessions, with facts that change, facts that are told in passing,
               and others like them; single facts, facts in other words, changes, lists over several sessions, dates
locomo         the public LoCoMo file (locomo10.json) where AUTONOMOUS_LOCOMO names it: a conversation each, turn by turn
longmemeval    a LongMemEval file where AUTONOMOUS_LONGMEMEVAL names it: a question each, session by session

The documentation is what configs/data/small.toml names, unpacked under ~/.autonomous/corpus; the other projects' FAQ pages are
unpacked in the same way under ~/.autonomous/faq:
    apt-get download borgbackup-doc python-{celery,jinja2,pymongo,scrapy,sqlalchemy,tornado}-doc
Generated sets have a
development seed, which weights are chosen by, and a test seed, which only the benchmark uses.
"""

import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.bench_domains import CORPUS
from memory.passages import split_passages
from memory.types import Episode, episode_id

LOCOMO_VARIABLE, LONGMEMEVAL_VARIABLE = "AUTONOMOUS_LOCOMO", "AUTONOMOUS_LONGMEMEVAL"
DEVELOPMENT_SEED, TEST_SEED = 1, 2
MAX_CHARS = 700
_FAQ = Path("~/.autonomous/faq/usr/share/doc")
FAQ_FOLDERS = (
    CORPUS / "python3.11/html/faq",
    CORPUS / "python-django-doc/html/faq",
    _FAQ / "python-sqlalchemy-doc/html/faq",
    *(_FAQ / f"python-{name}-doc/html/faq.html" for name in ("celery", "jinja2", "pymongo", "scrapy", "tornado")),
    _FAQ / "borgbackup/html/faq.html",
)


@dataclass(frozen=True)
class Question:
    """`evidence` are ids of the episodes that answer it."""

    text: str
    evidence: frozenset[str]
    category: str


@dataclass(frozen=True)
class QuestionSet:
    """Episodes of one memory and the questions about them."""

    name: str
    episodes: tuple[Episode, ...]
    questions: tuple[Question, ...]


# -- documentation


def load_documentation(seed: int) -> list[QuestionSet]:
    """faq and sections; the seed halves the questions between development and test."""
    found = []
    faq = [page for folder in FAQ_FOLDERS for page in _pages(folder)]
    found.append(_sections_set("faq", faq, wanted=lambda title: title.endswith("?"), seed=seed))
    library = _pages(CORPUS / "python3.11/html/library")
    found.append(_sections_set("sections", library, wanted=lambda title: len(title.split()) > 2, seed=seed))
    return found


def _pages(path: Path) -> list[Path]:
    """The page, or the pages of a folder."""
    path = path.expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there: fetch and unpack the documentation packages as cluster/bench_questions.py and "
            "configs/data/small.toml say at their top"
        )
    return [path] if path.is_file() else sorted(path.glob("*.html"))


def _sections_set(
    name: str, pages: Sequence[Path], *, wanted: Callable[[str], bool], seed: int, most: int = 300
) -> QuestionSet:
    episodes: list[Episode] = []
    questions: list[Question] = []
    for page in pages:
        for number, (title, text) in enumerate(_sections(page)):
            package = page.parts[page.parts.index("doc") + 1]
            document = f"{package}/{page.name}#{number}"
            own = [
                _passage(document, place, part) for place, part in enumerate(split_passages(text, max_chars=MAX_CHARS))
            ]
            episodes += own
            if own and wanted(title):
                questions.append(Question(title, frozenset(one.id for one in own), name))
    random.Random(0).shuffle(questions)
    half = questions[seed % 2 :: 2][:most]
    return QuestionSet(name, tuple(episodes), tuple(half))


def _sections(page: Path) -> Iterator[tuple[str, str]]:
    """Title and own text of every section, without those of the sections inside it."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    document: Any = HTMLTree.parse(page.read_text("utf-8", "replace")).document
    for section in document.query_selector_all("section"):
        heading = section.query_selector("h1, h2, h3, h4")
        if heading is None:
            continue
        title = " ".join(str(heading.text).replace("¶", "").split())
        own = [node.html for node in section.child_nodes if node.tag not in ("section", "nav", "#text", heading.tag)]
        text = extract_plain_text("".join(own)).strip()
        if text and len(title) > 3:
            yield re.sub(r"^\d[\d.]*\s*", "", title), text


def _passage(document: str, position: int, text: str) -> Episode:
    return Episode(
        episode_id(document, position, text), document, document.split("/", maxsplit=1)[0], "", text, position, 0.0
    )


# -- conversations

_NAMES = "Ada Ben Chloe Dario Elif Farid Greta Hugo Imke Jonas Kira Lars Mina Noah Olga Pavel".split()
_CITIES = "Porto Ghent Tallinn Lyon Krakow Bergen Turin Graz Malmo Leeds Utrecht Riga".split()
_JOBS = "baker nurse carpenter translator pilot gardener chemist plumber teacher surveyor".split()
_PETS = ("a grey cat", "a parrot", "an old beagle", "two rabbits", "a tortoise", "a black kitten")
_PET_NAMES = "Pixel Olive Bruno Tofu Mango Socks Waffle Luna Biscuit Comet".split()
_DISHES = "lentil soup;mushroom risotto;plum cake;fish stew;pumpkin curry;onion tart".split(";")
_HOBBIES = "rowing;pottery;fencing;beekeeping;chess;bouldering;calligraphy;birdwatching".split(";")
_RELATIVES = "sister brother aunt cousin grandfather niece".split()
_CHATTER = (
    "How was your week? Mine went by so fast.", "The weather has been awful here, rain all day.",
    "I could not sleep well, too much coffee I guess.", "That sounds lovely, tell me more about it!",
    "We should really meet up again one of these days.", "I finally cleaned out the garage, what a mess.",
    "Traffic was terrible this morning, I was late again.", "I watched a film last night but fell asleep halfway.",
    "Oh wow, I did not expect that at all.", "My phone keeps dying, I need a new battery.",
    "I am trying to drink more water, wish me luck.", "Did you see the news about the elections?",
    "The neighbours are renovating, it is so loud.", "I have been thinking about taking a holiday.",
    "Haha, that is so typical of you!", "Same here, work has been keeping me busy.",
)  # fmt: skip


def generate_conversations(seed: int, *, num: int = 8, num_sessions: int = 20) -> list[QuestionSet]:
    """So many conversations of two people each."""
    return [_conversation(random.Random(1000 * seed + number), number, num_sessions) for number in range(num)]


def _conversation(rng: random.Random, number: int, num_sessions: int) -> QuestionSet:
    people = rng.sample(_NAMES, 2)
    days = sorted(rng.sample(range(700), num_sessions))
    sessions: list[list[tuple[str, str, list[tuple[str, str]]]]] = [
        [(rng.choice(people), rng.choice(_CHATTER), []) for _ in range(rng.randrange(12, 18))] for _ in days
    ]
    for person in people:
        for session, text, answers in _life(rng, person, num_sessions):
            sessions[session].insert(rng.randrange(len(sessions[session]) + 1), (person, text, answers))
    episodes: list[Episode] = []
    evidence: dict[tuple[str, str], set[str]] = {}
    for day, turns in zip(days, sessions, strict=True):
        when = 1_650_000_000 + 86_400 * day
        for person, text, answers in turns:
            said = f"[{time.strftime('%d %B %Y', time.gmtime(when))}] {person}: {text}"
            document, position = f"talk{number}", len(episodes)
            key = episode_id(document, position, said)
            episodes.append(Episode(key, document, "talk", "", said, position, float(when)))
            for answer in answers:
                evidence.setdefault(answer, set()).add(key)
    questions = [Question(text, frozenset(ids), category) for (category, text), ids in evidence.items()]
    return QuestionSet(f"conversation {number}", tuple(episodes), tuple(questions))


def _life(rng: random.Random, person: str, num_sessions: int) -> Iterator[tuple[int, str, list[tuple[str, str]]]]:
    """What a person tells: the session, the words, and (category, question) that they answer."""

    def told(*facts: tuple[str, list[tuple[str, str]]]) -> Iterator[tuple[int, str, list[tuple[str, str]]]]:
        """In sessions of their order."""
        for session, (text, answers) in zip(sorted(rng.sample(range(num_sessions), len(facts))), facts, strict=True):
            yield session, text, answers

    cities, lived = rng.sample(_CITIES, 3), ("list", f"Which cities has {person} lived in?")
    yield from told(
        (f"I found a flat in {cities[0]}, close to the river.", [lived]),
        (
            f"Big news: I moved to {cities[1]} last weekend!",
            [lived, ("date", f"When did {person} move to {cities[1]}?")],
        ),
        (
            f"So I packed everything again, it is {cities[2]} from now on.",
            [lived, ("change", f"Where does {person} live now?")],
        ),
    )
    job, later = rng.sample(_JOBS, 2)
    yield from told(
        (
            f"I got the position! I start as a {job} on Monday.",
            [("date", f"When did {person} begin to work as a {job}?")],
        ),
        (
            f"I quit, I am training to become a {later} now.",
            [("change", f"What profession is {person} learning at present?")],
        ),
    )
    yield from told(
        (
            f"We adopted {rng.choice(_PETS)} from the shelter, such a sweetheart.",
            [("single", f"What animal did {person} adopt?")],
        ),
        (
            f"{rng.choice(_PET_NAMES)} chewed my shoes again, I cannot even be angry.",
            [("reworded", f"What is {person}'s pet called that ruined footwear?")],
        ),
    )
    for dish in rng.sample(_DISHES, 2):
        guest = rng.choice(_RELATIVES)
        yield from told(
            (
                f"I cooked {dish} for my {guest} yesterday and there was nothing left.",
                [("single", f"For whom did {person} cook {dish}?")],
            )
        )
    for hobby in rng.sample(_HOBBIES, 2):
        yield from told(
            (
                f"I signed up for {hobby} classes, first lesson was hard but fun.",
                [
                    ("list", f"Which hobbies has {person} taken up?"),
                    ("date", f"When did {person} sign up for {hobby}?"),
                ],
            )
        )
    relative, illness = rng.choice(_RELATIVES), rng.choice(("a broken wrist", "the flu", "a bad back"))
    yield from told(
        (
            f"Sorry I missed your call, I was at the hospital with my {relative}, it turned out to be {illness}.",
            [("reworded", f"Which member of {person}'s family needed a doctor?")],
        )
    )


# -- sets that others made, by path


def load_locomo(path: Path) -> list[QuestionSet]:
    """LoCoMo's conversations (arXiv:2402.17753): a turn is an episode; questions of categories 1 to 4 with evidence."""
    found: list[QuestionSet] = []
    for sample in json.loads(path.read_text("utf-8")):
        talk, name = sample["conversation"], str(sample.get("sample_id", len(found)))
        episodes: dict[str, Episode] = {}
        number = 1
        while f"session_{number}" in talk or f"session_{number}_date_time" in talk:
            date = talk.get(f"session_{number}_date_time", "")
            for turn in talk.get(f"session_{number}") or []:
                caption = f" [image: {turn['blip_caption']}]" if turn.get("blip_caption") else ""
                said = f"[{date}] {turn['speaker']}: {turn['text']}{caption}"
                key = episode_id(name, len(episodes), said)
                episodes[turn["dia_id"]] = Episode(key, name, "locomo", "", said, len(episodes), float(len(episodes)))
            number += 1
        questions = []
        for one in sample["qa"]:
            marks = [mark for text in one.get("evidence") or [] for mark in re.findall(r"D\d+:\d+", text)]
            evidence = frozenset(episodes[mark].id for mark in marks if mark in episodes)
            if one.get("category") in (1, 2, 3, 4) and evidence:
                questions.append(Question(one["question"], evidence, f"locomo {one['category']}"))
        found.append(QuestionSet(f"locomo {name}", tuple(episodes.values()), tuple(questions)))
    return found


def load_longmemeval(path: Path, *, most: int = 100) -> list[QuestionSet]:
    """LongMemEval (arXiv:2410.10813): a session is an episode, each question has sessions of its own."""
    found = []
    for one in json.loads(path.read_text("utf-8"))[:most]:
        episodes = {}
        sessions = zip(one["haystack_session_ids"], one["haystack_dates"], one["haystack_sessions"], strict=True)
        for position, (key, date, turns) in enumerate(sessions):
            said = f"[{date}]\n" + "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
            document = f"{one['question_id']}/{key}"
            episodes[key] = Episode(
                episode_id(document, position, said),
                document,
                "longmemeval",
                "",
                said[:16_000],
                position,
                float(position),
            )
        evidence = frozenset(episodes[key].id for key in one["answer_session_ids"] if key in episodes)
        if evidence:
            question = Question(one["question"], evidence, f"longmemeval {one['question_type']}")
            found.append(QuestionSet(f"longmemeval {one['question_id']}", tuple(episodes.values()), (question,)))
    return found


def load_given() -> list[QuestionSet]:
    """The sets that the environment names; none where it names none."""
    given: list[tuple[str, Callable[[Path], list[Any]]]] = [
        (LOCOMO_VARIABLE, load_locomo), (LONGMEMEVAL_VARIABLE, load_longmemeval)
    ]  # fmt: skip
    return [found for name, load in given if name in os.environ for found in load(Path(os.environ[name]).expanduser())]
