"""A process with side effects that is stopped at a random moment, and what it still did afterwards.

Run as a script it is the process that is stopped: it registers itself, starts a child, does one kind of work without end, and
writes a line (CLOCK_MONOTONIC, seconds) behind each effect. Every effect asks the latch, as the system's own parts do.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path

import psutil

from autonomous.safety.latch import Latch, LearningStopped
from autonomous.safety.monitor import SafetyMonitor
from autonomous.safety.processes import register
from cluster.config import REPOSITORY
from cluster.processes import is_alive

WORK = ("training step", "checkpoint", "promotion commit", "canary", "consolidation")
"""What the process does."""
YEAR_S = 3.15e7
START_TIMEOUT_S, MIN_EFFECTS = 120.0, 3
SETTLE_S = 3.0
"""So long after a stop effects are looked for."""
MAX_RANDOM_S = 1.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What one stop came to. `last_effect_s`: from the trigger to the last effect, negative if none came after it; `gone_s`:
    to the end of all processes, by pid, where they were killed; `step_s`: the longest step before.
    """

    work: str
    category: str
    last_effect_s: float
    step_s: float
    gone_s: float | None
    has_resumed: bool

    @property
    def is_met(self) -> bool:
        """STOP and PAUSE: no effect later than 1 s plus the running step. KILL: gone within 5 s. A reset starts nothing."""
        if self.has_resumed:
            return False
        if self.category == "kill":
            return self.gone_s is not None and self.gone_s <= 5.0
        return self.last_effect_s <= 1.0 + self.step_s


