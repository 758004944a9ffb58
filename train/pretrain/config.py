"""PretrainingConfig: one pre-training run, from token shards to a model folder; read from a TOML file.

Each section is the configuration of one component and is documented there. Paths may begin with ~; relative ones are taken
from the folder of the configuration file. The resolved configuration is saved as `config.json` in the run's folder.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from train.data.token_sources import SourceSpec
from train.model.config import MoEConfig
from train.model.generate import SamplingConfig
from train.model.plan import Engine
from train.model.presets import PRESETS, config_of
from train.model.transformer import Recomputation
from train.pretrain.anomaly import AnomalyConfig
from train.pretrain.checkpoint import CheckpointConfig
from train.pretrain.optimizer import OptimizerConfig, check_flat_ranges
from train.pretrain.precision import PrecisionConfig
from train.pretrain.schedule import ScheduleConfig, check_schedule
from train.toml_file import absolute_path, explain, read_toml, set_fields, with_absolute_locations


class PretrainingConfigError(ValueError):
    """A configuration that cannot be used: names the field, the value and the fix."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class DataConfig(_Section):
    """The tokens, as `autonomous data run` wrote them."""

    sources: tuple[SourceSpec, ...] = Field(min_length=1)
    """What is read, in which shares. With `held_out_every` some of its shards are left for evaluation; with weight 0 as well
    it is there for evaluation alone."""
    sequence_length: int = Field(ge=8)
    """Tokens of a sequence; that of the shards."""
    tokenizer: Path | None = None
    """Folder of the tokenizer that made the shards: for samples, and copied into the model folder. None: `tokenizer` beside
    the first source's folder."""
    reservoir_size: int = Field(4096, ge=1, le=1 << 22)
    """See LoaderConfig."""
    block_sequences: int = Field(1, ge=1)
    """See LoaderConfig."""
    prefetch_batches: int = Field(2, ge=0)
    """See LoaderConfig."""
    mask_documents: bool = True
    """See LoaderConfig."""

    @property
    def training_sources(self) -> tuple[SourceSpec, ...]:
        """Those that training reads."""
        return tuple(source for source in self.sources if source.weight)

    @property
    def held_out_sources(self) -> tuple[SourceSpec, ...]:
        """Those of which something is held out."""
        return tuple(source for source in self.sources if source.held_out_every)

    @property
    def evaluation_sources(self) -> tuple[SourceSpec, ...]:
        """What these hold out, as sources that read it."""
        changes = {"reads_held_out": True, "weight": 1.0}
        return tuple(source.model_copy(update=changes) for source in self.held_out_sources)

    @model_validator(mode="after")
    def _reads_something(self) -> Self:
        for index, source in enumerate(self.sources):
            if not source.weight and not source.held_out_every:
                raise ValueError(
                    f"sources[{index}].weight = 0 without held_out_every: nothing of it is read; leave the source out"
                )
        if not self.training_sources:
            raise ValueError("sources have weight 0, all of them: give one that training reads a weight above 0")
        return self


class ParallelConfig(_Section):
    """How the run is spread over its workers: in these numbers, or as the planner says."""

    engine: Engine = "deepspeed"
    """deepspeed: ZeRO with expert parallelism. native: PyTorch's FSDP2 and pipelines, for all five degrees at once."""
    planned_for: str | None = None
    """A GPU of `autonomous plan` (h100-80gb, ...): the planner's fastest plan for all workers replaces the degrees, the ZeRO
    stage, the recomputation and the micro-batch. None: they are taken from here."""
    dp: int | None = Field(None, gt=0)
    """Data parallel ranks. None: workers / (tp x pp x cp), which lets the number of workers change."""
    tp: int = Field(1, gt=0)
    """See ParallelPlan, as for the others."""
    pp: int = Field(1, gt=0)
    ep: int = Field(1, gt=0)
    cp: int = Field(1, gt=0)
    zero_stage: Literal[1, 2, 3] = 1
    virtual_stages: int = Field(1, gt=0)
    recomputation: Recomputation = "none"
    timeout_s: float = Field(600.0, gt=0)
    """After so long in a collective a rank takes the others for dead and fails, seconds."""


