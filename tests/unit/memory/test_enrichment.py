from pathlib import Path

import pytest

from memory.claims import claims_of
from memory.enrichment import EnrichmentConfig, EnrichmentQueue
from memory.semantic import SemanticMemory
from memory.types import Episode
from tests.clock import Clock
from tests.episodes import make_episode, open_semantic

TEXT = make_episode("After the merger, Torvik moved its pumps to hall seven. It was a cold day.", title="news")


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def memory(tmp_path: Path, clock: Clock) -> SemanticMemory:
    return open_semantic(tmp_path, clock=clock)


@pytest.fixture
def queue(memory: SemanticMemory) -> EnrichmentQueue:
    return EnrichmentQueue(EnrichmentConfig(max_attempts=2, retry_s=60), memory)


def _read(ids: list[str]) -> list[Episode]:
    return [TEXT] if TEXT.id in ids else []


def test_what_a_model_reads_is_kept_with_less_confidence_if_it_stands_in_the_text(
    memory: SemanticMemory, queue: EnrichmentQueue
) -> None:
    queue.put([TEXT.id, "gone"])
    queue.put([TEXT.id])
    read = [("Torvik", "moved its pumps to", "hall  seven"), ("Torvik", "moved to", "the moon"), ("", "is", "Torvik")]
    assert queue.run_once(lambda episode: read, _read) == 2

    (belief,) = memory.about("Torvik")
    assert (belief.fact.object, belief.confidence) == ("hall seven", 0.5)
    assert belief.fact.sentence == "After the merger, Torvik moved its pumps to hall seven."
    assert (queue.run_once(lambda episode: read, _read), memory.health()["num_enrichments_waiting"]) == (0, 0)


def test_a_failure_is_tried_again_later_and_then_stands_in_the_queue_with_its_error(
    memory: SemanticMemory, queue: EnrichmentQueue, clock: Clock
) -> None:
    def fail(episode: Episode) -> list[tuple[str, str, str]]:
        raise TimeoutError("the engine did not answer")

    queue.put([TEXT.id])
    assert [queue.run_once(fail, _read), queue.run_once(fail, _read), queue.failed()] == [1, 0, []]
    clock.now += 60
    assert queue.run_once(fail, _read) == 1
    (failed,) = queue.failed()
    assert (failed.episode_id, failed.num_attempts) == (TEXT.id, 2)
    assert failed.error == "TimeoutError: the engine did not answer"
    assert memory.health()["num_enrichments_failed"] == 1

    clock.now += 3600
    assert queue.run_once(fail, _read) == 0
    assert queue.retry_failed() == 1
    assert queue.run_once(lambda episode: [("Torvik", "moved its pumps to", "hall seven")], _read) == 1
    assert len(memory.about("Torvik")) == 1


def test_a_pattern_is_believed_before_a_model(memory: SemanticMemory, queue: EnrichmentQueue) -> None:
    text = make_episode("The Torvik pump costs 9 euros. Some say 90 euros.")
    memory.add(claims_of(text))
    queue.put([text.id])
    queue.run_once(lambda episode: [("The Torvik pump", "costs", "90 euros")], lambda ids: [text])
    assert [one.fact.object for one in memory.resolve("Torvik pump", "costs")] == ["9 euros", "90 euros"]


def test_an_erased_episode_leaves_the_queue(memory: SemanticMemory, queue: EnrichmentQueue) -> None:
    queue.put([TEXT.id])
    memory.forget_episodes([TEXT.id])
    assert memory.health()["num_enrichments_waiting"] == 0


def test_what_was_held_back_is_read_again_after_its_release(memory: SemanticMemory, queue: EnrichmentQueue) -> None:
    def read_once() -> int:
        queue.put([TEXT.id])
        return queue.run_once(lambda episode: [("Torvik", "moved its pumps to", "hall seven")], _read)

    assert (read_once(), read_once()) == (1, 0)
    memory.withdraw_source(TEXT.source_id)
    assert memory.about("Torvik") == []

    assert (read_once(), len(memory.about("Torvik"))) == (1, 1)
