"""What a version's learner knows beside its weights, as files of the version: a child goes on from its parent's.

continual.safetensors   importance of each weight and where it is held, per method (EWC, SI), and how many batches made it
drift.json              the drift monitor: what the stream looked like so far

They belong to the version, so a rollback is the return to the predecessor's: nothing else has to be undone. In: a parent's
folder. Out: methods, attached and in their task, and after training the files.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from autonomous.policy import MethodName, PolicyConfig
from train.continual.drift import DriftConfig, DriftMonitor
from train.continual.ewc import EWCConfig, EWCRegularizer
from train.continual.lwf import LearningWithoutForgetting, LwFConfig
from train.continual.method import ContinualMethod, Learner, Samples, Task
from train.continual.quadratic import Quadratic
from train.continual.rows import trainable
from train.continual.si import SIConfig, SynapticIntelligence
from train.files import sync_path

STATE_NAME = "continual.safetensors"
DRIFT_NAME = "drift.json"
FORMAT = 1
METADATA = "learner"
PARTS = ("curvature", "centre")


class LearnerStateError(ValueError):
    """A version's learner state cannot be gone on with: says what is wrong, and the fix."""


@dataclass(frozen=True, slots=True)
class HeldMethods:
    """The methods of a policy on one model, for one batch."""

    by_name: dict[MethodName, ContinualMethod]
    num_batches: int
    """That were learned before this one on the line."""

    @property
    def methods(self) -> Sequence[ContinualMethod]:
        """In the order of the policy."""
        return list(self.by_name.values())

    def finish(self, samples: Samples) -> None:
        """Behind the last step: learn what mattered. `samples`: the batch's new items once through, one at a time."""
        for method in self.methods:
            method.after_task(samples)

    def save(self, folder: Path) -> None:
        """Write the state into a version's folder. Nothing is written for a policy without state."""
        tensors: dict[str, Tensor] = {}
        said: dict[str, Any] = {"format": FORMAT, "num_batches": self.num_batches + 1}
        for name, method in self.by_name.items():
            if (held := _held(method)) is None:
                continue
            said[f"{name}.least"] = held.least
            for part in PARTS:
                for weight, tensor in getattr(held, part).items():
                    tensors[f"{name}/{part}/{weight}"] = tensor.detach().float().cpu().contiguous()
        if tensors:
            # one entry: safetensors writes several in an order that changes from process to process
            save_file(tensors, folder / STATE_NAME, metadata={METADATA: json.dumps(said)})
            (folder / STATE_NAME).chmod(0o644)
            sync_path(folder / STATE_NAME, folder)


def hold(model: nn.Module, policy: PolicyConfig, *, parent: Path | None, seed: int) -> HeldMethods:
    """The policy's methods on `model`, whose weights are those of `parent`, with what the parent's learner knew.

    A parent that was learned under another policy has nothing to hold for a method: it begins with this batch.
    Raises LearnerStateError for a damaged state, or one of other weights.
    """
    by_name = {name: BUILD[name](policy, seed) for name in policy.methods}
    if not by_name:
        return HeldMethods(by_name, 0)
    learner = Learner(model, "causal")
    for method in by_name.values():
        method.attach(learner)
    num_batches = 0 if parent is None else _load(parent, by_name, model=model)
    for method in by_name.values():
        if parent is not None and isinstance(method, LearningWithoutForgetting):
            method.after_task(list)  # the weights now are what the task before ended with: the teacher
        method.before_task(Task("batch", num_batches))
    return HeldMethods(by_name, num_batches)


def _load(parent: Path, by_name: dict[MethodName, ContinualMethod], *, model: nn.Module) -> int:
    path = parent / STATE_NAME
    if not path.is_file():
        return 0
    weights = trainable(model)
    device = next(iter(weights.values())).device
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise LearnerStateError(f"{path} is damaged ({error}): restore it from a copy, or roll back") from error
    if said.get("format") != FORMAT:
        raise LearnerStateError(
            f"{path} has format {said.get('format')!r}, this program knows {FORMAT}: start the program that wrote it, or "
            "roll back"
        )
    for name, tensor in tensors.items():
        method, _, weight = name.split("/", 2)
        if method in by_name and (weight not in weights or weights[weight].shape != tensor.shape):
            raise LearnerStateError(
                f"{path} holds {weight} of shape {list(tensor.shape)}, which is none of the weights that are trained: learn "
                "with the target, lora_r and lora_alpha that the parent had, or without policy.methods"
            )
    for method_name, one in by_name.items():
        if (held := _held(one)) is None:
            continue
        for part in PARTS:
            start = f"{method_name}/{part}/"
            found = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
            setattr(held, part, found)
        held.least = float(said.get(f"{method_name}.least", 0.0))
    return int(said["num_batches"])


def load_drift(parent: Path | None, policy: PolicyConfig) -> DriftMonitor:
    """The monitor of the parent's stream; a new one if it has none. Raises LearnerStateError for a damaged one."""
    drift = policy.drift
    config = DriftConfig(
        window=drift.window,
        reference=drift.reference,
        significance=drift.significance,
        error_ceiling=drift.error_ceiling,
    )
    monitor = DriftMonitor(config)
    path = None if parent is None else parent / DRIFT_NAME
    if path is not None and path.is_file():
        try:
            monitor.load_state_dict(json.loads(path.read_bytes()))
        except (ValueError, KeyError, TypeError) as error:
            raise LearnerStateError(f"{path} is damaged ({error}): restore it from a copy, or roll back") from error
    return monitor


def save_drift(folder: Path, monitor: DriftMonitor) -> None:
    """Write the monitor into a version's folder."""
    (folder / DRIFT_NAME).write_text(json.dumps(monitor.state_dict()), encoding="utf-8")
    sync_path(folder / DRIFT_NAME, folder)


def _held(method: ContinualMethod) -> Quadratic | None:
    """What a method carries from batch to batch. The teacher of lwf is the parent itself."""
    return method.held if isinstance(method, EWCRegularizer | SynapticIntelligence) else None


def _build_ewc(policy: PolicyConfig, seed: int) -> ContinualMethod:
    return EWCRegularizer(
        EWCConfig(
            strength=policy.ewc_strength, fisher=policy.ewc_fisher, is_online=policy.ewc_is_online,
            gamma=policy.ewc_gamma, seed=seed,
        )
    )  # fmt: skip


BUILD: dict[MethodName, Any] = {
    "ewc": _build_ewc,
    "si": lambda policy, _: SynapticIntelligence(SIConfig(strength=policy.si_strength, damping=policy.si_damping)),
    "lwf": lambda policy, _: LearningWithoutForgetting(
        LwFConfig(temperature=policy.lwf_temperature, alpha=policy.lwf_alpha)
    ),
}
