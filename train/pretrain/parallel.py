"""DistributedTrainer4D: everything of a run that depends on how it is spread: plan, groups, engine, shares of a batch.

In: a configuration, and torch.distributed initialised by whoever started the processes. Out: one object that the loop runs
steps with, whatever the plan: data parallel with ZeRO, tensor, pipeline, expert and context parallel.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from train.data.batch import TokenBatch
from train.data.loader import LoaderConfig, StreamingDataLoader
from train.data.token_sources import SourceSpec
from train.data.tokenizer_file import TokenizerFile
from train.model.checkpoint_hf import check_same_model
from train.model.costs import ModelCosts, count_costs
from train.model.plan import Engine, ParallelPlan, refusals, shape_problems
from train.model.planner import PlanRequest, explain_no_plan, make_plans
from train.model.ranks import check_division
from train.model.transformer import MoETransformer
from train.pretrain.agreement import agree, raise_together
from train.pretrain.checkpoint_store import CHECKPOINTS_NAME, CheckpointStore
from train.pretrain.config import PretrainingConfig, PretrainingConfigError
from train.pretrain.mesh import RankMesh, limit_waiting
from train.pretrain.native import NativeEngine
from train.pretrain.precision import FP8_MULTIPLE, MixedPrecisionManager, has_float16
from train.pretrain.step import MicroBatch, StepTotals, TrainingEngine


def resolve_plan(config: PretrainingConfig, *, world_size: int) -> ParallelPlan:
    """The plan for so many processes: the configuration's, or the planner's. Raises ValueError with the reason for which the
    engine cannot run it, for which the model cannot be divided so, or for which it does not make the batch.
    """
    costs = count_costs(config.model, name=config.output.name, context=config.data.sequence_length)
    plan = _planned(config, costs, world_size) if config.parallel.planned_for else _configured(config, world_size)
    problems = shape_problems(plan, costs)
    if reason := refusals(plan, costs).get(config.parallel.engine):
        problems.append(f"the engine {config.parallel.engine} refuses it: {reason}")
    if problems:
        raise PretrainingConfigError(f"parallel ({plan.describe()}): {problems[0]}")
    check_division(config.model, tp=plan.tp, cp=plan.cp, ep=plan.ep)
    positions = plan.micro_batch * config.data.sequence_length // plan.cp
    if config.precision.kind == "fp8" and positions % FP8_MULTIPLE:
        raise PretrainingConfigError(
            f"precision.kind = 'fp8' multiplies {FP8_MULTIPLE} positions at a time, but micro_batch {plan.micro_batch} x "
            f"data.sequence_length {config.data.sequence_length} / cp {plan.cp} = {positions}: make it a multiple"
        )
    if plan.sequences != config.global_batch_size:
        raise PretrainingConfigError(
            f"global_batch_size = {config.global_batch_size}, but dp {plan.dp} x micro_batch {plan.micro_batch} x "
            f"accumulation {plan.num_micro_batches} = {plan.sequences}: make them equal"
        )
    return plan


def _configured(config: PretrainingConfig, world_size: int) -> ParallelPlan:
    parallel = config.parallel
    per_replica = parallel.tp * parallel.pp * parallel.cp
    dp = parallel.dp or max(1, world_size // per_replica)
    if dp * per_replica != world_size:
        raise PretrainingConfigError(
            f"parallel: dp {dp} x tp {parallel.tp} x pp {parallel.pp} x cp {parallel.cp} = {dp * per_replica}, but there are "
            f"{world_size} workers: change workers.num_workers, or the degrees"
        )
    accumulation = config.accumulation
    if accumulation == "auto":
        accumulation, rest = divmod(config.global_batch_size, dp * config.micro_batch)
        if rest or not accumulation:
            raise PretrainingConfigError(
                f"global_batch_size = {config.global_batch_size} is no multiple of dp {dp} x micro_batch "
                f"{config.micro_batch}: choose one, such as {max(1, accumulation) * dp * config.micro_batch}"
            )
    fields = parallel.model_dump(include={"tp", "pp", "ep", "cp", "zero_stage", "virtual_stages", "recomputation"})
    try:
        return ParallelPlan(dp=dp, micro_batch=config.micro_batch, num_micro_batches=accumulation, **fields)
    except ValueError as error:
        raise PretrainingConfigError(f"parallel: {error}") from error


def _planned(config: PretrainingConfig, costs: ModelCosts, world_size: int) -> ParallelPlan:
    assert config.parallel.planned_for is not None
    precision = "fp8" if config.precision.kind == "fp8" else "bf16"
    request = PlanRequest(
        gpus=world_size, gpu=config.parallel.planned_for, tokens=config.tokens, batch_tokens=config.tokens_per_step,
        precision=precision, engine=config.parallel.engine,
    )  # fmt: skip
    planning = make_plans(costs, request)
    if not planning.plans:
        raise PretrainingConfigError(
            f"parallel.planned_for = {config.parallel.planned_for!r} with the engine {config.parallel.engine}: "
            f"{explain_no_plan(planning)}"
        )
    plans = [one.estimate.plan for one in planning.plans]
    return next((plan for plan in plans if _divides(plan, config)), plans[0])  # the caller says why that does not


def _divides(plan: ParallelPlan, config: PretrainingConfig) -> bool:
    """Whether the model's tensors can be cut so."""
    try:
        check_division(config.model, tp=plan.tp, cp=plan.cp, ep=plan.ep)
    except ValueError:
        return False
    return True