def stop_once(
    folder: Path,
    *,
    work: str,
    category: str,
    rng: random.Random,
    fill_disk: Callable[[], None] | None = None,
    jumps: bool = False,
) -> Trial:
    """Start the process in a home, pull the stop at a random moment, look. `fill_disk` comes before the stop."""
    safety = folder / "safety"
    safety.mkdir(parents=True)
    latch = Latch.create(safety / "latch")
    monitor = SafetyMonitor(latch, audit=lambda **_: None)
    log = Path(os.environ.get("TMPDIR", "/tmp")) / f"effects-{os.getpid()}-{rng.randrange(1 << 60):x}"
    process = subprocess.Popen(
        [sys.executable, __file__, str(folder), work, str(log), "jumps" if jumps else "steady"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pids = [process.pid]
    try:
        _wait_for_effects(process, log)
        pids = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        if fill_disk is not None:
            fill_disk()
        time.sleep(rng.uniform(0, MAX_RANDOM_S))
        pulled_at = time.monotonic()
        pull = {"pause": monitor.pause, "stop": monitor.stop, "kill": monitor.kill}[category]
        answer = pull(reason="trial", by="bench", scope="learning")
        gone_s = None
        if category == "kill":
            while any(map(is_alive, pids)) and time.monotonic() - pulled_at < 2 * SETTLE_S + 5:
                time.sleep(0.005)
            gone_s = time.monotonic() - pulled_at if not any(map(is_alive, pids)) and answer["is_complete"] else None
        time.sleep(max(0.0, pulled_at + SETTLE_S - time.monotonic()))
        effects = _read_effects(log)
        before = [at for at in effects if at <= pulled_at]
        step_s = max((later - earlier for earlier, later in pairwise(before)), default=0.0)
        while category != "kill" and process.poll() is None and (time.monotonic() - pulled_at) < step_s + SETTLE_S:
            time.sleep(0.05)
        last = max(_read_effects(log), default=pulled_at) - pulled_at
        monitor.reset(reason="trial over", by="bench person")
        time.sleep(0.5)
        has_resumed = max(_read_effects(log), default=pulled_at) - pulled_at > last
        return Trial(work, category, last, step_s, gone_s, has_resumed)
    finally:
        _end(pids)
        process.wait()
        log.unlink(missing_ok=True)


def _wait_for_effects(process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while len(_read_effects(log)) < MIN_EFFECTS:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the process had {len(_read_effects(log))} effects and ended with {process.poll()}")
        time.sleep(0.02)


def _read_effects(log: Path) -> list[float]:
    if not log.exists():
        return []
    return [float(line) for line in log.read_text(encoding="ascii").splitlines(keepends=True) if line.endswith("\n")]


def _end(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()


# -- the process that is stopped


def work_until_stopped(home: Path, work: str, log: Path, *, jumps: bool) -> None:
    """Effects without end. A refusal ends the work, and the process idles: a reset must not start it again."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    register(home / "safety", role="bench", within="learning")
    latch = Latch.open(home / "safety" / "latch")
    effects = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    if jumps:
        _let_the_clock_jump()

    def told() -> None:
        os.write(effects, f"{time.monotonic():.6f}\n".encode())

    try:
        {
            "training step": _train,
            "checkpoint": _save,
            "promotion commit": _promote,
            "canary": _step_canaries,
            "consolidation": _consolidate,
        }[work](home, latch, told)
    except LearningStopped:
        child.wait()


def _let_the_clock_jump() -> None:
    """The wall clock that this process sees goes a year ahead and back with each reading; the system's own cannot be set."""
    real, turn = time.time, count()

    def now() -> float:
        return real() + (YEAR_S if next(turn) % 2 else -YEAR_S)

    time.time = now


def _learner(home: Path, *, max_steps: int) -> "tuple[object, list[object]]":
    from autonomous.config import LearningConfig
    from autonomous.online import OnlineLearningModule
    from train.continual.items import LearningItem
    from train.model.embedded import EMBEDDED_NAME, MODEL_CACHE, materialise_base_model

    folder = materialise_base_model(MODEL_CACHE.expanduser() / EMBEDDED_NAME, progress=lambda _: None)
    config = LearningConfig(
        max_steps=max_steps, items_per_step=1, target_loss=1e-9, kl_texts_per_step=1, replay_ratio=0
    )
    module = OnlineLearningModule(config, base_folder=folder)
    module.start()
    items: list[object] = [
        LearningItem(id=str(row), prompt=f"What is {row}?", answer=f"It is {row}.", episode_id="e") for row in range(4)
    ]
    return module, items


def _train(home: Path, latch: Latch, told: Callable[[], None]) -> None:
    module, items = _learner(home, max_steps=100_000)
    guard = latch.permit("optimizer step", within="learner").check
    module.learn(  # type: ignore[attr-defined]
        items, replay=[], anchors=["A text."], parent_adapter=None, out_folder=home / "never", guard=guard,
        on_step=lambda _: told(),
    )  # fmt: skip


def _save(home: Path, latch: Latch, told: Callable[[], None]) -> None:
    module, items = _learner(home, max_steps=1)
    for number in count():
        guard = latch.permit("optimizer step", within="learner").check
        module.learn(  # type: ignore[attr-defined]
            items, replay=[], anchors=["A text."], parent_adapter=None, out_folder=home / f"adapter-{number}", guard=guard,
            on_step=lambda _: None,
        )  # fmt: skip
        told()


def _promote(home: Path, latch: Latch, told: Callable[[], None]) -> None:
    from cluster.bench_versions import MadeUpVersions

    versions = MadeUpVersions(home)
    for _ in count():
        name = versions.in_shadow()
        guard = latch.permit("promotion").check
        versions.ledger.promote(name, by="agent", reason="trial", guard=guard)
        told()


def _step_canaries(home: Path, latch: Latch, told: Callable[[], None]) -> None:
    from cluster.bench_versions import MadeUpVersions

    versions = MadeUpVersions(home)
    name = versions.in_shadow()
    for number in count():
        guard = latch.permit("promotion").check
        versions.ledger.set_canary(name, percent=1 + number % 98, by="agent", reason="trial", guard=guard)
        told()


def _consolidate(home: Path, latch: Latch, told: Callable[[], None]) -> None:
    from cluster.bench_kills import LengthEmbedder
    from memory.claims import claims_of
    from memory.consolidate import Consolidation, ConsolidationConfig
    from memory.episode_backends import EpisodicConfig
    from memory.episodic import EpisodicMemory
    from memory.management import NoWeights
    from memory.semantic import SemanticConfig, SemanticMemory
    from memory.store import StoreFull
    from memory.types import Episode

    episodic = EpisodicMemory.open(EpisodicConfig(folder=home / "episodic"), embedder=LengthEmbedder())
    semantic = SemanticMemory.open(SemanticConfig(folder=home / "semantic"))
    consolidation = Consolidation(
        ConsolidationConfig(), episodic=episodic, semantic=semantic, capacity=1000, weights=NoWeights()
    )
    for number in count():
        check = latch.permit("memory write").check

        def guard(check: Callable[[], None] = check) -> None:
            check()
            told()  # the commit comes right behind

        text = f"The Torvik part {number} costs {number} euros."
        episode = Episode(f"{number:032x}", f"d{number}", "source", "title", text, 0, 0.0)
        with suppress(StoreFull):  # as the actors: the disk may have room again
            episodic.append([episode], guard=guard)
            episodic.index_pending()
            semantic.add(claims_of(episode), guard=guard)
            consolidation.run(guard=guard)


if __name__ == "__main__":
    work_until_stopped(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), jumps=sys.argv[4] == "jumps")
