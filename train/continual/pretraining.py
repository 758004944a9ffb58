"""ContinualPretraining: a pre-training run goes on with new data, and keeps reading some of the old.

In: the folder of a run, sources of new token shards. Out: the PretrainingConfig of a run that begins with that one's weights,
reads new and old sources in shares, and evaluates on the held-out shards of both. `autonomous train continue` runs it.

The rate rises and falls again (`cosine` with a warm-up: re-warming and re-decay), or stays where it was (`infinite`, from a
checkpoint before the fall). Either with replay was about as good as training anew on everything: 5 % of old data for new data
of the same kind, 25 % for another language (arXiv:2403.08763, section 6). Between these the share follows the size of the
shift: the Jensen-Shannon divergence of how often each token occurs in old and new data, in bits, so from 0 to 1.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from train.data.batch import IGNORE
from train.data.loader import LoaderConfig
from train.data.token_sources import SourceSpec
from train.pretrain.checkpoint_store import CHECKPOINTS_NAME, CheckpointStore
from train.pretrain.config import PretrainingConfig
from train.pretrain.engine import CONFIG_NAME, open_run
from train.pretrain.export import export_checkpoint, model_of
from train.pretrain.parallel import open_loader
from train.pretrain.schedule import ScheduleConfig
from train.toml_file import absolute_path, explain, field_errors, read_toml, set_fields, with_absolute_locations

START_NAME = "start"
"""Of the folder of the first weights, in that of the run; the checkpoint's name follows."""
WEAK, STRONG = (0.05, 0.05), (0.35, 0.25)
"""(shift in bits, share of old data), between and beyond which the share is a line and stays."""
SAMPLE_BATCH = 64


class ContinualPretrainingConfig(BaseModel):
    """What goes on, and with what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Path
    """Output folder of the run that goes on. What is not named here is as it was there."""
    step: int | None = Field(None, ge=0)
    """Its checkpoint; None: the last one. With an `infinite` schedule one before the fall."""
    output: Path
    """Folder of the new run."""
    sources: tuple[SourceSpec, ...] = Field(min_length=1)
    """The new data. `weight` is relative among them. With `held_out_every` they are evaluated as well."""
    tokens: int = Field(gt=0)
    """That the new run reads, old ones among them."""
    replay_share: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    """Share of the sequences that are of the old run's sources. auto: by the size of the shift."""
    sample_sequences: int = Field(2048, gt=0)
    """Of old and of new data, that the shift is measured on."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Of the new run."""
    changes: dict[str, Any] = {}
    """Other fields of PretrainingConfig by dotted names, as `--set` has them."""

    @model_validator(mode="after")
    def _is_another_run(self) -> Self:
        if self.run == self.output:
            raise ValueError(f"output = {self.output} is the run that goes on: choose another folder")
        if empty := [source.name or str(source.location) for source in self.sources if source.weight <= 0]:
            raise ValueError(f"sources: {empty[0]!r} has weight 0, and new data are read: give it a weight above 0")
        return self


