"""`autonomous ask`, `add`, `learn`, `versions`, `unlock`, `rollback`: the model and what it knows."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cluster.cli_common import (
    ByOption,
    ConfigOption,
    Failure,
    JsonOption,
    connect,
    examples,
    find_config,
    output,
    print_json,
    table,
    who,
)
from cluster.client import Answer
from cluster.client_errors import ApiError

PANEL = "The model"
NOT_PROMOTED = 3
"""Exit status of a learning run whose version did not pass its gates."""
MAX_REFUSED_ROWS = 20


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    add_command = app.command
    add_command(
        rich_help_panel=PANEL,
        epilog=examples(
            'autonomous ask "What does the with statement do?"',
            'autonomous ask "What does it guarantee?" --no-retrieval      from its weights alone',
            'autonomous ask "..." --model base                            the frozen original',
        ),
    )(ask)
    add_command(
        rich_help_panel=PANEL,
        epilog=examples(
            "autonomous add docs/", "autonomous add ../my-project       a git repository", "autonomous add notes.md"
        ),
    )(add)
    add_command(rich_help_panel=PANEL, epilog=examples("autonomous learn", "autonomous learn --no-wait"))(learn)
    add_command(
        rich_help_panel=PANEL, epilog=examples("autonomous versions", "autonomous versions --id ver-0123456789ab")
    )(versions)
    add_command(rich_help_panel=PANEL, epilog=examples('autonomous unlock --reason "both had learned one bad source"'))(
        unlock
    )
    add_command(rich_help_panel=PANEL, epilog=examples('autonomous rollback --reason "wrong answers about X"'))(
        rollback
    )


def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    *,
    model: Annotated[str, typer.Option(help="v2 (production), v1, base (the frozen original) or a version id.")] = "v2",
    retrieval: Annotated[
        bool, typer.Option("--retrieval/--no-retrieval", help="Put found passages before the question.")
    ] = True,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Print the answer as it is written. Default: on a terminal.",
            show_default=False,
        ),
    ] = None,
    session: Annotated[str | None, typer.Option(help="Name of a conversation, for follow-up questions.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a question; shows the answer, its sources and how long it took."""
    if not question.strip():
        raise Failure('the question is empty; write it in quotes: autonomous ask "..."', code=2)
    console = output()
    with connect(config) as client:
        if as_json or not (console.is_terminal if stream is None else stream):
            answer = client.ask(question, model=model, retrieval=retrieval, max_tokens=max_tokens, session=session)
            if as_json:
                print_json({"question": question, **answer.to_json()})
                return
            console.print(answer.text, markup=False, soft_wrap=True)
        else:
            answer = client.stream(
                question, on_text=_write, model=model, retrieval=retrieval, max_tokens=max_tokens, session=session
            )
            _write("\n")
    print_sources(console, answer)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def print_sources(console: Console, answer: Answer) -> None:
    """Where an answer comes from, and its times."""
    if answer.sources:
        rows = [(n, s.get("title"), s.get("source"), s.get("cosine")) for n, s in enumerate(answer.sources, start=1)]
        console.print(table(None, ("", "passage of", "source", "cosine"), rows, right=("cosine",)))
    times = ", ".join(
        f"{name.removesuffix('_s').replace('_', ' ')} {value:.2f} s" for name, value in answer.timings.items()
    )
    count = len(answer.sources)
    origin = f"from {count} passage{'s' if count > 1 else ''}" if count else "no passages: from its weights"
    named = f"; {answer.id}" if answer.id else ""
    console.print(f"version {answer.version}; {origin}; {times}{named}", markup=False, style="dim")


