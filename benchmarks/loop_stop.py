"""The emergency stop, pulled 100 times at random moments (--quick: 16): what still took effect, when the processes were gone.

{training step, checkpoint, promotion commit, canary, consolidation, full disk, jumping clock, Ray's control plane down} times
{pause, stop, kill}. Training steps and checkpoints are the 135M model's. The process, its child and the puller are real; a
full disk is a small file system that is filled; the clock jumps as the process sees it. For the control plane a whole system
runs whose GCS is frozen before the kill is pulled.
"""

import os
import random
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.bench import BenchContext, Claim
from cluster.bench_control_plane import kill_without_control_plane
from cluster.bench_stops import WORK, Trial, stop_once

CATEGORIES = ("pause", "stop", "kill")
DISK_BYTES = 16 << 20
CONTROL_PLANE_TRIALS = 4


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    rng = random.Random(0)
    num_trials = 16 if context.quick else 100
    circumstances = [*WORK, "full disk", "jumping clock"]
    trials: list[tuple[str, Trial]] = []
    num_control = 0 if context.quick else CONTROL_PLANE_TRIALS
    for number in range(num_trials - num_control):
        what = circumstances[number % len(circumstances)]
        category = CATEGORIES[number // len(circumstances) % len(CATEGORIES)]
        trial = _trial(context.folder / str(number), what=what, category=category, rng=rng)
        trials.append((what, trial))
        context.note(
            f"{number + 1} of {num_trials}: {what}, {category}: last effect {trial.last_effect_s:+.3f} s"
            + (f", gone after {trial.gone_s:.3f} s" if trial.gone_s is not None else "")
            + ("" if trial.is_met else "  MISSED")
        )
    gone_s = (
        kill_without_control_plane(
            context,
            count=num_control,
            note=lambda number, seconds: context.note(
                f"control plane down, kill {number + 1} of {num_control}: gone after {seconds:.3f} s"
            ),
        )
        if num_control
        else []
    )
    yield from _claims(trials, gone_s)


def _claims(trials: list[tuple[str, Trial]], control_plane_s: list[float]) -> Iterator[Claim]:
    held = [trial for _, trial in trials if trial.category != "kill"]
    late = max(max(0.0, trial.last_effect_s) for trial in held)
    beyond = max(max(0.0, trial.last_effect_s - trial.step_s) for trial in held)
    yield Claim(
        "pause and stop: trigger -> last side effect", "<= 1 s plus the running step", round(beyond, 3), "s",
        all(trial.is_met for trial in held),
        f"{len(held)} trials, worst, beyond the longest step before; {late:.3f} s with the step",
    )  # fmt: skip
    killed = [trial for _, trial in trials if trial.category == "kill"]
    times = [trial.gone_s for trial in killed if trial.gone_s is not None] + control_plane_s
    yield Claim(
        "kill: trigger -> processes verified gone", "<= 5 s", round(max(times), 3), "s",
        all(trial.is_met for trial in killed) and all(seconds <= 5 for seconds in control_plane_s),
        f"{len(killed) + len(control_plane_s)} trials, worst; process and child by pid; {len(control_plane_s)} of a whole "
        "system with Ray's GCS frozen",
    )  # fmt: skip
    num_met = sum(trial.is_met for _, trial in trials) + sum(seconds <= 5 for seconds in control_plane_s)
    num_all = len(trials) + len(control_plane_s)
    missed = sorted({f"{what}, {trial.category}" for what, trial in trials if not trial.is_met})
    yield Claim(
        "stop trials within their bounds, and no reset started anything", "all", num_met, f"of {num_all}", num_met == num_all,
        "; ".join(missed) or "over " + ", ".join(dict.fromkeys(what for what, _ in trials)),
    )  # fmt: skip


def _trial(folder: Path, *, what: str, category: str, rng: random.Random) -> Trial:
    if what == "full disk":
        with _small_disk(folder) as disk:
            return stop_once(
                disk / "home", work="consolidation", category=category, rng=rng, fill_disk=lambda: _fill(disk)
            )
    if what == "jumping clock":
        return stop_once(folder, work="consolidation", category=category, rng=rng, jumps=True)
    return stop_once(folder, work=what, category=category, rng=rng)


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own; needs the right to mount."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    with suppress(OSError):
        (disk / "more").write_bytes(b"\0" * os.sysconf("SC_PAGESIZE"))