def _native(config: PretrainingConfig, mesh: RankMesh, options: dict[str, Any]) -> TrainingEngine:
    return NativeEngine(config.model, mesh, **options)


def _deepspeed(config: PretrainingConfig, mesh: RankMesh, options: dict[str, Any]) -> TrainingEngine:
    from train.pretrain.deepspeed_engine import DeepSpeedEngine  # imports for seconds

    return DeepSpeedEngine(config.model, mesh, **options)


ENGINES: dict[Engine, Callable[[PretrainingConfig, RankMesh, dict[str, Any]], TrainingEngine]] = {
    "native": _native,
    "deepspeed": _deepspeed,
}


def check_run(config: PretrainingConfig) -> None:
    """Before processes are started: the plan for every number of workers, the first weights of a run that begins, the shards,
    their tokenizer. Raises ValueError, and UnknownVersion for a folder of another version of this package."""
    workers = config.workers
    is_on_cpu = workers.device != "cuda" and not torch.cuda.is_available()
    if config.is_compiled and is_on_cpu:
        _check_compiler()
    if config.precision.kind == "fp16" and config.parallel.engine == "deepspeed" and is_on_cpu and not has_float16():
        raise PretrainingConfigError(
            "precision.kind = 'fp16': the engine deepspeed refuses it on a CPU without float16 arithmetic; take "
            "parallel.engine = 'native', or precision.kind = 'bf16'"
        )
    if config.start_from is not None and CheckpointStore(config.output / CHECKPOINTS_NAME).latest() is None:
        check_same_model(config.start_from, config.model)
    for count in range(workers.min_workers or workers.num_workers, workers.num_workers + 1):
        try:
            resolve_plan(config, world_size=count)
        except ValueError as error:
            if workers.min_workers is None:
                raise
            raise PretrainingConfigError(
                f"with {count} of workers.min_workers to workers.num_workers: {error}"
            ) from error
    settings = LoaderConfig(sequence_length=config.data.sequence_length, global_batch_size=1)
    for sources in (config.data.training_sources, config.data.evaluation_sources):
        if sources:  # nothing may be held out
            with open_loader(config, sources, settings) as loader:
                _check_tokenizer(config, loader)


def _check_tokenizer(config: PretrainingConfig, loader: StreamingDataLoader) -> None:
    folder = config.tokenizer_folder
    if folder is not None and (found := TokenizerFile.read(folder).sha256) != loader.tokenizer_sha256:
        raise PretrainingConfigError(
            f"data.tokenizer = {folder} is another one (SHA-256 {found[:12]}...) than that of the shards of data.sources "
            f"({loader.tokenizer_sha256[:12]}...): name the folder of the one that packed them"
        )


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler  # imports for a second
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise PretrainingConfigError(
            "is_compiled = true needs a C++ compiler on a CPU, and there is none: install g++ or clang, name it in the "
            "environment variable CXX, or set is_compiled = false"
        ) from error


def open_loader(
    config: PretrainingConfig, sources: tuple[SourceSpec, ...], settings: LoaderConfig, *, rank: int = 0, ranks: int = 1
) -> StreamingDataLoader:
    """Raises PretrainingConfigError for shards of another vocabulary than the model's, ValueError as the loader does."""
    loader = StreamingDataLoader(sources, config=settings, rank=rank, world_size=ranks)
    if loader.vocab_size > config.model.vocab_size:
        loader.close()
        raise PretrainingConfigError(
            f"model.vocab_size = {config.model.vocab_size}, but the shards of data.sources have tokens of a vocabulary of "
            f"{loader.vocab_size}: set model.vocab_size to at least that, or pack with another tokenizer"
        )
    return loader


