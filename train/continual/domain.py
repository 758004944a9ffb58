"""DomainAdaptive: a language model through a sequence of domains, scored on every one of them after each.

In: domains as token sequences, a trainer with its methods. Out: a DomainOutcome: the loss of each domain before, after each
domain and over time. With `mixture = "by_drop"` the old samples of a batch are shared among the earlier domains by how much
each has lost so far, so that what is forgotten most is seen again most. With a folder the run is saved at each evaluation,
and a killed one goes on exactly.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from train.continual.checkpoints import ContinualCheckpoints
from train.continual.method import Task
from train.continual.metrics import LossMatrix
from train.continual.mixing import BatchReplay
from train.continual.report import Curve, WayReport
from train.continual.rows import Batch
from train.continual.step import StepRecord
from train.continual.trainer import ContinualTrainer

MIN_SHARE = 0.1
"""Of an even share: what an earlier domain that has lost nothing gets of the old samples."""


class DomainConfig(BaseModel):
    """How each domain is learned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(100, gt=0)
    """Optimizer steps of a domain."""
    batch_size: int = Field(8, gt=0)
    """New sequences of a step; replay adds to them."""
    evaluate_every: int = Field(20, gt=0)
    """Optimizer steps between two evaluations of all domains."""
    mixture: Literal["reservoir", "by_drop"] = "reservoir"
    """How old samples are shared among the earlier domains: as they lie in the buffer, or by what each has lost."""
    seed: int = 0
    """Of the order of the sequences."""


