"""`autonomous evaluate`: the thorough evaluation of a version."""

import time
from typing import Annotated, Any

import typer

from cluster.cli_common import ConfigOption, Failure, JsonOption, connect, examples, output, print_json, table

PANEL = "The model"
POLL_S = 2.0


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(
        rich_help_panel=PANEL,
        epilog=examples(
            "autonomous evaluate                     the version that serves",
            "autonomous evaluate v-0123456789abcdef  another one",
            "autonomous evaluate --no-wait           its report tells when it is done",
        ),
    )(evaluate)


def evaluate(
    version: Annotated[
        str, typer.Argument(metavar="[VERSION]", help="v1, v2, v3 or a version id.", show_default=True)
    ] = "v2",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done: minutes.")] = True,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a version everything: texts by domain, questions, reviews, instructions, safety, latency.

    It is compared with v2 and with the frozen original; candidates that are judged meanwhile go first.
    """
    with connect(config) as client:
        name = client.versions.all()["pointers"].get(version, version)
        if name is None:
            raise Failure(f"there is no {version} now; look at: autonomous versions")
        before = _made_at(client.versions.report(name))
        started = client.versions.benchmark(name)["version"]
        report = client.versions.report(started)
        while wait and report["is_running"]:
            time.sleep(POLL_S)
            report = client.versions.report(started)
        page = f"{client.base_url}/v1/versions/{started}/report?format=html"
    if report["error"]:
        raise Failure(f"the benchmark of {started} failed: {report['error']}")
    if not report["is_running"] and _made_at(report) == before:
        raise Failure(
            f"the benchmark of {started} ended without a report, as if its evaluator had been ended: look at autonomous logs "
            f"evaluator, then give it again: autonomous evaluate {started}"
        )
    if as_json:
        print_json({**report, "page": page})
        return
    if not report["is_running"]:
        print_benchmark(report)
    output().print(f"Page: {page}", markup=False, soft_wrap=True)


def _made_at(report: dict[str, Any]) -> float | None:
    """When the newest benchmark of a version was made: what tells it from the one before."""
    return report["benchmark"]["created_at"] if report["benchmark"] else None


def print_benchmark(report: dict[str, Any]) -> None:
    """The comparisons of a benchmark and what they trigger."""
    console = output()
    rows = [
        (one["metric"], one["against"], one["candidate"], one["reference"], one["outcome"], one["reason"])
        for one in report["benchmark"]["comparisons"]
    ]
    columns = ("metric", "against", "it", "reference", "it is", "evidence")
    console.print(table(f"Version {report['version']}", columns, rows, right=("it", "reference")))
    for trigger in report["triggers"]:
        console.print(f"To be learned again ({trigger['kind']}): {trigger['reason']}", markup=False, soft_wrap=True)
