"""`autonomous tool`: what tools there are, one call, and an answer that uses them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli_common import ConfigOption, JsonOption, connect, examples, output, print_json, table

PANEL = "The model"


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Calculator, code search, look-up, Python.")
    group.callback()(_tool)
    add = group.command
    add(
        "list", epilog=examples("autonomous tool list", "autonomous tool list --json | jq -r '.tools[].function.name'")
    )(list_tools)
    add(
        epilog=examples(
            'autonomous tool call calculator expression="15% of 80"',
            "autonomous tool call code_search query=Latch kind=symbol",
            'autonomous tool call documentation query="access code" k:=5 sources:=\'["guide"]\'',
            "autonomous tool call python source=@program.py",
        )
    )(call)
    add(epilog=examples('autonomous tool answer "What is 12 * (3 + 4)?"'))(answer)
    app.add_typer(group, name="tool", rich_help_panel=PANEL)


def _tool() -> None:
    """Calculator, code search, look-up, Python."""


def list_tools(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """The tools and what each takes."""
    with connect(config) as client:
        reply = client.tools.all()
    if as_json:
        print_json(reply)
        return
    functions = [one["function"] for one in reply["tools"]]
    rows = [(one["name"], ", ".join(one["parameters"]["properties"]), one["description"]) for one in functions]
    output().print(
        table(None, ("tool", "takes", "what for"), rows) if rows else "No tool is enabled (agent.knowledge)."
    )


def call(
    name: Annotated[str, typer.Argument(help="From: autonomous tool list")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=TEXT|KEY:=JSON|KEY=@FILE]...", help="What the tool takes.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Call a tool; each call is in the audit log. Exit 3: it ran, but failed."""
    with connect(config) as client:
        reply = client.tools.call(name, read_arguments(arguments or []))
    if as_json:
        print_json(reply)
    else:
        console = output()
        console.print(reply["text"], markup=False)
        for flag in reply["flags"]:
            console.print(f"flagged: {flag}", markup=False)
        if isolation := reply["details"].get("isolation"):
            console.print(f"{reply['details']['seconds']:.2f} s, isolation: {isolation}", markup=False)
    if reply["is_error"]:
        raise typer.Exit(3)


def answer(
    question: Annotated[str, typer.Argument(help="A question.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question with tools, and show the steps."""
    with connect(config) as client:
        reply = client.tools.answer(question)
    if as_json:
        print_json(reply)
        return
    console = output()
    console.print(reply["answer"], markup=False)
    rows = [
        (step["tool"], step["requested_by"], step["problem"] or "done", f"{step['seconds']:.3f}")
        for step in reply["steps"]
    ]
    console.print(table(None, ("step", "asked by", "outcome", "seconds"), rows, right=("seconds",)))
    for source in reply["sources"]:
        console.print(f"source: {source['title']} ({source['location']})", markup=False)
    console.print(f"answered by {reply['answered_by']}, version {reply['version']}", markup=False)


def read_arguments(pairs: list[str]) -> dict[str, Any]:
    """KEY=TEXT, KEY:=JSON, KEY=@FILE -> arguments. Raises typer.BadParameter naming the pair."""
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key.rstrip(":"):
            raise typer.BadParameter(f"'{pair[:80]}' is not KEY=TEXT, KEY:=JSON or KEY=@FILE")
        if key.endswith(":"):
            try:
                arguments[key[:-1]] = json.loads(text)
            except ValueError as error:
                raise typer.BadParameter(f"'{pair[:80]}' holds no JSON ({error}); use KEY=TEXT for a text") from error
        elif text.startswith("@"):
            arguments[key] = Path(text[1:]).expanduser().read_text(encoding="utf-8")
        else:
            arguments[key] = text
    return arguments
