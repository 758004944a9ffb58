"""CandidateTrainer: a batch flows in, an immutable bundle in the ledger's state CANDIDATE flows out, or nothing."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from autonomous.config import LearningConfig
from autonomous.curriculum import Batch, Curriculum
from autonomous.ports import AgentParts
from autonomous.run_board import RunBoard
from autonomous.runs import NUM_TOKENS, training_summary
from autonomous.safety.latch import Permit
from autonomous.suite import load_suite
from autonomous.versions.bundle import Bundle, digest_of, version_id_of, write_bundle
from autonomous.versions.data_gates import DATA_KEY
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.states import State

BY = "agent"
TRAINING_FILE = "training.json"
"""In a version's folder: what its training measured, for an evaluation after a crash."""


class ErasedMeanwhile(RuntimeError):
    """What was trained holds an erased document: the adapter is thrown away."""


class CandidateTrainer:
    """Trains one run at a time; its owner sees to that."""

    def __init__(
        self,
        config: LearningConfig,
        *,
        parts: AgentParts,
        ledger: VersionLedger,
        curriculum: Curriculum,
        board: RunBoard,
        folder: Path,
        base: Bundle,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._learner = parts.learner
        self._memory = parts.memory
        self._ledger = ledger
        self._curriculum = curriculum
        self._board = board
        self._folder = folder
        self._base = base
        self._clock = clock

    def train(self, run_id: str, parent: str, batch: Batch, permit: Permit) -> str:
        """DRAFT -> CANDIDATE. Returns the version id. Of a run that fails nothing stays on disk.

        Raises what the learner raises, LearningStopped, ErasedMeanwhile, DuplicateVersion.
        """
        temporary = self._folder / f".{run_id}"
        try:
            return self._train_into(temporary, run_id, parent, batch, permit)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _train_into(self, temporary: Path, run_id: str, parent: str, batch: Batch, permit: Permit) -> str:
        self._ledger.transition(
            run_id, expected=State.DRAFT, to=State.TRAINING, by=BY, reason="a batch was taken", guard=permit.check
        )
        self._board.update(run_id, phase="training")
        start = self._clock()
        parent_record = self._ledger.get(parent)
        ids = [episode.id for episode in batch.episodes]
        attempt = 1 + max(self._curriculum.attempts_of(ids).values(), default=0)
        replay = self._curriculum.replay_for(parent)
        try:
            run = self._learner.learn(
                batch.lessons.items,
                replay=replay,
                anchors=load_suite("anchor").texts,
                parent_adapter=parent_record.folder if parent_record.adapter_number is not None else None,
                out_folder=temporary,
                attempt=attempt,
            )
        except BaseException:
            self._board.update(run_id, training={NUM_TOKENS: self._learner.num_tokens()})
            raise
        self._board.update(run_id, training={NUM_TOKENS: run.num_tokens})
        bundle = Bundle(
            base_sha256=self._base.base_sha256,
            tokenizer_sha256=self._base.tokenizer_sha256,
            code_sha256=self._base.code_sha256,
            adapter_sha256=run.adapter_sha256,
            weights_sha256=run.weights_sha256,
            config=self._config.model_dump(mode="json"),
            data={
                "episodes_sha256": digest_of(ids),
                "replay_sha256": digest_of([item.id for item in replay]),
                "num_episodes": len(ids),
                "num_replay": len(replay),
            },
            parent=parent,
        )
        bundle = self._named_anew(bundle, attempt=attempt)
        version_id = version_id_of(bundle)
        if len(self._memory.get(ids)) != len(ids):
            raise ErasedMeanwhile("a document of the batch was erased while it was learned; learn again without it")
        training = {**training_summary(run), DATA_KEY: batch.data.to_dict()}
        (temporary / TRAINING_FILE).write_text(json.dumps(training), encoding="utf-8")
        write_bundle(temporary, bundle)
        folder = self._folder / version_id
        if not folder.exists():  # a crash came between the rename and the ledger
            temporary.rename(folder)
        self._ledger.fix_bundle(
            run_id,
            version_id=version_id,
            folder=folder,
            manifest=bundle.model_dump(mode="json"),
            episode_ids=ids,
            stream_offset=batch.stream_offset,
            by=BY,
            guard=permit.check,
        )
        self._board.time(run_id, "training_s", start)
        self._board.update(run_id, version=version_id, training=training)
        return version_id

    def _named_anew(self, bundle: Bundle, *, attempt: int) -> Bundle:
        """With the number of the attempt, from the second on. The same one on the same parent gives the same weights: the next
        number that is free tells such versions apart.
        """
        named = bundle if attempt == 1 else _numbered(bundle, attempt)
        while self._ledger.has(version_id_of(named)):
            attempt += 1
            named = _numbered(bundle, attempt)
        return named


def _numbered(bundle: Bundle, attempt: int) -> Bundle:
    return bundle.model_copy(update={"config": {**bundle.config, "attempt": attempt}})
