"""What cannot be learned together, or at all: refused with a sentence, before anything changes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from train.continual.method import ContinualMethod, Task
from train.continual.rows import Rows


def check_statistics(model: nn.Module) -> None:
    """Raises ValueError for norms whose statistics would be of each rank's part: for several ranks."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            raise ValueError(
                f"{name} is {type(module).__name__}, whose statistics would be of each rank's part of a batch: convert the "
                "model (torch.nn.SyncBatchNorm.convert_sync_batchnorm), or take a norm without statistics"
            )


def check_together(methods: Sequence[ContinualMethod]) -> None:
    """Raises ValueError for methods that hold the weights of all tasks beside one that gives each task its own."""
    apart = next((type(one).__name__ for one in methods if one.has_weights_per_task), None)
    shared = next((type(one).__name__ for one in methods if one.holds_shared_weights), None)
    if apart is not None and shared is not None:
        raise ValueError(
            f"{shared} holds weights that all tasks train, and with {apart} each task trains its own: leave one of them away; "
            "to hold an adapter's weights train a single one (train.adapt.lora.attach_adapter)"
        )


def check_classes(task: Task, labels: Tensor) -> None:
    """Raises ValueError for a label that is not of the task."""
    if task.classes is None or not len(labels):
        return
    found = torch.isin(labels, torch.tensor(task.classes, device=labels.device))
    if not found.all():
        raise ValueError(
            f"task {task.name!r} has the classes {list(task.classes)}, and a sample has label {int(labels[~found][0])}: "
            "leave the sample out, or name its class"
        )


def check_labels(rows: Rows, of_task: tuple[int, int]) -> None:
    """Raises ValueError for a class that the model has no output for, or that the row may not be of."""
    if not len(rows.targets):
        return
    num_classes = rows.logits.shape[1]
    least, largest = min(of_task[0], int(rows.targets.min())), max(of_task[1], int(rows.targets.max()))
    if largest >= num_classes or least < 0:
        wrong = largest if largest >= num_classes else least
        raise ValueError(f"a sample has label {wrong}, and the model tells 0 to {num_classes - 1}: widen its output")
    if rows.allowed is not None and not bool(rows.allowed.gather(1, rows.targets.unsqueeze(1)).all()):
        raise ValueError("a batch has a label that its `allowed` leaves out: give the classes of the sample's own task")
