"""`autonomous approve`, `reject`, `release`, `explain`, `forensics`: what people decide and ask about versions."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli_common import (
    WAITS,
    ByOption,
    ConfigOption,
    Failure,
    JsonOption,
    connect,
    examples,
    find_config,
    not_running,
    output,
    print_json,
    print_waiting,
    who,
)
from cluster.cli_model import gates_table

PANEL = "Versions"
MAX_EVIDENCE_BYTES = 200_000

VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="Its id: autonomous versions")]
ReasonOption = Annotated[str, typer.Option(help="Why, for the audit log.")]
ReportOption = Annotated[
    str | None,
    typer.Option(
        "--report", help="Hash of the report that you read. Default: the one that is shown here.", show_default=False
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command, lines in (
        (approve, ('autonomous approve ver-0123456789ab --reason "read its report"',)),
        (reject, ('autonomous reject ver-0123456789ab --reason "it learned a rumour"',)),
        (
            release,
            (
                'autonomous release ver-0123456789ab --evidence probe-fixed.md --reason "the probe was wrong"',
                'autonomous release ver-0123456789ab --reason "I agree" --by bob      where two people decide: the second one',
                'autonomous release ver-0123456789ab --withdraw --reason "not yet"',
            ),
        ),
        (explain, ("autonomous explain ver-0123456789ab", "autonomous explain ver-0123456789ab --json")),
        (
            forensics,
            (
                "autonomous forensics ver-0123456789ab",
                'autonomous forensics ver-0123456789ab --prompt "Who founded Arlo?" --max-prompts 12',
            ),
        ),
    ):
        app.command(rich_help_panel=PANEL, epilog=examples(*lines))(command)


def approve(
    version_id: VersionArgument,
    *,
    reason: ReasonOption = "approved on the command line",
    report: ReportOption = None,
    by: ByOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a version that passed all gates serve.

    The approval is bound to the report that is shown; if it is replaced meanwhile, the approval is refused. Where two
    people decide (agent.safety.two_people), who asked for the learning run cannot approve its version.
    """
    with connect(config) as client:
        found = client.versions.get(version_id)
        report_sha256 = report or found.get("report_sha256")
        if not as_json:
            _show_report(found)
        reply = client.versions.approve(version_id, by=by or who(), reason=reason, report_sha256=report_sha256)
        serving = client.versions.all()["pointers"]["v2"]
    if as_json:
        print_json({**reply, "v2": serving, "approved_report_sha256": report_sha256})
    elif serving == reply["id"]:
        output().print(f"Approved. Version {serving} serves now (v2).")
    else:
        output().print(f"Approved. Version {reply['id']} is {reply['state']}; {serving} serves (v2).")


def reject(
    version_id: VersionArgument,
    *,
    reason: ReasonOption,
    report: ReportOption = None,
    by: ByOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say no to a version that waits for approval: it is quarantined, and what it learned is held back."""
    with connect(config) as client:
        report_sha256 = report or client.versions.get(version_id).get("report_sha256")
        reply = client.versions.reject(version_id, by=by or who(), reason=reason, report_sha256=report_sha256)
    if as_json:
        print_json(reply)
    else:
        output().print(f"Rejected. Version {reply['id']} is quarantined (v3); what it learned is held back.")


def release(
    version_id: VersionArgument,
    *,
    reason: ReasonOption,
    evidence: Annotated[
        str | None, typer.Option(help="What has been found out since: a file, or a sentence.", show_default=False)
    ] = None,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Take back a release that waits for a second person.")
    ] = False,
    by: ByOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a quarantined version be evaluated anew, with new evidence: by the next autonomous learn, never straight to traffic.

    What it learned is no longer held back. Where two people decide, the first one's release waits for the second's:
    exit status 4.
    """
    person = by or who()
    with connect(config) as client:
        if withdraw:
            client.versions.withdraw_release(version_id, by=person, reason=reason)
            reply: dict[str, Any] = {"withdrawn": version_id}
        else:
            text, name = _evidence(evidence)
            reply = client.versions.release(version_id, by=person, reason=reason, evidence=text, evidence_name=name)
    waiting = reply.get("waiting") if "id" not in reply else None
    if as_json:
        print_json(reply)
    elif withdraw:
        output().print("Taken back. The version stays in quarantine.")
    elif waiting:
        print_waiting(waiting)
    else:
        output().print(f"Released. Version {reply['id']} is evaluated anew by the next: autonomous learn")
    if waiting:
        raise typer.Exit(WAITS)


def explain(version_id: VersionArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Why a version serves or does not: who decided what and when, gates, what it learned. Works when the system is
    down, without the names of documents.
    """
    from cluster.config import load_config
    from cluster.state import read_state

    home = load_config(find_config(config)).home
    if read_state(home) is not None:
        with connect(config) as client:
            facts = client.versions.explain(version_id)
    elif (home / "ledger.sqlite").exists():
        from autonomous.versions.explain import explain as explain_from
        from autonomous.versions.readonly import ReadOnlyLedger

        explanation = explain_from(ReadOnlyLedger(home / "ledger.sqlite"), version_id)
        facts = {**explanation.to_dict(), "text": str(explanation)}
    else:
        not_running(find_config(config))
    if as_json:
        print_json(facts)
    else:
        output().print(facts["text"], markup=False, soft_wrap=True)


def forensics(
    version_id: VersionArgument,
    *,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Ask both versions this too; may be repeated.", show_default=False)
    ] = None,
    max_prompts: Annotated[int, typer.Option(min=0, max=24, help="Most prompts; 0 asks nothing.")] = 8,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at a quarantined version beside the one that serves: what it learned, what failed, both answers to the same
    prompts, and the likeliest causes. Changes nothing.
    """
    with connect(config) as client:
        found = client.versions.forensics(version_id, prompts=prompt or (), max_prompts=max_prompts)
    if as_json:
        print_json(found)
    else:
        output().print(found["text"], markup=False, soft_wrap=True)


def _show_report(found: dict[str, Any]) -> None:
    console = output()
    if found.get("gates"):
        console.print(gates_table(found["gates"]))
    if found.get("proposed_by"):
        console.print(f"Asked for by {found['proposed_by']}.", markup=False)
    console.print(f"Report {found.get('report_sha256')}", markup=False, soft_wrap=True)


def _evidence(given: str | None) -> tuple[str | None, str | None]:
    """The text of a file and its name, or the sentence itself."""
    if given is None:
        return None, None
    path = Path(given).expanduser()
    try:
        is_file = path.is_file()
    except OSError:  # a sentence that is too long for a name
        is_file = False
    if not is_file:
        return given, None
    if path.stat().st_size > MAX_EVIDENCE_BYTES:
        raise Failure(f"evidence {path} has more than {MAX_EVIDENCE_BYTES} bytes: give the part that counts")
    try:
        return path.read_text(encoding="utf-8"), path.name
    except UnicodeDecodeError as error:
        raise Failure(f"evidence {path} is no UTF-8 text ({error.reason}): give a text that describes it") from error
