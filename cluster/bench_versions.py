"""Versions without weights, for measurements of the ledger alone: made-up bundles with gates that passed."""

from pathlib import Path

from autonomous.versions.bundle import Bundle, digest_of, version_id_of
from autonomous.versions.gates import REQUIRED_GATES, GateResult, Verdict
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.states import State

PASSED = [GateResult(name, Verdict.PASS, 1.0, 0.0, "made up for a measurement") for name in REQUIRED_GATES]


class MadeUpVersions:
    """A ledger in a folder with an original that serves."""

    def __init__(self, folder: Path) -> None:
        self.ledger = VersionLedger(folder / "ledger.sqlite")
        self._folder = folder
        base = self._bundle(None, mark="base")
        self.ledger.genesis(version_id_of(base), folder=folder, manifest=base.model_dump(mode="json"), by="system")

    def in_shadow(self) -> str:
        """A new version on top of what serves, all gates passed."""
        parent = self.ledger.pointers().v2
        run_id = self.ledger.start_run(parent=parent, config={})
        self.ledger.transition(run_id, expected=State.DRAFT, to=State.TRAINING, by="agent", reason="made up")
        bundle = self._bundle(parent, mark=run_id)
        name = version_id_of(bundle)
        self.ledger.fix_bundle(
            run_id, version_id=name, folder=self._folder / name, manifest=bundle.model_dump(mode="json"),
            episode_ids=(), stream_offset=0, by="agent",
        )  # fmt: skip
        self.ledger.transition(name, expected=State.CANDIDATE, to=State.EVALUATING, by="agent", reason="made up")
        self.ledger.bind_report(name, report={}, gates=PASSED, by="agent")
        for at, to in ((State.EVALUATING, State.GATED), (State.GATED, State.SHADOW)):
            self.ledger.transition(name, expected=at, to=to, by="agent", reason="made up")
        return name

    @staticmethod
    def _bundle(parent: str | None, *, mark: str) -> Bundle:
        return Bundle(
            base_sha256="a" * 64, tokenizer_sha256="b" * 64, code_sha256="c" * 64, config={"mark": mark}, parent=parent,
            adapter_sha256=None if parent is None else digest_of([mark]),
            data={"episodes_sha256": digest_of(()), "replay_sha256": digest_of(()), "num_episodes": 0, "num_replay": 0},
        )  # fmt: skip
