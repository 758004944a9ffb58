"""A language model through four domains: what naive fine-tuning forgets of them, and what is left of that with each policy.

SmolLM2-135M-Instruct learns code, prose, manuals and German in turn, with adapters of rank 8. Held-out loss of every domain is
measured before, while and after each is learned. The default policy has an adapter per domain and replays a fifth; which
adapter serves a text the router says, from the text alone. The page goes to the folder `reports` of the configuration's home.
In full 60 steps per domain and every policy, some 50 minutes on two cores with AMX; --quick: 30 steps, two policies.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.bench import BenchContext, Claim

SEQUENCE_LENGTH, BATCH_SIZE = 128, 8
NUM_HELD_OUT = 24
ROUTER_INPUTS = 300
"""Of each domain, that the router is taught."""
LEARNING_RATE = 1e-3
MAX_WORST, MIN_RECOVERED, MIN_LEARNED = 0.10, 0.80, 0.90
DEFAULT = "adapter per domain, replay (default)"


@dataclass(frozen=True)
class Routed:
    """What the router does with held-out texts, and with prompts of no domain."""

    rises: np.ndarray
    """Of each domain's loss above its best, relative."""
    accuracy: float
    abstained: float
    abstained_strange: float


def _policies() -> dict[str, tuple[str | None, Callable[[], list[Any]]]]:
    """How adapters serve (None: one for all domains), and the other methods."""
    from train.continual.ewc import EWCConfig, EWCRegularizer
    from train.continual.mixing import BatchReplay, ReplayConfig

    return {
        "naive": (None, list),
        DEFAULT: ("routed", lambda: [BatchReplay(ReplayConfig())]),
        "one adapter, replay": (None, lambda: [BatchReplay(ReplayConfig())]),
        "O-LoRA": ("summed", list),
        "EWC": (None, lambda: [EWCRegularizer(EWCConfig(max_samples=64))]),
    }


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    from transformers import AutoTokenizer

    from cluster.bench_domains import load_domains
    from train.continual.abilities import ability_drops, score_abilities
    from train.continual.metrics import recovered_fraction
    from train.continual.report import write_report
    from train.model.embedded import materialise_base_model

    steps = 30 if context.quick else 60
    folder = materialise_base_model(context.config.home / "models/smollm2-135m-instruct", progress=context.note)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    domains = load_domains(
        tokenizer, sequence_length=SEQUENCE_LENGTH, num_train=steps * BATCH_SIZE, num_held_out=NUM_HELD_OUT
    )
    outcomes, ways, lost, routed = {}, [], {}, None
    suite, original = _suite(), None
    for name in list(_policies())[: 2 if context.quick else None]:
        context.note(f"{name} ...")
        adaptive, tuning, base = _build(folder, name, domains, steps=steps, note=context.note)
        if original is None:
            with base.model.disable_adapter():
                original = score_abilities(base.model, suite, base=base)
        outcomes[name] = adaptive.run()
        with adaptive.trainer.serving(len(domains) - 1):
            lost[name] = ability_drops(score_abilities(base.model, suite, base=base), original)
        if name == DEFAULT:
            routed = _route(adaptive, tuning, tokenizer, suite)
        matrix = outcomes[name].matrix
        figures = {
            "General loss": f"{lost[name].general:+.1%}", "Instructions": f"{0 - 100 * lost[name].instructions:+.0f} points",
            "Refusals": f"{0 - 100 * lost[name].safety:+.0f} points",
        }  # fmt: skip
        if name != "naive":
            figures["Recovered"] = f"{recovered_fraction(matrix, outcomes['naive'].matrix):.0%}"
        ways.append(outcomes[name].report(name, **figures))
    path = context.config.home / "reports" / "continual-text.html"
    conditions = (
        f"SmolLM2-135M-Instruct, adapters of rank 8, {steps} steps per domain of {BATCH_SIZE} new sequences of "
        f"{SEQUENCE_LENGTH} tokens, AdamW {LEARNING_RATE:g}; {NUM_HELD_OUT} held-out sequences per domain"
    )
    write_report(ways, path=path, title="Four domains of text", note=conditions)
    context.note(f"page: {path}")
    naive, ours = (outcomes[name].matrix for name in ("naive", DEFAULT))
    assert routed is not None
    recovered = recovered_fraction(ours, naive)
    told = f"{conditions}; mean drop {_percent(naive.drop_per_domain)} naive, {_percent(ours.drop_per_domain)} default"
    yield Claim("recovered of what naive forgets", f">= {MIN_RECOVERED:.0%}", round(100 * recovered, 1), "%",
                recovered >= MIN_RECOVERED, told)  # fmt: skip
    share = float(ours.learned.mean() / naive.learned.mean())
    yield Claim(
        "learned, of what naive learns", f">= {MIN_LEARNED:.0%}", round(100 * share, 1), "%", share >= MIN_LEARNED,
        f"{conditions}; nats gained per domain: naive {_numbers(naive.learned)}, default {_numbers(ours.learned)}",
    )  # fmt: skip
    yield Claim(
        "worst domain's rise of loss", f"< {MAX_WORST:.0%}", round(100 * ours.worst_drop, 2), "%", ours.worst_drop < MAX_WORST,
        f"{conditions}; naive {naive.worst_drop:.1%}",
    )  # fmt: skip
    yield Claim(
        "the same, each text with the adapter that the router takes", f"< {MAX_WORST:.0%}",
        round(100 * float(routed.rises.max()), 2), "%", bool(routed.rises.max() < MAX_WORST),
        f"{conditions}; held-out texts: {routed.accuracy:.1%} to their domain's adapter, {routed.abstained:.1%} to none",
    )  # fmt: skip
    recovered = 1 - float(routed.rises[:-1].mean() / naive.drop_per_domain.mean())
    yield Claim(
        "recovered of what naive forgets, each text with the adapter that the router takes", f">= {MIN_RECOVERED:.0%}",
        round(100 * recovered, 1), "%", recovered >= MIN_RECOVERED,
        f"{conditions}; mean drop of the earlier domains {_percent(routed.rises[:-1])}",
    )  # fmt: skip
    yield Claim(
        "prompts of no domain that the router leaves to the base", ">= 95%", round(100 * routed.abstained_strange, 1), "%",
        routed.abstained_strange >= 0.95,
        f"{len(suite.instructions) + len(suite.unsafe)} prompts; with the last domain's adapter they would lose: "
        f"{_lost(lost[DEFAULT])}; naive {_lost(lost['naive'])}",
    )  # fmt: skip


