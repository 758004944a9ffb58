"""A run through domains that is killed at any moment goes on as if it had not been: losses and weights, bit for bit."""

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.continual import adamw, domains, writer
from tests.ranks import RanksFailed, run_ranks
from train.continual.domain import DomainAdaptive, DomainConfig
from train.continual.finetune import ContinualFineTuning, FineTuningConfig
from train.continual.mixing import BatchReplay, ReplayConfig
from train.continual.trainer import ContinualTrainer
from train.pretrain import checkpoint_commit

CONFIG = DomainConfig(steps=6, batch_size=4, evaluate_every=2, mixture="by_drop")


def _adapt(  # noqa: PLR0917 - positional, as run_ranks passes them
    rank: int, world: int, folder: str, composition: Any, moment: str, count: int
) -> tuple[str, list[Any]]:
    """The weights' hash and all losses. `moment`: of the `count`-th evaluation or commit, at which rank 0 is killed."""
    seen = 0

    def kill(*arguments: Any) -> None:
        nonlocal seen
        seen += 1
        if rank == 0 and seen == count:
            os.kill(os.getpid(), signal.SIGKILL)

    commit = checkpoint_commit.write_manifest

    def write_manifest(*arguments: Any) -> None:
        if moment == "before a commit":
            kill()
        commit(*arguments)
        if moment == "after a commit":
            kill()

    checkpoint_commit.write_manifest = write_manifest
    method = ContinualFineTuning(writer(), FineTuningConfig(composition=composition))
    replay = BatchReplay(ReplayConfig(share=0.5, capacity=20, folder=Path(folder) / "buffer"))
    trainer = ContinualTrainer(
        method.model, "causal", methods=[method, replay], optimizer=adamw, group=dist.group.WORLD if world > 1 else None
    )
    found = DomainAdaptive(
        trainer, domains(), CONFIG, folder=Path(folder) / "checkpoints",
        on_scores=kill if moment == "behind an evaluation" else lambda *_: None,
    ).run()  # fmt: skip
    digest = hashlib.sha256()
    for name, value in sorted(method.model.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest(), found.curves


@pytest.mark.parametrize(
    ("composition", "world", "moments"),
    [
        ("routed", 1, [("behind an evaluation", 2), ("before a commit", 3), ("after a commit", 2)]),
        ("summed", 1, [("before a commit", 1), ("behind an evaluation", 6)]),
        ("routed", 2, [("after a commit", 4), ("before a commit", 2)]),
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(
    tmp_path: Path, composition: str, world: int, moments: list[tuple[str, int]]
) -> None:
    expected = run_ranks(_adapt, world, str(tmp_path / "whole"), composition, "never", 0)
    for moment, count in moments:
        with pytest.raises(RanksFailed, match="SIGKILL"):
            run_ranks(_adapt, world, str(tmp_path / "cut"), composition, moment, count)
    found = run_ranks(_adapt, world, str(tmp_path / "cut"), composition, "never", 0)
    assert found == expected


def test_what_one_rank_cannot_read_all_tell(tmp_path: Path) -> None:
    run_ranks(_adapt, 2, str(tmp_path), "routed", "never", 0)
    (index,) = tmp_path.glob("checkpoints/step-*/rank-00001.json")
    index.write_text("{}")
    with pytest.raises(RanksFailed) as caught:
        run_ranks(_adapt, 2, str(tmp_path), "routed", "never", 0, timeout_s=60)
    assert "rank-00001.json" in str(caught.value)
    assert "was still running" not in str(caught.value)


def _elsewhere(rank: int, world: int, folder: str, count: int) -> str:
    trainer = ContinualTrainer(writer(), "causal", methods=[BatchReplay()], optimizer=adamw)
    try:
        DomainAdaptive(trainer, domains(count), CONFIG, folder=Path(folder) / "checkpoints").run()
    except ValueError as error:
        return str(error)
    return ""


def test_another_run_s_folder_is_refused(tmp_path: Path) -> None:
    run_ranks(_adapt, 2, str(tmp_path), "routed", "never", 0)
    (told,) = run_ranks(_elsewhere, 1, str(tmp_path), 3)
    assert "was saved by 2 ranks, and there are 1: go on with as many" in told
    (told,) = run_ranks(_elsewhere, 1, str(tmp_path), 2)
    assert "a run through other sequences, of the domains ['domain 0', 'domain 1', 'domain 2']" in told
