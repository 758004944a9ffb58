from pathlib import Path

import pytest

from memory.claims import claims_of
from memory.consolidate import Consolidation, ConsolidationConfig
from memory.enrichment import EnrichmentConfig, EnrichmentQueue
from memory.episodic import EpisodicMemory
from memory.facts import fact_of
from memory.types import Claim, Episode, Trust
from tests.clock import Clock
from tests.episodes import index_all, make_episode, open_memory, open_semantic

CAPACITY = 20


class Dreams:
    """A memory, its facts and its consolidation over one clock."""

    def __init__(self, folder: Path, **config: object) -> None:
        self.clock = Clock(1_000_000.0)
        self.episodic: EpisodicMemory = open_memory(folder, capacity=CAPACITY, clock=self.clock)
        self.semantic = open_semantic(folder, clock=self.clock)
        self.queue = EnrichmentQueue(EnrichmentConfig(), self.semantic)
        self.replayed: list[Episode] = []
        self.losses: dict[str, float] = {}
        self.learned_ids: set[str] = set()
        self.build(**config)

    def build(self, **config: object) -> None:
        self.consolidation = Consolidation(
            ConsolidationConfig(**{"num_replayed": 4, **config}),  # type: ignore[arg-type]
            episodic=self.episodic,
            semantic=self.semantic,
            capacity=CAPACITY,
            weights=self,
            replay=self.replay,
            enrichment=self.queue,
        )

    def replay(self, episodes: list[Episode]) -> dict[str, float]:
        self.replayed = list(episodes)
        return self.losses

    def learned(self, ids: list[str]) -> set[str]:
        return self.learned_ids & set(ids)

    def versions_that_learned(self, ids: list[str]) -> list[str]:
        return ["v-1"] if self.learned(ids) else []

    def fill(self, num: int) -> list[Episode]:
        episodes = [
            make_episode(
                f"The Torvik part {n} costs {n} euros.", document=f"d{n}", source_id=f"s{n % 2}",
                salience=1.0 + n % 3, happened_at=float(n), title="prices",
            )
            for n in range(num)
        ]  # fmt: skip
        self.episodic.append(episodes)
        index_all(self.episodic)
        return episodes

    def saliences(self) -> dict[str, float]:
        return {one.id: one.salience for one in self.episodic.traits()}


@pytest.fixture
def dreams(tmp_path: Path) -> Dreams:
    return Dreams(tmp_path)


def test_a_run_replays_distils_fades_and_says_what_it_did(dreams: Dreams) -> None:
    episodes = dreams.fill(8)
    again = make_episode("the Torvik part 3 costs 3 euros", document="again")
    vague = make_episode("Rain again today", document="v", salience=0.1)
    dreams.episodic.append([again, vague, vague])
    before = dreams.saliences()
    report = dreams.consolidation.run()

    assert (report.state, report.problem, list(report.steps)) == (
        "done", "", ["snapshot", "sample", "replay", "distil", "fade", "choose", "prune", "verify"],
    )  # fmt: skip
    assert [one.id for one in dreams.replayed] == report.steps["sample"]["replayed"]
    assert len(dreams.replayed) == 4
    assert report.steps["distil"]["num_for_enrichment"] == 1
    assert dreams.semantic.health()["num_enrichments_waiting"] == 1
    assert [one.fact.object for one in dreams.semantic.about("Torvik part 3")] == ["3 euros"]
    after = dreams.saliences()
    faded = [key for key in before if key not in report.steps["sample"]["replayed"]]
    assert all(after[key] == pytest.approx(0.1 + 0.95 * (before[key] - 0.1)) for key in faded)
    assert report.steps["fade"]["num_changed"] == sum(after[key] != before[key] for key in before)
    assert (report.steps["snapshot"]["num_episodes"], report.steps["prune"]["num_pruned"]) == (10, 0)
    assert {episode.id for episode in episodes} <= dreams.episodic.has(before)