@dataclass(frozen=True, slots=True)
class Domain:
    """Sequences of one domain: `id` [batch], `input_ids` and `labels` [batch, seq]."""

    name: str
    train: Batch
    held_out: Batch

    def batch(self, step: int, *, size: int, seed: int) -> Batch:
        """Of a step, counted from 0; each pass over the sequences has an order of its own."""
        count = len(self.train["id"])
        places = np.arange(step * size, (step + 1) * size)
        order = {one: np.random.default_rng([seed, one]).permutation(count) for one in set((places // count).tolist())}
        rows = torch.tensor([order[place // count][place % count] for place in places.tolist()])
        return {name: value[rows] for name, value in self.train.items()}


@dataclass(slots=True)
class DomainOutcome:
    """What the sequence did."""

    names: list[str]
    before: list[float]
    """Loss of each domain before the first, nats per token."""
    rows: list[list[float]] = field(default_factory=list)
    """The same after each domain, in the order in which they were learned."""
    steps: list[int] = field(default_factory=list)
    """At which all were scored, over all domains."""
    curves: list[list[float]] = field(default_factory=list)
    """For each of these steps the loss of each domain."""
    begins: list[int] = field(default_factory=list)
    """The step at which each domain begins."""

    @property
    def matrix(self) -> LossMatrix:
        """Raises ValueError before all domains were learned."""
        return LossMatrix(np.asarray(self.rows), np.asarray(self.before))

    def report(self, name: str, **figures: str) -> WayReport:
        """For the page (report.py)."""
        curves = {
            domain: Curve(self.steps, [losses[index] for losses in self.curves])
            for index, domain in enumerate(self.names)
        }
        return WayReport(name, self.names, self.matrix, figures=figures, curves=curves, begins=self.begins)


class DomainAdaptive:
    """One sequence of domains. The ranks of the trainer's group, where it has one, share each batch and each evaluation; each
    of them is given all sequences."""

    def __init__(
        self,
        trainer: ContinualTrainer,
        domains: Sequence[Domain],
        config: DomainConfig | None = None,
        *,
        folder: Path | None = None,
        on_scores: Callable[[int, dict[str, float]], None] = lambda *_: None,
    ) -> None:
        """`folder`: of checkpoints; a run that it holds is gone on with. `on_scores` is told of each evaluation: the step over
        all domains, the losses. Raises ValueError for no domain, two of one name, one without sequences for each rank,
        sequences of one id, and for a mixture without replay."""
        self.trainer, self.domains, self.config = trainer, list(domains), config or DomainConfig()
        self._on_scores = on_scores
        names = [domain.name for domain in domains]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"domains = {names}: give at least one, each with a name of its own")
        group = trainer.learner.group
        self._rank, self._num_ranks = (0, 1) if group is None else (group.rank(), group.size())
        if self.config.batch_size < self._num_ranks:
            raise ValueError(
                f"batch_size = {self.config.batch_size} leaves some of {self._num_ranks} ranks without: raise it"
            )
        for domain in domains:
            if min(len(domain.train["id"]), len(domain.held_out["id"])) < self._num_ranks:
                raise ValueError(
                    f"domain {domain.name!r} has {len(domain.train['id'])} sequences to learn and "
                    f"{len(domain.held_out['id'])} held out: give at least {self._num_ranks} of both"
                )
        ids = torch.cat([domain.train["id"] for domain in domains])
        if len(unique := ids.unique(return_counts=True)[1]) < len(ids):
            twice = ids.unique()[unique.argmax()]
            raise ValueError(f"two sequences have the id {int(twice)}: count ids on from domain to domain (first_id)")
        self._replay = next((one for one in trainer.methods if isinstance(one, BatchReplay)), None)
        if self.config.mixture == "by_drop" and self._replay is None:
            raise ValueError("mixture = 'by_drop' shares old samples, and no method replays any: add BatchReplay")
        self.outcome: DomainOutcome | None = None
        self._best: list[float] = []
        self._checkpoints = None if folder is None else ContinualCheckpoints(folder, trainer)
        self._fingerprints = [] if folder is None else [[domain.name, fingerprint(domain)] for domain in domains]

    def run(self) -> DomainOutcome:
        """Learn all domains in turn, or those that are left. Raises ValueError for the checkpoint of a run through other
        domains or with another configuration."""
        names = [domain.name for domain in self.domains]
        saved = None if self._checkpoints is None else self._checkpoints.extra()
        if saved is None:
            before = self._score(0)
            self.outcome = DomainOutcome(names, before, steps=[0], curves=[before])
            self._best = list(before)
            self._save(0)
        else:
            self._take_up(saved)
        outcome = self.outcome
        assert outcome is not None
        for index in range(len(outcome.rows), len(self.domains)):
            self._learn(index, self.domains[index])
            outcome.rows.append(outcome.curves[-1])
            self._save((index + 1) * self.config.steps)
        return outcome

    def _save(self, step: int) -> None:
        if self._checkpoints is not None:
            assert self.outcome is not None
            extra = {
                "config": self.config.model_dump(), "domains": self._fingerprints, "outcome": asdict(self.outcome),
                "best": self._best,
            }  # fmt: skip
            self._checkpoints.save(step, extra)

    def _take_up(self, saved: dict[str, Any]) -> None:
        config = self.config.model_dump()
        if saved["config"] != config:
            raise ValueError(
                f"the folder holds a run with {saved['config']}, and this one has {config}: give the same, or another folder"
            )
        if saved["domains"] != self._fingerprints:
            names = saved["outcome"]["names"]
            raise ValueError(
                f"the folder holds a run through other sequences, of the domains {names}: give those, or another folder"
            )
        assert self._checkpoints is not None
        self._checkpoints.load()
        self.outcome, self._best = DomainOutcome(**saved["outcome"]), list(saved["best"])

    def _learn(self, index: int, domain: Domain) -> None:
        config, outcome = self.config, self.outcome
        assert outcome is not None
        begin = index * config.steps
        if len(outcome.begins) == index:
            outcome.begins.append(begin)
            self._mix(outcome.curves[-1][:index])

        def on_step(step: int, _: StepRecord) -> None:
            if step % config.evaluate_every == 0 and step < config.steps:
                self._mix(self._score(begin + step, num_learned=index + 1)[:index])
                self._save(begin + step)

        self.trainer.learn(
            Task(domain.name, index),
            lambda step: self._share(domain.batch(step, size=config.batch_size, seed=config.seed + index)),
            num_steps=config.steps,
            samples=lambda: batches_of(self._share(domain.train), size=config.batch_size),
            on_step=on_step,
        )
        self._score(begin + config.steps, num_learned=index + 1)

    def _share(self, sequences: Batch) -> Batch:
        """This rank's."""
        return {name: value[self._rank :: self._num_ranks] for name, value in sequences.items()}

    def _score(self, step: int, *, num_learned: int = 0) -> list[float]:
        """The loss of every domain now; those that were learned as they are served."""
        losses = []
        for index, domain in enumerate(self.domains):
            with self.trainer.serving(index if index < num_learned else None):
                losses.append(mean_loss(self.trainer, self._share(domain.held_out), size=self.config.batch_size))
        if self.outcome is not None:
            self.outcome.steps.append(step)
            self.outcome.curves.append(losses)
        self._on_scores(step, dict(zip((domain.name for domain in self.domains), losses, strict=True)))
        return losses

    def _mix(self, losses: Sequence[float]) -> None:
        """Share the old samples by what each earlier domain has lost since its best."""
        if self.config.mixture == "reservoir" or not losses:
            return
        self._best[: len(losses)] = [min(pair) for pair in zip(self._best, losses, strict=False)]
        drops = np.asarray([(loss - best) / best for loss, best in zip(losses, self._best, strict=False)])
        even = drops.mean() if drops.any() else 1.0
        assert self._replay is not None
        there = set(self._replay.tasks)  # a small buffer may have nothing of a domain
        weights = {index: float(drop + MIN_SHARE * even) for index, drop in enumerate(drops) if index in there}
        self._replay.mix(weights or None)


def fingerprint(domain: Domain) -> str:
    """SHA-256 of its sequences."""
    digest = hashlib.sha256()
    for part in (domain.train, domain.held_out):
        for name in sorted(part):
            digest.update(f"{name} {list(part[name].shape)}".encode())
            digest.update(part[name].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def mean_loss(trainer: ContinualTrainer, sequences: Batch, *, size: int) -> float:
    """Nats per token that has a label, over all ranks' sequences; the model as it is switched now."""
    total = torch.zeros(2, dtype=torch.float64, device=sequences["id"].device)
    for batch in batches_of(sequences, size=size):
        rows = trainer.learner.rows_of(batch)
        total[0] += rows.loss_sum
        total[1] += len(rows.targets)
    trainer.learner.sum_over_ranks(total)
    return float(total[0] / total[1])


def batches_of(sequences: Batch, *, size: int) -> list[Batch]:
    """Once through, in order."""
    return [
        {name: value[begin : begin + size] for name, value in sequences.items()}
        for begin in range(0, len(sequences["id"]), size)
    ]


def build_domain(
    name: str,
    texts: Sequence[str],
    *,
    tokenizer: Any,
    sequence_length: int,
    num_train: int,
    num_held_out: int,
    first_id: int,
    seed: int = 0,
) -> Domain:
    """A domain out of texts: the last ones in an order drawn by `seed` are held out, whole texts at a time.

    Texts are tokenized, joined by the end-of-sequence token and cut into sequences. `first_id`: ids count on from it; they
    have to be unique over all domains. Raises ValueError if the texts do not give so many sequences.
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    length, end = sequence_length + 1, tokenizer.eos_token_id
    cut: list[list[int]] = []
    for places, wanted in ((order[::-1], num_held_out), (order, num_train)):
        stream: list[int] = []
        for place in places[: len(places) // 2]:
            if len(stream) >= wanted * length:
                break
            stream += [*tokenizer(texts[place], add_special_tokens=False)["input_ids"], end]
        if len(stream) < wanted * length:
            raise ValueError(
                f"domain {name!r}: half of its {len(texts)} texts give {len(stream) // length} sequences of {sequence_length} "
                f"tokens, and {wanted} are wanted: give more texts, or ask for fewer"
            )
        cut.append(stream[: wanted * length])
    held_out, train = (torch.tensor(stream).view(-1, length) for stream in cut)
    return Domain(name, _sequences(train, first_id=first_id), _sequences(held_out, first_id=first_id + len(train)))


def _sequences(tokens: Int[Tensor, "sequences length"], *, first_id: int) -> Batch:
    ids = torch.arange(first_id, first_id + len(tokens))
    return {"id": ids, "input_ids": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}
