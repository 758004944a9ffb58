"""English words by their part in a sentence, for facts and their questions: verbs, auxiliaries, prepositions, titles."""

import re


def words_of(table: str) -> frozenset[str]:
    """The words of a text that lists them."""
    return frozenset(table.split())


_REGULAR = """
accept add allow apply assign attach belong block call carry cause change check cleanse close combine compile compute
connect contain control convert copy cost cover create define deliver denote depend describe design determine develop
direct discover display employ enable end establish evaluate exclude execute expect export extend fail filter generate
handle heat help host implement import include indicate inherit install introduce invent invoke last launch limit list
load locate manage match measure monitor need offer open operate own parse perform prevent print process produce
propose protect provide publish pump raise receive record recover reference release remove render replace report
represent require resolve return review schedule serve share sign specify start store supply support target track
transform translate transport use validate wait want weigh work yield
"""
_IRREGULAR = """have has had had/mean means meant meant/run runs ran run/lead leads led led/hold holds held held/
keep keeps kept kept/give gives gave given/take takes took taken/make makes made made/write writes wrote written/
build builds built built/let lets let let/lie lies lay lain/live lives lived lived/read reads read read/
find finds found found/found founds founded founded/win wins won won/wrap wraps wrapped wrapped/
default defaults defaulted defaulted/map maps mapped mapped/set sets set set/begin begins began begun/
buy buys bought bought/sell sells sold sold/send sends sent sent/speak speaks spoke spoken/stop stops stopped stopped/
ship ships shipped shipped/submit submits submitted submitted/defer defers deferred deferred/
refer refers referred referred/occur occurs occurred occurred/plan plans planned planned/drop drops dropped dropped/
teach teaches taught taught"""


def _third_person(lemma: str) -> str:
    if lemma.endswith(("s", "x", "ch", "sh")):
        return lemma + "es"
    return lemma[:-1] + "ies" if lemma.endswith("y") and lemma[-2] not in "aeiou" else lemma + "s"


def _past(lemma: str) -> str:
    if lemma.endswith("e"):
        return lemma + "d"
    return lemma[:-1] + "ied" if lemma.endswith("y") and lemma[-2] not in "aeiou" else lemma + "ed"


_FORMS = [(lemma, _third_person(lemma), _past(lemma), _past(lemma)) for lemma in _REGULAR.split()]
_FORMS += [(a, b, c, d) for a, b, c, d in (line.split() for line in _IRREGULAR.split("/"))]
LEMMA = {third: lemma for lemma, third, _, _ in _FORMS}
"""Third person -> lemma: "requires" -> "require"."""
PLURAL_VERBS = {lemma for lemma, _, _, _ in _FORMS}
_TOLD = words_of(
    "build buy create design develop discover establish found introduce invent launch lead open own propose"
)
_TOLD |= words_of("publish release sell win write")
PAST_LEMMA = {past: lemma for lemma, _, past, _ in _FORMS if lemma in _TOLD}
"""Past -> lemma, of verbs that tell who made something: other past forms are mostly participles."""
PARTICIPLE = {lemma: participle for lemma, _, _, participle in _FORMS}
"""Lemma -> past participle."""
BE = {"is", "are", "was", "were"}
AUXILIARIES = BE | {"must", "can", "may", "will", "should", "has", "have", "had", "does", "do"}
PREPOSITIONS = words_of("to on of in for from by at as with into under after within without before between during over")
DETERMINERS = {"a", "an", "the"}
PERSON = re.compile(r"^(?:Dr|Mr|Mrs|Ms|Prof|Professor|Sir|Captain|President)\b\.?")
"""A subject that begins so is a person."""
