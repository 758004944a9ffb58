"""The guided run's emergency stop: pull it, see that learning stands and answering goes on, reset it or ask for that.

In flows a client of the running system; out flow the checks, one by one as they happen.
"""

import time
from collections.abc import Callable, Iterator

from cluster.client import Answer, Client
from cluster.client_errors import ApiError, ClientError, LearningIsStopped
from cluster.report import Check

ANSWER_TOKENS = 32
REFUSED = "refused, 423"
SECOND_PERSON = "waits for a second person"


def stop_and_reset(client: Client, *, question: str, by: str) -> Iterator[Check]:
    """Each thing that had to happen, with what was observed. Starts no learning, and leaves it permitted; where two people
    decide it stays stopped until the second one agrees.
    """
    note = {"text": "This note was sent while learning was stopped, and must be refused.", "title": "refused note"}
    yield _check("pull the stop", "stopped", lambda: str(client.stop(by=by, reason="guided run").get("mode")))
    yield _check("POST /v1/learn", REFUSED, lambda: _refusal(client.learn))
    yield _check("POST /v1/knowledge", REFUSED, lambda: _refusal(lambda: client.add_documents([note])))
    yield _check("a question", "answered", lambda: _answered(client.ask(question, max_tokens=ANSWER_TOKENS)))
    reset = _check("reset", "armed", lambda: _reset(client, by=by))
    is_waiting = reset.observed.startswith(SECOND_PERSON)
    yield reset.model_copy(update={"expected": SECOND_PERSON, "is_ok": True}) if is_waiting else reset
    yield _check("GET /v1/safety", "stopped" if is_waiting else "armed", lambda: str(client.safety().get("mode")))
    yield _check(
        "GET /v1/learn/next",
        "answered",
        lambda: f"answered: the next batch would take {client.next_batch()['num_pending']} passages",
    )


def _check(name: str, expected: str, act: Callable[[], str]) -> Check:
    start = time.monotonic()
    try:
        observed = act()
    except ClientError as error:
        observed = f"failed: {error}"
    seconds = round(time.monotonic() - start, 4)
    return Check(name=name, expected=expected, observed=observed, is_ok=observed.startswith(expected), seconds=seconds)


def _reset(client: Client, *, by: str) -> str:
    answer = client.reset(by=by, reason="end of the guided run")
    if answer.get("waiting"):
        return f'{SECOND_PERSON}, learning stays stopped until then: autonomous reset --reason "..." --by NAME'
    return str(answer.get("mode"))


def _refusal(act: Callable[[], object]) -> str:
    """How a request was refused; says so if it was not."""
    try:
        act()
    except LearningIsStopped as error:
        return f"{REFUSED}: {error}"
    except ApiError as error:
        return f"refused for another reason, {error.status}: {error}"
    return "was accepted"


def _answered(answer: Answer) -> str:
    return f"answered by {answer.version}" if answer.text else "empty answer"
