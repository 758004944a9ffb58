"""The guided run of `make demo`: start, read documents, ask, learn, ask again, stop, reset; then say what happened.

In flows a configuration and a source of documents; out flow text for a person and a `GuidedReport`. Everything goes
through the HTTP API, and what is printed is what the system answered. A version that is quarantined is told as such.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from autonomous.lessons import answer_hits
from autonomous.phases import ENDED
from cluster.bench import Claim, describe_machine
from cluster.cli_common import Failure, table, who
from cluster.cli_model import gates_table, outcome_sentence
from cluster.client import Answer, Client
from cluster.client_connection import Json
from cluster.client_errors import ApiError, ClientError
from cluster.config import SystemConfig, load_config
from cluster.feed import FeedReport, feed_source, wait_until_indexed
from cluster.guided_stop import stop_and_reset
from cluster.progress import CountBar, LearningLines, StageLines
from cluster.report import AnswerRecord, GuidedReport, LearningRecord, QuestionRecord, Step, write_report
from cluster.state import read_state
from cluster.stop import NotUp, bring_down
from cluster.up import BringUpError, bring_up

NUM_QUESTIONS = 5
ANSWER_TOKENS = 48
SHOWN_CHARS = 160
APPROVAL_WAIT_S = 60.0


def run_guided(
    config_path: Path, *, source: Path | None, once: bool, approve: bool, folder: Path, console: Console
) -> GuidedReport:
    """The whole run. Writes the report into `folder` also when a step fails; `once` ends the system afterwards.

    Raises Failure where nothing could be begun (bad configuration, the system does not start, no such source).
    """
    config = load_config(config_path)
    if source is not None and not source.expanduser().exists():
        raise Failure(f"there is no folder or file {source}; name one that exists with --source")
    guided = GuidedRun(config, config_path=config_path, console=console, source=source, approve=approve)
    try:
        guided.run()
    except (ClientError, ValueError, TimeoutError, OSError) as error:
        guided.report.error = " ".join(str(error).split())
        console.print(f"The run ends here: {guided.report.error}", markup=False, style="bold red")
    except (Failure, KeyboardInterrupt) as error:
        guided.report.error = " ".join(str(error).split()) or "interrupted by the user"
        raise
    finally:
        guided.close(once=once, folder=folder)
    return guided.report


class GuidedRun:
    """The steps, in order, on one report."""

    def __init__(
        self, config: SystemConfig, *, config_path: Path, console: Console, source: Path | None, approve: bool
    ) -> None:
        self.report = GuidedReport(started_at=time.time())
        self._config = config
        self._config_path = config_path
        self._console = console
        self._source = source
        self._approve = approve
        self._start = time.monotonic()
        self._acknowledged_at: dict[str, float] = {}
        self._batch_documents: set[str] = set()
        self._client: Client | None = None

    # -- the run

    def run(self) -> None:
        """All steps."""
        client = self._client = self._bring_up()
        self._refuse_while_stopped(client)
        self._feed(client)
        self._ask_before(client)
        self._learn(client)
        self._ask_after(client)
        self._stop_and_reset(client)
        self._collect_targets(client)

    def close(self, *, once: bool, folder: Path) -> None:
        """Print the tables, write the report, and leave the system as it was asked for."""
        if self._client is not None:
            self._client.close()
            if once:
                with self._step("end the system") as done, StageLines(self._console) as stages:
                    try:
                        ended = bring_down(self._config.home, on_stage=stages)
                        done(f"{ended.num_processes_ended} processes ended, none is left")
                    except NotUp:
                        done("it was down already")
            else:
                self.report.is_left_up = read_state(self._config.home) is not None
        self.report.environment = self._environment()
        self.report.seconds = round(time.monotonic() - self._start, 2)
        self._print_summary()
        paths = write_report(self.report, folder=folder)
        self._console.print(f"Report: {paths[1]} and {paths[0].name}", markup=False, soft_wrap=True)
        if self.report.is_left_up:
            self._console.print(f"The system is up: {self.report.url}   End it with: autonomous down", markup=False)

    def _bring_up(self) -> Client:
        with self._step("start the system") as done:
            state = read_state(self._config.home)
            if state is None:
                try:
                    with StageLines(self._console) as stages:
                        up = bring_up(self._config, on_stage=stages, config_path=self._config_path.resolve())
                except BringUpError as error:
                    raise Failure(str(error)) from error
                self.report.stages, self.report.url = up.stages, up.url
                done(f"up at {up.url}")
            else:
                self.report.url = state.url
                done(f"was up already at {state.url}")
        return Client(self.report.url)

    def _refuse_while_stopped(self, client: Client) -> None:
        safety = client.safety()
        if safety.get("mode") != "armed":
            raise ValueError(
                f"learning is stopped (mode {safety.get('mode')}, by {safety.get('by')}: {safety.get('reason')}); "
                'permit it first: autonomous reset --reason "..." --by NAME'
            )

    def _feed(self, client: Client) -> None:
        if self._source is None:
            from train.data.corpus import write_default_corpus

            with self._step("gather documentation of this machine") as done:
                source = write_default_corpus(self._config.home / "corpus")
                done(str(source))
        else:
            source = self._source.expanduser()
        with self._step("read and store documents") as done, CountBar(self._console, "storing") as bar:

            def stored(report: FeedReport, num_files: int | None) -> None:
                bar.update(report.num_documents, num_files, f"{report.num_episodes} new passages")

            fed = feed_source(client, source, max_file_bytes=self._config.ingest.max_document_bytes, on_progress=stored)
            done(
                f"{fed.num_stored} stored ({fed.num_episodes} passages), {fed.num_repeated} known already, "
                f"{len(fed.refused)} refused"
            )
        self._acknowledged_at = fed.acknowledged_at
        self.report.feed = fed.to_json()
        with self._step("index for retrieval") as done, CountBar(self._console, "indexing") as bar:
            seconds = wait_until_indexed(client, last_seq=fed.last_seq, on_progress=bar.update)
            self.report.feed["indexing_seconds"] = round(seconds, 2)
            done("every passage can be found by meaning")

    def _ask_before(self, client: Client) -> None:
        batch = client.next_batch()
        self._batch_documents = {str(episode["document_id"]) for episode in batch["episodes"]}
        titles = {str(episode["document_id"]): str(episode["title"]) for episode in batch["episodes"]}
        chosen = choose_questions(batch["questions"], count=NUM_QUESTIONS)
        if not chosen:
            self.report.notes.append("The next batch holds no question: everything of this source was learned before.")
            self._say(self.report.notes[-1])
            return
        with self._step(f"ask {len(chosen)} questions before learning") as done:
            for asked in chosen:
                record = QuestionRecord(
                    question=asked["question"], reworded=asked["paraphrase"],
                    document=titles.get(str(asked["document_id"]), ""), expected=asked["answer"], key=asked["key"],
                )  # fmt: skip
                self.report.questions.append(record)
                self._say(f"\n  ? {record.question}", style="bold")
                record.before = self._ask(client, record, "from its weights", retrieval=False)
                record.with_sources = self._ask(client, record, "with retrieval", retrieval=True)
            done(
                f"{self.report.num_hits('before')} of {len(chosen)} hold the key from the weights, "
                f"{self.report.num_hits('with_sources')} with retrieval"
            )

    def _learn(self, client: Client) -> None:
        with self._step("learn a batch, judge it, swap it in") as done:
            try:
                run_id = client.learn(by=who())
            except ApiError as error:
                if error.status != 409:
                    raise
                run_id = self._run_under_way(client)
                if not run_id:
                    self.report.notes.append(f"No batch was learned: {error}")
                    done(str(error))
                    return
                self.report.notes.append(f"A batch was being learned already; the run follows it ({run_id}).")
            start = time.monotonic()
            with LearningLines(self._console) as lines:
                status = client.follow(run_id, on_status=lines)
            if status.get("state") == "AWAITING_APPROVAL":
                status = self._let_a_person_decide(client, status)
            outcome = outcome_sentence(status)
            training = status.get("training") or {}
            losses = training.get("losses") or []
            self.report.learning = LearningRecord(
                run_id=run_id, phase=status["phase"], version=status.get("version"), state=status.get("state"),
                outcome=outcome, seconds=round(time.monotonic() - start, 2),
                curve=list(enumerate(losses, start=1)) if losses else lines.curve,
                gates=list(status.get("gates") or []), timings=dict(status.get("timings") or {}),
                training={name: value for name, value in training.items() if not isinstance(value, list)},
            )  # fmt: skip
            if self.report.learning.gates:
                self._console.print(gates_table(self.report.learning.gates))
            done(outcome)

    def _run_under_way(self, client: Client) -> str:
        learning = client.status().get("learning") or {}
        return str(learning["run_id"]) if learning and learning["phase"] not in ENDED else ""

    def _let_a_person_decide(self, client: Client, status: Json) -> Json:
        version = str(status["version"])
        if not self._approve:
            asks = self._console.is_terminal and sys.stdin.isatty()
            if not (
                asks and typer.confirm(f"Version {version} passed all gates. Approve it in your name?", default=True)
            ):
                self.report.notes.append(f"Version {version} waits for approval: autonomous approve {version}")
                return status
        report_sha256 = client.versions.get(version).get("report_sha256")
        try:
            client.versions.approve(version, by=who(), reason="approved in the guided run", report_sha256=report_sha256)
        except ApiError as error:
            if error.status != 409:
                raise
            self.report.notes.append(
                f"Version {version} waits for approval: {error}"
            )  # by another person, for instance
            return status
        deadline = time.monotonic() + APPROVAL_WAIT_S
        while client.versions.all()["pointers"]["v2"] != version and time.monotonic() < deadline:
            time.sleep(0.2)
        return status | {"state": client.versions.get(version)["state"]}

    def _ask_after(self, client: Client) -> None:
        asked = [record for record in self.report.questions if record.before]
        if not asked or self.report.learning is None:
            return
        with self._step("ask again, retrieval off") as done:
            for record in asked:
                self._say(f"\n  ? {record.question}", style="bold")
                record.after = self._ask(client, record, "from its weights", retrieval=False)
                if record is asked[0]:
                    self._note_learning_delay(record.after)
                self._say(f"  ? {record.reworded}", style="bold")
                record.after_reworded = self._ask(client, record, "reworded", retrieval=False, question=record.reworded)
            versions = ", ".join(sorted({record.after.version for record in asked if record.after}))
            done(
                f"{self.report.num_hits('after')} of {len(asked)} hold the key now, "
                f"{self.report.num_hits('before')} before; {self.report.num_hits('after_reworded')} when reworded; "
                f"answered by {versions}"
            )

    def _note_learning_delay(self, first_answer: AnswerRecord) -> None:
        """The delay from the oldest stored document of the batch to the first answer of the version that learned it."""
        learning = self.report.learning
        received = [at for document, at in self._acknowledged_at.items() if document in self._batch_documents]
        if learning is None or first_answer.version != learning.version or not received:
            return
        delay = time.time() - min(received)
        self.report.targets.append(
            Claim(
                "learning delay", "< 300 s", round(delay, 1), "s", delay < 300,
                "oldest document of the batch stored -> first answer of the promoted version, retrieval off; "
                "indexing and the questions asked in between are part of it",
            )
        )  # fmt: skip

    def _stop_and_reset(self, client: Client) -> None:
        question = self.report.questions[0].question if self.report.questions else "What is this documentation about?"
        with self._step("emergency stop and reset") as done:
            for check in stop_and_reset(client, question=question, by=who()):
                self.report.stop.append(check)
                mark, style = ("ok    ", None) if check.is_ok else ("FAILED", "bold red")
                self._say(f"  {mark} {check.name}: {check.observed}", style=style)
            good = sum(check.is_ok for check in self.report.stop)
            result = "learning stood, answering went on" if good == len(self.report.stop) else "see the failed ones"
            done(f"{good} of {len(self.report.stop)} checks as expected: {result}")
        pulled = self.report.stop[0]
        is_met = pulled.is_ok and pulled.seconds < 1
        how = "POST /v1/safety/stop: answered after the latch is on disk"
        self.report.targets.append(Claim("emergency stop", "< 1 s", pulled.seconds, "s", is_met, how))

    def _collect_targets(self, client: Client) -> None:
        delays = client.status().get("delays") or {}
        total = time.monotonic() - self._start
        up_s = sum(self.report.stages.values())
        found = [
            ("start of the system", 120.0, up_s or None, "all stages of autonomous up"),
            (
                "retrieval delay",
                2.0,
                delays.get("retrieval_s"),
                "last document stored -> found, as the service measured it",
            ),
            ("hot swap", None, delays.get("swap_s"), "gates' decision -> version serves"),
            ("whole guided run", 600.0, total, "without set-up"),
        ]
        for name, limit, measured, conditions in found:
            if measured is not None:
                target = f"< {limit:.0f} s" if limit else "reported"
                is_met = float(measured) < limit if limit else None
                self.report.targets.append(Claim(name, target, round(float(measured), 3), "s", is_met, conditions))

    # -- helpers

    def _ask(
        self, client: Client, record: QuestionRecord, label: str, *, retrieval: bool, question: str | None = None
    ) -> AnswerRecord:
        answer = client.ask(question or record.question, retrieval=retrieval, max_tokens=ANSWER_TOKENS)
        given = answer_record(answer, key=record.key)
        text = " ".join(given.text.split())
        text = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
        sources = f"; from {', '.join(str(source['title']) for source in given.sources)}" if given.sources else ""
        self._say(f"    {label}: {text}")
        self._say(
            f"      {'holds' if given.hit else 'without'} the key; {given.seconds:.2f} s; {given.version}{sources}",
            style="dim",
        )
        return given

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time a step; the body says its result. A step that raises is recorded too."""
        results: list[str] = []
        self._say(f"\n{len(self.report.steps) + 1}. {name[0].upper()}{name[1:]}", style="bold")
        start = time.monotonic()
        try:
            yield results.append
        except BaseException as error:
            results.append(f"failed: {' '.join(str(error).split()) or type(error).__name__}")
            raise
        finally:
            seconds = round(time.monotonic() - start, 2)
            self.report.steps.append(Step(name=name, seconds=seconds, result=results[-1] if results else "done"))
        self._say(f"  {self.report.steps[-1].result}  ({seconds:.1f} s)")

    def _say(self, text: str, *, style: str | None = None) -> None:
        self._console.print(text, markup=False, style=style, soft_wrap=True)

    def _environment(self) -> dict[str, Any]:
        engine = self._config.engine
        return describe_machine() | {
            "base_model": self._config.model.source,
            "engine": f"{engine.kind}, {engine.num_replicas} replica(s), precision {engine.dtype}",
            "configuration": str(self._config_path), "home": str(self._config.home),
        }  # fmt: skip

    def _print_summary(self) -> None:
        steps = [(step.name, step.seconds, step.result) for step in self.report.steps]
        self._console.print(table("\nWhat happened", ("step", "seconds", "result"), steps, right=("seconds",)))
        if self.report.targets:
            rows = [(c.name, c.target, c.measured, c.unit, c.verdict) for c in self.report.targets]
            self._console.print(
                table("Targets", ("claim", "target", "measured", "unit", "is"), rows, right=("measured",))
            )


def choose_questions(questions: Sequence[Json], *, count: int) -> list[Json]:
    """The first question of each document, in order; further ones of the same documents only if those are too few."""
    chosen, seen = [], set()
    for question in questions:
        if question["document_id"] not in seen:
            seen.add(question["document_id"])
            chosen.append(question)
    chosen += [question for question in questions if question not in chosen]
    return chosen[:count]


def answer_record(answer: Answer, *, key: str) -> AnswerRecord:
    """An answer as the report keeps it."""
    kept = ("title", "source", "document_id", "cosine")
    return AnswerRecord(
        text=answer.text, version=answer.version, hit=answer_hits(answer.text, key), seconds=round(answer.seconds, 3),
        timings=answer.timings, sources=[{name: source.get(name) for name in kept} for source in answer.sources],
    )  # fmt: skip