def _build(
    folder: Any, name: str, domains: Sequence[Any], *, steps: int, note: Callable[[str], None]
) -> tuple[Any, Any, Any]:
    import torch

    from train.adapt.base import load_base_model, pick_device
    from train.adapt.lora import LoRAConfig, attach_adapter
    from train.continual.domain import DomainAdaptive, DomainConfig
    from train.continual.finetune import ContinualFineTuning, FineTuningConfig
    from train.continual.trainer import ContinualTrainer

    torch.manual_seed(0)
    base = load_base_model(folder, dtype="auto", device=pick_device("auto"))
    composition, build_methods = _policies()[name]
    tuning = None if composition is None else ContinualFineTuning(base.model, FineTuningConfig(composition=composition))
    model = attach_adapter(base.model, LoRAConfig(), is_float32=True) if tuning is None else tuning.model
    trainer = ContinualTrainer(
        model, "causal", methods=[*([] if tuning is None else [tuning]), *build_methods()],
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0),
        compute_dtype=base.model.dtype if base.model.dtype != torch.float32 else None,
    )  # fmt: skip
    config = DomainConfig(steps=steps, batch_size=BATCH_SIZE, evaluate_every=steps // 3)
    adaptive = DomainAdaptive(
        trainer, domains, config,
        on_scores=lambda step, losses: note(f"  {step:4}  " + "  ".join(f"{key} {loss:.3f}" for key, loss in losses.items())),
    )  # fmt: skip
    return adaptive, tuning, replace(base, model=model)


def _suite() -> Any:
    from autonomous.suite import load_suite
    from train.continual.abilities import AbilitySuite, Instruction, SafetyPrompt

    return AbilitySuite(
        texts=load_suite("control").texts,
        instructions=[Instruction(row["prompt"], row["check"], row["value"]) for row in load_suite("instructions").rows],
        unsafe=[SafetyPrompt(row["prompt"], row["refusal"], row["compliance"]) for row in load_suite("safety").rows],
    )  # fmt: skip


def _route(adaptive: Any, tuning: Any, tokenizer: Any, suite: Any) -> Routed:
    """With adapters as the router takes them from the texts alone."""
    import torch

    from memory.embed import MiniLmEmbedder
    from train.continual.domain import mean_loss

    embedder = MiniLmEmbedder(num_threads=2)

    def embed(texts: Sequence[str]) -> Any:
        return torch.from_numpy(embedder.embed(texts))

    for index, domain in enumerate(adaptive.domains):
        tuning.teach_router(index, embed(tokenizer.batch_decode(domain.train["input_ids"][:ROUTER_INPUTS])))
    taken, losses = [], []
    for domain in adaptive.domains:
        tasks = tuning.route(embed(tokenizer.batch_decode(domain.held_out["input_ids"])))
        total = 0.0
        for task in set(tasks):
            rows = torch.tensor([row for row, one in enumerate(tasks) if one == task])
            part = {name: value[rows] for name, value in domain.held_out.items()}
            with adaptive.trainer.serving(task):
                total += len(rows) * mean_loss(adaptive.trainer, part, size=BATCH_SIZE)
        losses.append(total / len(tasks))
        taken.append(tasks)
    best = np.minimum(adaptive.outcome.matrix.losses.min(axis=0), losses)
    strange = tuning.route(embed([one.prompt for one in (*suite.instructions, *suite.unsafe)]))
    return Routed(
        rises=(np.asarray(losses) - best) / best,
        accuracy=float(np.mean([task == index for index, tasks in enumerate(taken) for task in tasks])),
        abstained=float(np.mean([task is None for tasks in taken for task in tasks])),
        abstained_strange=float(np.mean([task is None for task in strange])),
    )


def _lost(drops: Any) -> str:
    return f"general loss {drops.general:+.1%}, instructions {0 - drops.instructions:+.1%}, refusals {0 - drops.safety:+.1%}"


def _percent(drops: np.ndarray) -> str:
    return f"{100 * drops.mean():.1f} %"


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.3f}" for value in values)