class ContinualPretraining:
    """One continuation."""

    def __init__(self, config: ContinualPretrainingConfig) -> None:
        """Raises ValueError if there is no such run or checkpoint, and for a source's name that the run has already."""
        self.config = config
        self.previous = open_run(config.run)
        store = CheckpointStore(config.run / CHECKPOINTS_NAME)
        found = store.latest() if config.step is None else store.find(config.step)
        if found is None:
            raise ValueError(f"run = {config.run} has no committed checkpoint yet: train it first")
        self.checkpoint = found
        old = {source.name for source in self.previous.data.sources}
        if taken := sorted(old & {source.name for source in config.sources}):
            raise ValueError(
                f"sources: {config.run} has read a source named {taken[0]!r} already: name the new one otherwise"
            )

    def shift(self) -> float:
        """How far the new data are from the old, bits: 0 the same tokens equally often, 1 none in common."""
        old, new = (
            self._count_tokens(sources) for sources in (self.previous.data.training_sources, self.config.sources)
        )
        return token_shift(old, new)

    def pretraining_config(self, *, replay_share: float) -> PretrainingConfig:
        """Of the new run, with its first weights written into its folder. Raises ValueError for changes that do not fit, and
        for an output that holds a run from another checkpoint; writes nothing then."""
        config = self.config
        start, tokenizer = config.output / f"{START_NAME}-{self.checkpoint.name}", self.previous.tokenizer_folder
        if (config.output / CONFIG_NAME).is_file() and (began := open_run(config.output).start_from) != start:
            raise ValueError(
                f"output = {config.output} holds a run that began from {began or 'fresh weights'}, and this one begins "
                f"from {start}: give another folder"
            )
        fields = self.previous.model_dump(mode="json")
        old = self.previous.data.sources if replay_share else self.previous.data.held_out_sources
        sources = _weighted(config.sources, 1 - replay_share) + _weighted(old, replay_share)
        fields |= {
            "output": str(config.output), "start_from": str(start), "tokens": config.tokens,
            "schedule": config.schedule.model_dump(),
            "data": fields["data"] | {"sources": sources, "tokenizer": None if tokenizer is None else str(tokenizer)},
        }  # fmt: skip
        set_fields(fields, config.changes, error=ValueError)
        try:
            settings = PretrainingConfig.model_validate(fields)
        except ValidationError as error:
            raise ValueError(f"the continuation of {config.run}: {field_errors(error)}") from error
        if not start.is_dir():
            export_checkpoint(
                self.checkpoint, start, config=model_of(self.checkpoint), tokenizer_from=tokenizer, dtype="float32"
            )
        return settings

    def _count_tokens(self, sources: Sequence[SourceSpec]) -> Int[np.ndarray, " vocab"]:
        length = self.previous.data.sequence_length
        settings = LoaderConfig(
            sequence_length=length, global_batch_size=SAMPLE_BATCH, seed=self.previous.seed, prefetch_batches=0
        )
        counts = np.zeros(self.previous.model.vocab_size, np.int64)
        with open_loader(self.previous, tuple(sources), settings) as loader:
            for _ in range(-(-self.config.sample_sequences // SAMPLE_BATCH)):
                labels = next(loader).labels
                counts += np.bincount(labels[labels != IGNORE], minlength=len(counts))
        return counts


def continued_run(config: ContinualPretrainingConfig) -> tuple[PretrainingConfig, str]:
    """The new run, and a sentence about its shares. Raises what ContinualPretraining does."""
    continuation = ContinualPretraining(config)
    share, measured = config.replay_share, ""
    if share == "auto":
        shift = continuation.shift()
        share, measured = replay_share_of(shift), f"the new data are {shift:.3f} bits from the old; "
    told = f"from {continuation.checkpoint.name}; {measured}the share of old data is {share:.0%}"
    return continuation.pretraining_config(replay_share=share), told


def token_shift(old: Int[np.ndarray, " vocab"], new: Int[np.ndarray, " vocab"]) -> float:
    """The Jensen-Shannon divergence of two counts of tokens, bits."""
    shares = [counts / counts.sum() for counts in (old.astype(np.float64), new.astype(np.float64))]
    middle = (shares[0] + shares[1]) / 2

    def entropy(share: np.ndarray) -> float:
        seen = share[share > 0]
        return float(-(seen * np.log2(seen)).sum())

    return max(0.0, entropy(middle) - (entropy(shares[0]) + entropy(shares[1])) / 2)


def replay_share_of(shift: float) -> float:
    """A line between WEAK and STRONG."""
    return float(np.interp(shift, [WEAK[0], STRONG[0]], [WEAK[1], STRONG[1]]))


def load_continual_config(
    path: Path, *, output: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> ContinualPretrainingConfig:
    """Read a TOML file. `output`, if given, is taken instead of the file's; `overrides` are added to its `changes`. Relative
    paths are from the file's folder. Raises ValueError naming the file, the field and the fix."""
    folder = path.resolve().parent
    data = read_toml(path, error=ValueError)
    for name in ("run", "output"):
        if name in data:
            data[name] = absolute_path(data[name], folder=folder)
    if "sources" in data:
        data["sources"] = with_absolute_locations(data["sources"], field="location", folder=folder)
    if output is not None:
        data["output"] = str(output.expanduser().absolute())
    if isinstance(data.setdefault("changes", {}), dict):
        data["changes"] = data["changes"] | dict(overrides or {})
    try:
        return ContinualPretrainingConfig.model_validate(data)
    except ValidationError as error:
        raise ValueError(explain(path, error)) from error


def _weighted(sources: Sequence[SourceSpec], share: float) -> list[dict[str, Any]]:
    """With `share` divided among them as their weights are."""
    total = sum(source.weight for source in sources)
    return [source.model_dump() | {"weight": share * source.weight / total if total else 0.0} for source in sources]