class DistributedTrainer4D:
    """One process's part of a run that is spread by a plan."""

    def __init__(self, config: PretrainingConfig, *, device: torch.device) -> None:
        """Every rank at once. Weights are allocated, not set. Raises as resolve_plan."""
        self.config, self.device = config, device
        self.plan = resolve_plan(config, world_size=dist.get_world_size())
        self.mesh = RankMesh.build(self.plan, device_type=device.type, is_tied=config.model.tie_word_embeddings)
        self.precision = MixedPrecisionManager(config.precision, device_type=device.type)
        kinds = sorted({str(kind) for kind in agree(str(self.precision.compute_dtype))})
        if len(kinds) > 1:
            raise PretrainingConfigError(
                f"precision.kind = {config.precision.kind!r}: the workers' processors choose {' and '.join(kinds)}; "
                "name one of bf16 and fp32"
            )
        options = {
            "device": device, "optimizer": config.optimizer, "compute_dtype": self.precision.compute_dtype,
            "sequence_length": config.data.sequence_length, "prepare": self._prepare,
        }  # fmt: skip
        self.engine = ENGINES[config.parallel.engine](config, self.mesh, options)
        limit_waiting(config.parallel.timeout_s)

    def _prepare(self, model: MoETransformer) -> None:
        self.precision.convert(model)
        if self.config.is_compiled:
            model.compile_regions()

    @property
    def is_divided(self) -> bool:
        """Whether no process has all heads, positions and layers."""
        return self.plan.tp * self.plan.pp * self.plan.cp > 1

    def loader(
        self, sources: tuple[SourceSpec, ...], *, is_evaluation: bool = False, is_whole: bool = False
    ) -> StreamingDataLoader:
        """This rank's rows of each step, or all rows (`is_whole`). An evaluation reads single passes, with no thread.

        Raises as open_loader.
        """
        config, data = self.config, self.config.data
        passes = self.plan.num_micro_batches if self.plan.pp > 1 or not is_evaluation else 1
        settings = LoaderConfig(
            sequence_length=data.sequence_length, seed=config.seed, mask_documents=data.mask_documents,
            global_batch_size=self.plan.dp * self.plan.micro_batch * passes,
            reservoir_size=1 if is_evaluation else data.reservoir_size, block_sequences=data.block_sequences,
            prefetch_batches=0 if is_evaluation else data.prefetch_batches,
        )  # fmt: skip
        rank, ranks = (0, 1) if is_whole else (self.mesh.place("dp"), self.plan.dp)
        return open_loader(config, sources, settings, rank=rank, ranks=ranks)

    def read(self, batches: Iterator[TokenBatch]) -> tuple[list[MicroBatch], StepTotals] | None:
        """This rank's micro-batches of the next batch, and the whole step's totals; None behind the last one.

        Where one rank cannot read its rows all raise, as raise_together.
        """
        batch, problem = None, None
        try:
            batch = next(batches)
        except StopIteration:
            return None  # on all ranks at once
        except Exception as error:  # whatever it is, the others have to know
            problem = error
        speaks = all(self.mesh.place(axis) == 0 for axis in ("tp", "cp", "pp"))  # the others have the same rows
        counts = [0, 0] if batch is None else [batch.num_loss_tokens, int((batch.document_ids >= 0).sum())]
        sums = torch.tensor([*counts, 0], dtype=torch.float64, device=self.device) * speaks
        sums[2] = problem is not None
        dist.all_reduce(sums)
        num_loss_tokens, num_tokens, num_problems = map(int, sums.tolist())
        if num_problems:
            raise_together(problem)
        assert batch is not None
        tensors = batch.to_torch(self.device)
        rows, size = len(batch.input_ids), self.plan.micro_batch
        micro_batches = [
            {name: tensor[start : start + size] for name, tensor in tensors.items()} for start in range(0, rows, size)
        ]
        return micro_batches, StepTotals(num_loss_tokens, num_tokens)

    def any_rank(self, *flags: bool) -> list[bool]:
        """Of each flag, whether any rank has raised it."""
        raised = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(raised)
        return [count > 0 for count in raised.tolist()]
