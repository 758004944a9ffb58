"""Evaluation in the midst of training: loss on held-out shards, samples, and a bigram model as a baseline.

In: the trainer, between two steps. Out: nats per token, over all ranks the same sequences at each evaluation; texts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from train.data.batch import TokenBatch
from train.data.token_sources import SourceSpec
from train.pretrain.bigram import BigramModel
from train.pretrain.config import PretrainingConfigError
from train.pretrain.parallel import DistributedTrainer4D


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """Nats per token."""

    loss: float
    """Of all sources' tokens together."""
    by_source: dict[str, float]


class Evaluator:
    """Of one run. Every rank calls it in the same order."""

    def __init__(self, trainer: DistributedTrainer4D, *, tokenizer: Path | None) -> None:
        """Raises PretrainingConfigError if there are prompts and no tokenizer that encodes them, or the model cannot go on
        from them."""
        self._trainer, self._config = trainer, trainer.config.evaluation
        self.sources = trainer.config.data.evaluation_sources
        """Held-out parts of the data's sources."""
        self._tokenizer: Tokenizer | None = None
        self._prompts: list[list[int]] = []
        if self._config.prompts:
            if tokenizer is None or not (tokenizer / "tokenizer.json").is_file():
                raise PretrainingConfigError(
                    f"evaluation.prompts needs the tokenizer of the shards, and {tokenizer or 'data.tokenizer'} holds no "
                    "tokenizer.json: name its folder in data.tokenizer, or remove the prompts"
                )
            self._tokenizer = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
            self._prompts = [self._tokenizer.encode(prompt).ids for prompt in self._config.prompts]
            longest = trainer.config.model.max_position_embeddings - self._config.max_new_tokens
            for prompt, ids in zip(self._config.prompts, self._prompts, strict=True):
                if not 1 <= len(ids) <= longest:
                    raise PretrainingConfigError(
                        f"evaluation.prompts: {prompt[:40]!r} has {len(ids)} tokens, and the model takes 1 to {longest} "
                        "before evaluation.max_new_tokens; change one of them"
                    )

    def loss(self) -> HeldOutLoss | None:
        """None where nothing is held out."""
        sums, counts = {}, {}
        for index, source in enumerate(self.sources):
            total, count, name = 0.0, 0, source.name or f"source {index}"
            batches = self._batches(source)
            while found := self._trainer.read(batches):
                micro_batches, totals = found
                total += self._trainer.engine.evaluate(micro_batches)
                count += totals.num_loss_tokens
            sums[name], counts[name] = total, count
        if not sums:
            return None
        return HeldOutLoss(
            sum(sums.values()) / sum(counts.values()), {name: sums[name] / counts[name] for name in sums}
        )

    def samples(self) -> list[tuple[str, str]]:
        """(prompt, what the model wrote after it)."""
        tokenizer, prompts = self._tokenizer, self._config.prompts
        if tokenizer is None or self._trainer.is_divided:
            return []
        written = self._trainer.engine.generate(self._prompts, self._config.sampling)
        return [(prompt, tokenizer.decode(one.token_ids)) for prompt, one in zip(prompts, written, strict=True)]

    def bigram_losses(self) -> dict[str, float]:
        """Of a bigram and a unigram model of the training stream's first tokens, on what `loss` reads. For one rank alone."""
        trainer = self._trainer
        if not self._config.bigram_tokens or not self.sources:
            return {}
        with trainer.loader(trainer.config.data.training_sources, is_whole=True) as loader:
            steps = max(2, -(-self._config.bigram_tokens // trainer.config.tokens_per_step))
            model = BigramModel.fit(islice(loader, steps), vocab_size=trainer.config.model.vocab_size)
        held_out = [batch for source in self.sources for batch in self._batches(source, is_whole=True)]
        return {"bigram": model.loss(held_out), "unigram": model.unigram_loss(held_out)}

    def _batches(self, source: SourceSpec, *, is_whole: bool = False) -> Iterator[TokenBatch]:
        """The same ones at each call."""
        with self._trainer.loader((source,), is_evaluation=True, is_whole=is_whole) as loader:
            yield from islice(loader, -(-self._config.num_sequences // loader.config.global_batch_size))