class WorkerConfig(_Section):
    """The processes, and what happens when one of them dies."""

    num_workers: int = Field(1, gt=0)
    """Processes; on GPUs one per GPU."""
    min_workers: int | None = Field(None, gt=0)
    """Go on with fewer workers, down to this many, where the cluster has lost some, and with more when it has them again; each
    change goes back to the last checkpoint. None: always `num_workers`."""
    threads: int | None = Field(None, gt=0)
    """CPU threads of a worker. None: the machine's cores divided by its workers."""
    resources: dict[str, float] | None = None
    """What Ray reserves for a worker. None: `threads` CPUs, and a GPU where `device` has one."""
    max_failures: int = Field(0, ge=-1)
    """How often the workers are started again after one died; each time from the last committed checkpoint. -1: always."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    is_autoscaled: bool = False
    """Nodes are added when workers wait for them. Otherwise a cluster that is too small is an error at once."""

    @model_validator(mode="after")
    def _fewer_are_fewer(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"workers.min_workers = {self.min_workers} is more than workers.num_workers = {self.num_workers}: lower it"
            )
        return self


class EvaluationConfig(_Section):
    """Loss on held-out shards, and what the model writes."""

    every_steps: int = Field(100, gt=0)
    """Optimizer steps between two evaluations; there is one at the end of the run as well."""
    num_sequences: int = Field(512, gt=0)
    """Sequences of each source; rounded up to whole batches."""
    prompts: tuple[str, ...] = ()
    """The model continues them at each evaluation."""
    max_new_tokens: int = Field(48, gt=0)
    """Of a sample."""
    temperature: float = Field(0.7, ge=0)
    """Of samples; 0 takes the most probable token."""
    bigram_tokens: int = Field(0, ge=0)
    """A bigram model is fitted on this many tokens of the training stream, as a baseline on the held-out ones; rounded up to
    whole steps, two at least. 0: none."""

    @model_validator(mode="after")
    def _samples_can_be_drawn(self) -> Self:
        _ = self.sampling
        return self

    @property
    def sampling(self) -> SamplingConfig:
        """Of samples."""
        return SamplingConfig(max_new_tokens=self.max_new_tokens, temperature=self.temperature)


class SaveConfig(CheckpointConfig):
    """When checkpoints are saved, and which of them stay."""

    every_steps: int = Field(500, gt=0)
    """Optimizer steps between two; there is one at the end of the run as well."""


class PretrainingConfig(_Section):
    """One run."""

    output: Path
    """Folder of the run; on a cluster on storage that all nodes share. A run that is there is resumed."""
    model: MoEConfig
    """The model. In a file `preset` names a preset or a model folder that the other fields change."""
    start_from: Path | None = None
    """Folder of a model of the same shape whose weights the run begins with (`model.preset` may name it too); None: random
    ones. A run that is resumed goes on from its checkpoint."""
    data: DataConfig
    tokens: int = Field(gt=0)
    """Tokens that the run reads, padding included; rounded up to whole steps."""
    micro_batch: int = Field(1, gt=0)
    """Sequences of one pass on a data parallel rank."""
    accumulation: Annotated[int, Field(gt=0)] | Literal["auto"] = 32
    """Passes of an optimizer step on a data parallel rank. auto: what global_batch_size leaves to the ranks that there are,
    which a changing number of workers needs."""
    global_batch_size: int = Field(4096, gt=0)
    """Sequences of an optimizer step over all ranks: data parallel ranks x micro_batch x accumulation."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Of the first weights and of the order of the data."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    precision: PrecisionConfig = PrecisionConfig()
    parallel: ParallelConfig = ParallelConfig()
    workers: WorkerConfig = WorkerConfig()
    checkpoint: SaveConfig = SaveConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    anomaly: AnomalyConfig = AnomalyConfig()
    is_compiled: bool = False
    """Compile what is between matmuls: on a CPU a step takes a fifth to a third less time, after a first one of many seconds.
    Needs a C++ compiler there."""
    log_every_steps: int = Field(10, gt=0)
    """Optimizer steps between two reports to TensorBoard, Ray and the terminal; the metrics file has every step."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.data.sequence_length > self.model.max_position_embeddings:
            raise ValueError(
                f"data.sequence_length = {self.data.sequence_length} is beyond model.max_position_embeddings = "
                f"{self.model.max_position_embeddings}: raise that, or pack shorter sequences"
            )
        if self.evaluation.prompts and self.parallel.planned_for is None and self._is_divided:
            raise ValueError(
                "evaluation.prompts: a model that is divided by tp, pp or cp writes no samples; remove the prompts, and ask "
                "the exported model"
            )
        if self.parallel.engine == "deepspeed":
            check_flat_ranges(self.optimizer)
        check_schedule(self.schedule, total_steps=self.total_steps)
        return self

    @property
    def _is_divided(self) -> bool:
        parallel = self.parallel
        return parallel.tp * parallel.pp * parallel.cp > 1

    @property
    def tokens_per_step(self) -> int:
        """Padding included."""
        return self.global_batch_size * self.data.sequence_length

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return math.ceil(self.tokens / self.tokens_per_step)

    @property
    def tokenizer_folder(self) -> Path | None:
        """Where the tokenizer lies; None if none was named and none is beside the first source."""
        if self.data.tokenizer is not None:
            return self.data.tokenizer
        location = self.data.sources[0].location
        first = location if isinstance(location, str) else location[0]
        folder = Path(first).parent / "tokenizer"
        return folder if "://" not in first and folder.is_dir() else None


def load_pretraining_config(
    path: Path, *, output: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> PretrainingConfig:
    """Read a TOML file. `output`, if given, is taken instead of the file's; `overrides` changes fields by dotted names.
    Relative paths in these two are from the current folder. Raises PretrainingConfigError naming the file, the field, the fix.
    """
    data = _with_absolute_paths(read_toml(path, error=PretrainingConfigError), path.resolve().parent)
    set_fields(data, overrides or {}, error=PretrainingConfigError)
    data = _with_absolute_paths(data, Path.cwd())  # what the command line names
    if output is not None:
        data["output"] = os.path.abspath(output.expanduser())
    try:
        if isinstance(data.get("model"), dict):
            data["model"] = _from_preset(data["model"])
        return PretrainingConfig.model_validate(data)
    except ValidationError as error:
        raise PretrainingConfigError(explain(path, error)) from error
    except (ValueError, OSError) as error:
        raise PretrainingConfigError(f"configuration {path}: {error}") from error


def _from_preset(model: dict[str, Any]) -> dict[str, Any]:
    """The fields of the preset, and over them those of the file."""
    fields = dict(model)
    preset = fields.pop("preset", None)
    return fields if preset is None else config_of(preset).model_dump(exclude_unset=True) | fields


def _with_absolute_paths(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    for name in ("output", "start_from"):
        if name in data:
            data[name] = absolute_path(data[name], folder=folder)
    model = data.get("model")
    if isinstance(model, dict) and isinstance(model.get("preset"), str):
        near = absolute_path(model["preset"], folder=folder)
        if model["preset"] not in PRESETS and Path(near).is_dir():
            model["preset"] = near
    tokens = data.get("data")
    if isinstance(tokens, dict):
        if "tokenizer" in tokens:
            tokens["tokenizer"] = absolute_path(tokens["tokenizer"], folder=folder)
        if "sources" in tokens:
            tokens["sources"] = with_absolute_locations(tokens["sources"], field="location", folder=folder)
    return data
