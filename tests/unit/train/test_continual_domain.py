"""DomainAdaptive: losses of every domain before, between and after; the mixture; domains out of texts."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.continual import adamw, domains, writer
from train.continual.domain import Domain, DomainAdaptive, DomainConfig, build_domain, mean_loss
from train.continual.mixing import BatchReplay, ReplayConfig
from train.continual.report import render_html
from train.continual.trainer import ContinualTrainer

CONFIG = DomainConfig(steps=12, batch_size=4, evaluate_every=6)


def build(config: DomainConfig = CONFIG, *, replays: bool = True) -> DomainAdaptive:
    methods = [BatchReplay(ReplayConfig(share=0.5))] if replays else []
    return DomainAdaptive(ContinualTrainer(writer(), "causal", methods=methods, optimizer=adamw), domains(), config)


def test_each_domain_is_learned_and_scored_before_between_and_after() -> None:
    adaptive = build()
    found = adaptive.run()
    assert np.isfinite(found.matrix.losses).all()
    assert (found.matrix.learned > 0.3).all()
    assert found.steps == [0, 6, 12, 18, 24, 30, 36]
    assert found.begins == [0, 12, 24]
    assert found.curves[0] == found.before
    assert [found.curves[index] for index in (2, 4, 6)] == found.rows
    last = mean_loss(adaptive.trainer, adaptive.domains[1].held_out, size=3)
    assert last == pytest.approx(found.rows[-1][1], rel=1e-5)  # batches of another size
    assert "domain 2" in render_html([found.report("replay")], title="x")


def test_replay_forgets_less_than_half_of_what_naive_learning_does() -> None:
    with_replay, naive = build().run().matrix, build(replays=False).run().matrix
    assert with_replay.drop_per_domain.mean() < 0.5 * naive.drop_per_domain.mean()


def test_the_same_run_twice_is_the_same() -> None:
    assert build().run().rows == build().run().rows


def test_what_was_forgotten_most_gets_most_of_the_old_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    adaptive = build(CONFIG.model_copy(update={"mixture": "by_drop"}))
    told: list[dict[int, float]] = []
    replay = adaptive.trainer.methods[0]
    assert isinstance(replay, BatchReplay)
    mix = replay.mix

    def watched(weights: Any) -> None:
        if weights is not None:
            told.append(dict(weights))
        mix(weights)

    monkeypatch.setattr(replay, "mix", watched)
    found = adaptive.run()
    assert [len(weights) for weights in told] == [1, 1, 2, 2]
    middle = found.curves[5]
    best = [min(row[index] for row in found.curves[:6]) for index in range(2)]
    drops = [(middle[index] - best[index]) / best[index] for index in range(2)]
    assert (told[-1][0] > told[-1][1]) == (drops[0] > drops[1])
    assert min(told[-1].values()) > 0


def test_a_domain_of_which_a_small_buffer_has_nothing_gets_no_share() -> None:
    config = CONFIG.model_copy(update={"mixture": "by_drop"})
    methods = [BatchReplay(ReplayConfig(share=0.5, capacity=1))]
    trainer = ContinualTrainer(writer(), "causal", methods=methods, optimizer=adamw)
    assert len(DomainAdaptive(trainer, domains(), config).run().rows) == 3


def test_a_step_s_sequences_are_the_same_whenever_asked_and_all_come_up_in_a_pass() -> None:
    domain = domains(1)[0]
    batches = [domain.batch(step, size=6, seed=3) for step in range(8)]  # three passes over 16
    ids = torch.cat([batch["id"] for batch in batches]).tolist()
    assert len(set(ids[:16])) == len(set(ids[16:32])) == len(set(ids[32:])) == 16
    assert torch.equal(domain.batch(5, size=6, seed=3)["input_ids"], batches[5]["input_ids"])


class Letters:
    """A tokenizer with a token per letter."""

    eos_token_id = 0

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(letter) - 96 for letter in text]}


def test_texts_become_sequences_with_held_out_ones_of_other_texts() -> None:
    texts = [chr(97 + index) * 20 for index in range(20)]
    domain = build_domain(
        "letters", texts, tokenizer=Letters(), sequence_length=8, num_train=6, num_held_out=4, first_id=100
    )
    assert domain.train["id"].tolist() == [100, 101, 102, 103, 104, 105]
    assert domain.held_out["id"].tolist() == [106, 107, 108, 109]
    assert domain.train["input_ids"].shape == domain.train["labels"].shape == (6, 8)
    assert torch.equal(domain.train["input_ids"][:, 1:], domain.train["labels"][:, :-1])
    words = [set(batch["input_ids"].flatten().tolist()) - {0} for batch in (domain.train, domain.held_out)]
    assert not words[0] & words[1]
    assert 0 in domain.train["input_ids"]  # texts end
    with pytest.raises(ValueError, match="give more texts"):
        build_domain("few", texts, tokenizer=Letters(), sequence_length=8, num_train=60, num_held_out=4, first_id=0)


def test_bad_input_is_refused() -> None:
    trainer = ContinualTrainer(writer(), "causal", methods=[], optimizer=adamw)
    with pytest.raises(ValueError, match="give at least one"):
        DomainAdaptive(trainer, [])
    with pytest.raises(ValueError, match="each with a name of its own"):
        DomainAdaptive(trainer, [*domains(1), *domains(1)])
    with pytest.raises(ValueError, match="no method replays any: add BatchReplay"):
        DomainAdaptive(trainer, domains(), DomainConfig(mixture="by_drop"))
    first, second = domains(2)
    twice = Domain("again", second.train | {"id": first.train["id"]}, second.held_out)
    with pytest.raises(ValueError, match=r"two sequences have the id \d+: count ids on"):
        DomainAdaptive(trainer, [first, twice])
    empty = {name: value[:0] for name, value in domains(1)[0].train.items()}
    with pytest.raises(ValueError, match="domain 'empty' has 0 sequences to learn"):
        DomainAdaptive(trainer, [Domain("empty", empty, domains(1)[0].held_out)])