def test_what_surprised_the_learner_gains_salience(dreams: Dreams) -> None:
    dreams.fill(4)
    first, second, *_ = dreams.saliences()
    dreams.losses = {first: 4.0, second: 1.0}
    before = dreams.saliences()
    dreams.consolidation.run()
    after = dreams.saliences()
    assert after[first] == pytest.approx(0.1 + 0.95 * (before[first] - 0.1) + 0.5)
    assert after[second] == pytest.approx(0.1 + 0.95 * (before[second] - 0.1) + 0.125)


def test_the_sample_prefers_salient_episodes(tmp_path: Path) -> None:
    dreams = Dreams(tmp_path, num_replayed=2)
    salient = [make_episode(f"word{n} alone", document=f"a{n}", salience=50.0) for n in range(4)]
    dull = [make_episode(f"thing{n} other", document=f"b{n}", salience=0.001) for n in range(12)]
    dreams.episodic.append([*dull, *salient])
    dreams.consolidation.run()
    assert {one.id for one in dreams.replayed} <= {one.id for one in salient}


def test_of_what_left_long_ago_only_that_is_known_which_a_fact_or_a_version_came_from(dreams: Dreams) -> None:
    gone = [make_episode(f"Rain on day {n}", document=f"r{n}", source_id="rain", salience=0.01) for n in range(6)]
    dreams.episodic.append(gone)
    dreams.semantic.add(
        [Claim(fact_of("rain", "is", "wet", sentence="x", episode_id=gone[0].id), "rain", Trust(2), 1.0)]
    )
    dreams.learned_ids = {gone[1].id}
    dreams.queue.put([gone[2].id])
    dreams.fill(CAPACITY)
    dreams.episodic.delete_source("s0")
    assert set(dreams.episodic.ids_of_source("rain")) == {one.id for one in gone}

    dreams.clock.now += 86_400
    dreams.consolidation.run()
    assert (len(dreams.episodic.ids_of_source("rain")), _num_erased(dreams.episodic)) == (6, CAPACITY // 2)
    dreams.clock.now += 86_401
    dreams.consolidation.run()
    assert set(dreams.episodic.ids_of_source("rain")) == {gone[0].id, gone[1].id}
    assert (_num_erased(dreams.episodic), dreams.semantic.health()["num_enrichments_waiting"]) == (0, 0)


def test_a_source_whose_passages_were_pruned_can_be_erased_as_long_as_they_could_come_back(dreams: Dreams) -> None:
    secret = [make_episode(f"Secret of day {n}", document=f"r{n}", source_id="secret", salience=0.0) for n in range(4)]
    dreams.episodic.append(secret)
    dreams.fill(15)
    dreams.build(max_pruned=1.0, kept_runs=3)
    pruning = dreams.consolidation.run()
    gone = set(pruning.steps["choose"]["pruned"]) & {one.id for one in secret}
    assert gone
    dreams.clock.now += 3 * 86_400
    dreams.consolidation.run()

    assert gone <= set(dreams.episodic.ids_of_source("secret"))
    assert gone <= set(dreams.episodic.delete_source("secret"))
    dreams.consolidation.undo(pruning.run, by="ada")
    assert dreams.episodic.ids_of_source("secret") == ()
    assert not dreams.episodic.has([one.id for one in secret])


def _num_erased(memory: EpisodicMemory) -> int:
    with memory._database.read() as connection:
        (num,) = connection.execute("SELECT count(*) FROM episode WHERE deleted_at IS NOT NULL").fetchone()
    return int(num)


def test_a_nearly_full_store_lets_the_least_salient_go_whose_facts_are_held(dreams: Dreams) -> None:
    dreams.build(max_pruned=1.0)
    episodes = dreams.fill(19)
    dreams.semantic.add([claim for episode in episodes[:15] for claim in claims_of(episode)])
    report = dreams.consolidation.run()

    least = [one for one in episodes[:15] if one.salience == 1.0][:3]
    assert report.steps["choose"]["pruned"] == [one.id for one in least]
    assert dreams.episodic.has([one.id for one in episodes]) == {one.id for one in episodes} - {one.id for one in least}
    assert [one.fact.object for one in dreams.semantic.about("Torvik part 0")] == ["0 euros"]
    assert dreams.episodic.ids_of("d0") == (episodes[0].id,)  # its facts can be erased


def test_no_more_than_a_share_goes_in_one_run(dreams: Dreams) -> None:
    dreams.build(max_pruned=0.1)
    episodes = dreams.fill(20)
    dreams.semantic.add([claim for episode in episodes for claim in claims_of(episode)])
    assert dreams.consolidation.run().steps["prune"]["num_pruned"] == 2


def test_an_undone_run_leaves_everything_as_it_was_but_what_came_since(dreams: Dreams) -> None:
    dreams.build(max_pruned=1.0)
    episodes = dreams.fill(19)
    dreams.semantic.add([claim for episode in episodes for claim in claims_of(episode)])
    before = dreams.saliences()
    report = dreams.consolidation.run()
    pruned = report.steps["choose"]["pruned"]
    assert len(pruned) == 3
    new = make_episode("Something new.", document="new")
    dreams.episodic.append([new])
    dreams.episodic.delete_document(dreams.episodic.get([episodes[5].id])[0].document_id)
    undone = dreams.consolidation.undo(report.run, by="ann")

    assert (undone.state, undone.problem) == ("undone", "undone by ann")
    assert dreams.saliences() == {key: value for key, value in before.items() if key != episodes[5].id} | {new.id: 1.0}
    index_all(dreams.episodic)
    assert episodes[0].id in {hit.episode.id for hit in dreams.episodic.recall(episodes[0].text, k=9)}
    assert [one.text for one in dreams.episodic.get(pruned)] == [episodes[n].text for n in (0, 3, 6)]
    with pytest.raises(ValueError, match=r"cannot be undone: those that can are none"):
        dreams.consolidation.undo(report.run, by="ann")


def test_what_is_erased_after_it_was_let_go_is_in_no_file_and_does_not_come_back(
    dreams: Dreams, tmp_path: Path
) -> None:
    dreams.build(max_pruned=1.0)
    secret = make_episode("The Kestrel code is KX-4471.", document="secret", source_id="wiki", salience=0.01)
    dreams.episodic.append([secret])
    dreams.semantic.add(claims_of(secret))
    dreams.fill(18)
    report = dreams.consolidation.run()
    assert secret.id in report.steps["choose"]["pruned"]

    assert dreams.episodic.delete_source("wiki") == (secret.id,)
    dreams.semantic.forget_episodes([secret.id])
    assert not [file for file in tmp_path.iterdir() if b"4471" in file.read_bytes()]
    dreams.consolidation.undo(report.run, by="ann")
    assert dreams.episodic.has([secret.id]) == set()


@pytest.mark.parametrize("stop_before", range(1, 14))
def test_a_run_that_is_cut_off_anywhere_goes_on_and_ends_as_if_it_was_not(tmp_path: Path, stop_before: int) -> None:
    results = []
    for name in ("cut", "whole"):
        dreams = Dreams(tmp_path / name, max_pruned=1.0)
        episodes = dreams.fill(19)
        dreams.semantic.add([claim for episode in episodes for claim in claims_of(episode)])
        if name == "cut":
            num_left = stop_before

            def count() -> None:
                nonlocal num_left
                num_left -= 1
                if num_left == 0:
                    raise PermissionError("killed")

            with pytest.raises(PermissionError):
                dreams.consolidation.run(guard=count)
            dreams.episodic.close()
            dreams.semantic.close()
            dreams.__init__(tmp_path / name, max_pruned=1.0)  # type: ignore[misc]
            assert dreams.consolidation.due() == (stop_before > 1)
        report = dreams.consolidation.run()
        results.append(
            (
                report.run,
                dreams.saliences(),
                {**report.steps["choose"], **report.steps["prune"]},
                report.steps["sample"]["replayed"],
            )
        )
        assert len(dreams.consolidation.reports()) == 1
    assert results[0] == results[1]


def test_a_run_that_fails_its_verification_is_undone_by_itself_and_says_so(
    dreams: Dreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    dreams.build(max_pruned=1.0)
    episodes = dreams.fill(19)
    dreams.semantic.add([claim for episode in episodes for claim in claims_of(episode)])
    before = dreams.saliences()
    recall = dreams.episodic.recall
    monkeypatch.setattr(dreams.episodic, "recall", lambda text, k: recall(text, k=k) if k < 10 else [])
    report = dreams.consolidation.run()

    assert report.state == "undone"
    assert "is not recalled by its own words" in report.problem
    assert dreams.saliences() == before


def test_it_is_due_every_interval_and_keeps_what_undoes_the_last_runs(dreams: Dreams) -> None:
    assert not dreams.consolidation.due()
    dreams.semantic.add([claim for episode in dreams.fill(6) for claim in claims_of(episode)])
    assert not dreams.consolidation.due()  # not in the midst of a first reading
    dreams.clock.now += 86_400
    runs = []
    for _ in range(5):
        assert dreams.consolidation.due()
        runs.append(dreams.consolidation.run().run)
        assert not dreams.consolidation.due()
        dreams.clock.now += 86_400
    assert [one.run for one in dreams.consolidation.reports(limit=2)] == runs[:2:-1]
    with pytest.raises(ValueError, match="those that can are"):
        dreams.consolidation.undo(runs[1], by="ann")
    before = dreams.saliences()
    dreams.consolidation.undo(runs[4], by="ann")
    assert dreams.saliences() != before


def test_a_reset_of_the_emergency_stop_starts_nothing_and_begins_the_interval_anew(dreams: Dreams) -> None:
    dreams.semantic.add([claim for episode in dreams.fill(6) for claim in claims_of(episode)])
    dreams.clock.now += 86_400
    reset_at = dreams.clock.now
    assert dreams.consolidation.due()
    assert not dreams.consolidation.due(reset_at=reset_at)
    num_asked = 0

    def stop() -> None:
        nonlocal num_asked
        num_asked += 1
        if num_asked > 2:
            raise PermissionError("stopped")

    with pytest.raises(PermissionError):
        dreams.consolidation.run(guard=stop)
    assert dreams.consolidation.due(reset_at=reset_at)  # a crash after the reset is taken up at once
    assert not dreams.consolidation.due(reset_at=reset_at + 60)  # what a stop cut off is not
    dreams.clock.now += 86_400 + 60
    assert dreams.consolidation.due(reset_at=reset_at + 60)


def test_an_empty_memory_dreams_of_nothing(dreams: Dreams) -> None:
    report = dreams.consolidation.run()
    assert (report.state, report.steps["sample"]["replayed"], report.steps["fade"]) == ("done", [], {"num_changed": 0})


def test_what_is_held_back_meanwhile_is_neither_replayed_nor_brought_back_to_recall(dreams: Dreams) -> None:
    dreams.build(max_pruned=1.0, num_replayed=20)
    episodes = dreams.fill(19)
    dreams.semantic.add([claim for episode in episodes for claim in claims_of(episode)])
    report = dreams.consolidation.run()
    pruned = report.steps["choose"]["pruned"]
    dreams.episodic.set_trust(Trust.UNTRUSTED, source_id="s0")
    dreams.episodic.set_trust(Trust.UNTRUSTED, source_id="s1")
    dreams.consolidation.undo(report.run, by="ann")
    assert {one.trust for one in dreams.episodic.get(pruned)} == {Trust.UNTRUSTED}
    assert dreams.episodic.traits() == []
    dreams.clock.now -= 500
    dreams.replayed = []
    again = dreams.consolidation.run()
    assert (again.state, again.started_at > report.started_at, dreams.replayed) == ("done", True, [])


def test_a_text_without_words_fails_no_verification(dreams: Dreams) -> None:
    dreams.episodic.append([make_episode("→ →", title="")])
    assert dreams.consolidation.run().state == "done"