def add(
    path: Annotated[Path, typer.Argument(help="A folder, a git repository or one file.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store documents, to be retrieved and learned.

    They are found within seconds, and learned with the next batch. Adding them again changes nothing.
    """
    from cluster.config import load_config
    from cluster.feed import FeedReport, feed_source
    from cluster.progress import CountBar

    if not path.expanduser().exists():
        raise Failure(f"there is no file or folder {path}; check the spelling")
    settings = load_config(find_config(config))
    console = output(stderr=as_json)
    with connect(config) as client, CountBar(console, "storing") as bar:

        def show(report: FeedReport, num_files: int | None) -> None:
            if not as_json:
                bar.update(report.num_documents, num_files, f"{report.num_episodes} new passages")

        max_bytes = settings.ingest.max_document_bytes
        report = feed_source(client, path.expanduser(), max_file_bytes=max_bytes, on_progress=show)
    if as_json:
        print_json(report.to_json())
        return
    console.print(
        f"{report.num_stored} documents stored ({report.num_episodes} passages), {report.num_repeated} known already, "
        f"{len(report.refused)} refused, in {report.seconds:.1f} s."
    )
    if report.refused:
        rows = [
            (refused.path, refused.status, refused.reason, refused.fix) for refused in report.refused[:MAX_REFUSED_ROWS]
        ]
        console.print(table("Refused", ("document", "status", "reason", "fix"), rows))
        if len(report.refused) > MAX_REFUSED_ROWS:
            console.print(f"... and {len(report.refused) - MAX_REFUSED_ROWS} more: --json lists them all")


def learn(
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end and show the gates.")] = True,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Learn what is new, and serve it if it passes all gates.

    Exit status 3: it ran, but the new version did not pass its gates and does not serve.
    """
    from cluster.progress import LearningLines

    console = output(stderr=as_json)
    with connect(config) as client:
        run_id = client.learn(by=who())
        if not wait:
            if as_json:
                print_json({"run_id": run_id})
            else:
                console.print(f"Learning run {run_id} has begun; look at it with: autonomous status")
            return
        if as_json:
            status = client.follow(run_id, on_status=lambda _: None)
        else:
            with LearningLines(console) as lines:
                status = client.follow(run_id, on_status=lines)
    if as_json:
        print_json(status)
    else:
        print_outcome(console, status)
    if status["phase"] == "failed":
        raise typer.Exit(1)
    if status.get("state") not in ("PRODUCTION", "AWAITING_APPROVAL", "CANARY"):
        raise typer.Exit(NOT_PROMOTED)


def print_outcome(console: Console, status: dict[str, Any]) -> None:
    """How a learning run ended: its gates, and in a sentence what it means."""
    if status.get("gates"):
        console.print(gates_table(status["gates"]))
    console.print(outcome_sentence(status), markup=False, soft_wrap=True)


def gates_table(gates: list[dict[str, Any]]) -> Any:
    """The verdicts of a version's gates."""
    rows = [(g["name"], g["verdict"], g.get("value"), g.get("threshold"), g.get("reason")) for g in gates]
    return table("Gates", ("gate", "verdict", "value", "threshold", "reason"), rows, right=("value", "threshold"))


def outcome_sentence(status: dict[str, Any]) -> str:
    """The result of a run in words."""
    version, state = status.get("version"), str(status.get("state") or "").upper()
    if status["phase"] == "failed":
        return f"The run failed: {status.get('error') or 'no reason given'}"
    if state == "PRODUCTION":
        return f"Version {version} passed all gates and serves now (v2)."
    if state == "AWAITING_APPROVAL":
        return f"Version {version} passed all gates and waits for a person: autonomous approve {version}"
    if state == "CANARY":
        return f"Version {version} passed all gates and meets the first users now: autonomous status"
    named = {
        verdict: ", ".join(g["name"] for g in status.get("gates") or [] if g["verdict"] == verdict)
        for verdict in ("fail", "inconclusive")
    }
    if named["fail"]:
        return f"Version {version} does not serve: {named['fail']} failed, so it is {state.lower()}. v2 is unchanged."
    undecided = named["inconclusive"] or "no gate"
    return f"Version {version} does not serve: {undecided} inconclusive; its state is {state}. v2 is unchanged."


def versions(
    version_id: Annotated[
        str | None, typer.Option("--id", help="Show one version, with its gates and ancestors.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """The versions of the model, and which are v1, v2 and v3."""
    console = output()
    with connect(config, timeout_s=30.0) as client:
        facts = client.versions.get(version_id) if version_id else client.versions.all()
    if as_json:
        print_json(facts)
    elif version_id:
        shown = ("id", "state", "parent", "adapter_number", "created_at", "num_episodes", "report_sha256")
        rows = [
            (name.replace("_", " "), _moment(facts[name]) if name == "created_at" else facts[name])
            for name in shown
            if name in facts
        ]
        rows.append(("lineage", " > ".join(str(ancestor) for ancestor in facts.get("lineage") or [])))
        console.print(table(None, ("", "value"), rows))
        if facts.get("gates"):
            console.print(gates_table(facts["gates"]))
    else:
        slots: dict[str, list[str]] = {}
        if facts.get("frozen"):
            console.print(facts["frozen"], style="bold red", markup=False)
        for slot, name in facts["pointers"].items():
            slots.setdefault(str(name), []).append(slot)
        listed = [
            (
                ", ".join(slots.get(v["id"], [])),
                v["id"],
                v["state"],
                v.get("parent"),
                v.get("num_episodes"),
                _moment(v.get("created_at")),
            )
            for v in facts["versions"]
        ]
        console.print(
            table(None, ("is", "version", "state", "parent", "passages", "made"), listed, right=("passages",))
        )


def _moment(seconds: Any) -> str | None:
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(seconds))) if seconds else None


def unlock(
    reason: Annotated[str, typer.Option(help="What caused the rollbacks, and why it is over.")],
    by: ByOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let versions be promoted again, after two were rolled back within a week."""
    with connect(config) as client:
        client.versions.unlock(by=by or who(), reason=reason)
        frozen = client.versions.all()["frozen"]
    if as_json:
        print_json({"frozen": frozen})
    else:
        output().print(frozen or "Promotions go on. Nothing was started: autonomous learn", markup=False)


def rollback(
    reason: Annotated[str, typer.Option(help="Why, for the audit log.")],
    keep_passages: Annotated[
        bool, typer.Option("--keep-passages", help="Go on recalling what the version learned.")
    ] = False,
    by: ByOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve the predecessor again, at once.

    The version that serves now is quarantined. What it learned is not learned again, and not recalled until a person
    releases it: autonomous memory waiting.
    """
    try:
        with connect(config) as client:
            reply = client.versions.rollback(by=by or who(), reason=reason, keep_passages=keep_passages)
    except ApiError as error:
        if error.status == 409:
            raise Failure(f"{error}; look at: autonomous versions") from error
        raise
    if as_json:
        print_json(reply)
    else:
        console = output()
        console.print(f"Version {reply['to']} serves again (v2), after {reply['seconds']:.3f} s.")
        console.print(f"Version {reply['from']} is quarantined (v3).")
