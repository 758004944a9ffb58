"""The queue behind the answers: bounded, never waiting, never raising, and counting what it drops."""

import asyncio
from collections.abc import Sequence
from typing import Any

from autonomous.feedback import Feedback, Receipt
from autonomous.feedback_config import FeedbackConfig
from autonomous.requests import AnsweredRequest
from serve.ray_calls import ActorCalls
from serve.ray_feedback import RayFeedbackParts
from serve.request_queue import RequestQueue


def request(number: int) -> AnsweredRequest:
    return AnsweredRequest(f"r{number}", "q", "a", "v", 0.0)


class Store:
    """Takes batches when its gate is open; may fail."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.fails = False

    async def __call__(self, requests: Sequence[AnsweredRequest]) -> None:
        await self.gate.wait()
        if self.fails:
            raise OSError("no disk")
        self.batches.append([one.id for one in requests])


async def test_all_that_had_room_arrives_in_order_and_the_rest_is_counted() -> None:
    store = Store()
    queue = RequestQueue(store, capacity=100)
    queue.put(request(0))
    await asyncio.sleep(0)  # the first is under way and counts
    for number in range(1, 150):
        queue.put(request(number))
    assert queue.num_dropped == 50
    store.gate.set()
    await queue.flush()
    assert [name for batch in store.batches for name in batch] == [f"r{number}" for number in range(100)]
    assert max(map(len, store.batches)) <= 64


async def test_a_store_that_fails_costs_its_batch_and_the_next_is_taken() -> None:
    store = Store()
    store.gate.set()
    store.fails = True
    queue = RequestQueue(store, capacity=10)
    queue.put(request(1))
    await queue.flush()
    assert queue.num_dropped == 1
    store.fails = False
    queue.put(request(2))
    await queue.flush()
    assert store.batches == [["r2"]]


async def test_a_queue_that_nothing_was_put_into_is_flushed() -> None:
    queue = RequestQueue(Store(), capacity=1)
    await queue.flush()
    assert queue.num_dropped == 0


async def test_a_vote_arrives_behind_the_answer_that_it_is_about() -> None:
    calls: list[str] = []
    gate = asyncio.Event()

    class Slow(ActorCalls):
        async def once(self, name: str, method: str, *args: Any) -> Any:
            if method == "record":
                await gate.wait()
            calls.append(method)
            return Receipt("r1", "stored", "none")

    parts = RayFeedbackParts(Slow(timeout_s=60.0), config=FeedbackConfig())
    parts.record(request(1))
    vote = asyncio.ensure_future(parts.submit(Feedback("r1", "up")))
    for _ in range(5):
        await asyncio.sleep(0)
    assert calls == []
    gate.set()
    await vote
    assert calls == ["record", "submit"]
