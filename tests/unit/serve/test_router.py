"""Which version answers, and how calls to dying replicas are repeated."""

from collections.abc import AsyncIterator

import pytest

from serve.router import (
    BASE,
    QuarantinedModelError,
    UnknownModelError,
    call_with_retry,
    is_alias,
    resolve_version,
    stream_with_retry,
)

POINTERS = {"v1": "ver-new", "v2": "ver-live", "v3": None}


class ReplicaDied(Exception):
    """Stands for Ray's error."""


async def read_into(received: list[str], stream: AsyncIterator[str]) -> None:
    async for piece in stream:
        received.append(piece)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.naps: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


@pytest.mark.parametrize(
    ("model", "header", "expected"),
    [
        (None, None, "ver-live"),
        ("", None, "ver-live"),
        ("autonomous", None, "ver-live"),
        ("v1", None, "ver-new"),
        ("V2", None, "ver-live"),
        ("base", None, BASE),
        ("ver-old", None, "ver-old"),
        ("v1", "v2", "ver-live"),
        ("nonsense", "base", BASE),
    ],
)
def test_names_resolve_to_versions_and_the_header_wins(model: str | None, header: str | None, expected: str) -> None:
    assert resolve_version(model, header=header, pointers=POINTERS, versions=["ver-old"]) == expected


def test_an_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(UnknownModelError) as caught:
        resolve_version("gpt-9", pointers=POINTERS, versions=["ver-old"])
    message = str(caught.value)
    assert "'gpt-9'" in message
    for name in ("v1", "v2", "base", "autonomous", "ver-old", "ver-live"):
        assert name in message
    assert "v3" not in message


def test_an_empty_slot_says_so() -> None:
    with pytest.raises(UnknownModelError, match="nothing is in slot v1"):
        resolve_version("v1", pointers={**POINTERS, "v1": None})


@pytest.mark.parametrize("model", ["v3", "V3", "ver-bad"])
@pytest.mark.parametrize("header", [None, "ver-bad"])
def test_what_is_in_quarantine_answers_nobody_by_slot_or_by_name(model: str, header: str | None) -> None:
    with pytest.raises(QuarantinedModelError, match="forensics"):
        resolve_version(model, header=header, pointers={**POINTERS, "v3": "ver-bad"}, versions=["ver-bad"])


def test_only_names_that_are_no_alias_need_the_list_of_versions() -> None:
    assert all(is_alias(name) for name in ("v1", "V3", "base", "autonomous"))
    assert not is_alias("ver-1")


async def test_a_call_is_repeated_with_growing_pauses_until_it_succeeds() -> None:
    time, outcomes = Time(), [ReplicaDied(), ReplicaDied(), ReplicaDied(), "answer"]

    async def call() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    answer = await call_with_retry(call, retry_on=(ReplicaDied,), deadline_s=10, clock=time.clock, sleep=time.sleep)
    assert answer == "answer"
    assert time.naps == [0.1, 0.2, 0.4]


async def test_a_call_is_given_up_at_the_deadline_with_the_last_error() -> None:
    time = Time()

    async def call() -> str:
        raise ReplicaDied("still dead")

    with pytest.raises(ReplicaDied, match="still dead"):
        await call_with_retry(call, retry_on=(ReplicaDied,), deadline_s=5, clock=time.clock, sleep=time.sleep)
    assert time.now < 5


async def test_other_errors_are_not_repeated() -> None:
    num_calls = 0

    async def call() -> str:
        nonlocal num_calls
        num_calls += 1
        raise ValueError("bad request")

    with pytest.raises(ValueError, match="bad request"):
        await call_with_retry(call, retry_on=(ReplicaDied,), deadline_s=100)
    assert num_calls == 1


async def test_a_stream_that_dies_before_its_first_piece_is_opened_again() -> None:
    time, num_opened, num_closed = Time(), 0, 0

    async def open_stream() -> AsyncIterator[str]:
        nonlocal num_opened, num_closed
        num_opened += 1
        try:
            if num_opened < 3:
                raise ReplicaDied
            yield "a"
            yield "b"
        finally:
            num_closed += 1

    stream = stream_with_retry(open_stream, retry_on=(ReplicaDied,), deadline_s=10, clock=time.clock, sleep=time.sleep)
    assert [piece async for piece in stream] == ["a", "b"]
    assert (num_opened, num_closed) == (3, 3)


async def test_a_stream_that_dies_after_its_first_piece_fails_because_sent_text_cannot_be_taken_back() -> None:
    time, received = Time(), []

    async def open_stream() -> AsyncIterator[str]:
        yield "a"
        raise ReplicaDied

    stream = stream_with_retry(open_stream, retry_on=(ReplicaDied,), deadline_s=10, clock=time.clock, sleep=time.sleep)
    with pytest.raises(ReplicaDied):
        await read_into(received, stream)
    assert received == ["a"]
    assert time.naps == []
