"""`autonomous memory`: what it holds, whom it believes, what is erased, and its daily consolidation."""

import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from cluster.cli_common import (
    ByOption,
    ConfigOption,
    JsonOption,
    connect,
    examples,
    output,
    print_json,
    short,
    table,
    who,
)

PANEL = "The model"

ReasonOption = Annotated[str, typer.Option(help="Why, for the audit log.")]


class TrustName(StrEnum):
    """How far a source is believed."""

    UNTRUSTED = "untrusted"
    STANDARD = "standard"
    TRUSTED = "trusted"


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="What it holds and whom it believes.")
    group.callback()(_memory)
    add = group.command
    add(epilog=examples('autonomous memory context "How do I reset the pump?" --tokens 500'))(context)
    add(
        epilog=examples(
            'autonomous memory facts "Torvik pump"',
            'autonomous memory facts "Torvik pump" --as-of 2026-01-31',
        )
    )(facts)
    add(epilog=examples("autonomous memory waiting", "autonomous memory waiting --json | jq -r '.episodes[].id'"))(
        waiting
    )
    add(epilog=examples('autonomous memory release ID --reason "read and right"'))(release)
    add(
        epilog=examples(
            "autonomous memory trust                                  decisions so far",
            'autonomous memory trust forum untrusted --reason "not ours"',
        )
    )(trust)
    add(epilog=examples("autonomous memory alarms"))(alarms)
    add(epilog=examples('autonomous memory forget forum --reason "asked by its owner"'))(forget)
    add(epilog=examples("autonomous memory consolidate", "autonomous memory consolidate --list"))(consolidate)
    add(epilog=examples('autonomous memory undo dream-1795996800.000 --reason "too early"'))(undo)
    app.add_typer(group, name="memory", rich_help_panel=PANEL)


def _memory() -> None:
    """What it holds and whom it believes."""


def context(
    request: Annotated[str, typer.Argument(help="A question or a task.")],
    tokens: Annotated[int, typer.Option(min=1, help="Budget, in the serving model's tokens.")] = 1024,
    session: Annotated[str | None, typer.Option(help="Whose working memory is used.", show_default=False)] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What would go before a request: of the session, of facts, of passages."""
    with connect(config) as client:
        reply = client.memory.context(request, token_budget=tokens, session=session)
    if as_json:
        print_json(reply)
        return
    console = output()
    rows = [
        (part["tier"], part["num_tokens"], part["source_id"] or "-", short(part["text"])) for part in reply["parts"]
    ]
    console.print(table(None, ("tier", "tokens", "source", "text"), rows))
    console.print(f"{reply['num_tokens']} of {reply['budget_tokens']} tokens.")


def facts(
    about: Annotated[str, typer.Argument(help="A concept.")],
    as_of: Annotated[
        str | None,
        typer.Option(help="What held on this day, YYYY-MM-DD or seconds since the epoch.", show_default=False),
    ] = None,
    known: Annotated[
        str | None, typer.Option(help="What was known on this day, in the same form.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What is held about a concept, since when, and who says it."""
    with connect(config) as client:
        reply = client.memory.facts(about, valid_at=_moment("--as-of", as_of), recorded_at=_moment("--known", known))
    if as_json:
        print_json(reply)
        return
    rows = [
        (
            fact["sentence"],
            _day(fact["valid_from"]) + ("" if fact["valid_to"] is None else f" to {_day(fact['valid_to'])}"),
            fact["rule"] or "read",
        )
        for fact in reply["facts"]
    ]
    if rows:
        output().print(table(None, ("fact", "since", "how"), rows))
    else:
        output().print(f"Nothing is held about {about}.", markup=False)


def waiting(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Passages that are neither recalled nor learned until a person releases them."""
    with connect(config) as client:
        reply = client.memory.waiting()
    if as_json:
        print_json(reply)
        return
    rows = [(one["id"], one["source_id"], short(one["text"])) for one in reply["episodes"]]
    output().print(table(None, ("id", "source", "text"), rows) if rows else "Nothing waits.")


def release(
    ids: Annotated[list[str], typer.Argument(help="From: autonomous memory waiting")],
    reason: ReasonOption,
    by: ByOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let passages that wait be recalled and learned."""
    with connect(config) as client:
        reply = client.memory.release(ids, by=by or who(), reason=reason)
    if as_json:
        print_json(reply)
    else:
        output().print(f"Released {len(reply['episodes'])} of {len(ids)} passages.")


def trust(
    *,
    source: Annotated[str | None, typer.Argument(help="A source.", show_default=False)] = None,
    level: Annotated[TrustName | None, typer.Argument(help="How far it is believed.", show_default=False)] = None,
    reason: Annotated[str | None, typer.Option(help="Why, for the audit log.", show_default=False)] = None,
    by: ByOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Believe a source more or less from now on, and all that it has said; without arguments: the decisions so far.

    Untrusted: it is kept, but neither recalled nor learned.
    """
    if source is not None and (level is None or reason is None):
        raise typer.BadParameter("a decision names the source, the level and --reason")
    with connect(config) as client:
        if source is None or level is None or reason is None:
            reply = client.memory.sources()
        else:
            reply = client.memory.trust(source, level.value, by=by or who(), reason=reason)
    if as_json:
        print_json(reply)
    elif source is None:
        names = ("quarantined", "untrusted", "standard", "trusted")
        rows = [
            (one["source_id"], names[one["trust"]], one["by"], _day(one["decided_at"]), one["reason"])
            for one in reply["sources"]
        ]
        output().print(
            table(None, ("source", "trust", "by", "on", "reason"), rows)
            if rows
            else "Every source has the default trust."
        )
    else:
        output().print(
            f"{source} is {level} now; the trust of {len(reply['episodes'])} passages changed.", markup=False
        )


def alarms(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Sources that contradict many facts of others."""
    with connect(config) as client:
        reply = client.memory.alarms()
    if as_json:
        print_json(reply)
        return
    rows = [
        (one["source_id"], f"{one['num_contradicting']} of {one['num_facts']}", short(" ".join(one["examples"])))
        for one in reply["alarms"]
    ]
    output().print(table(None, ("source", "facts", "for instance"), rows) if rows else "No source raises an alarm.")


def forget(
    source: Annotated[str, typer.Argument(help="A source; all that it has said is erased.")],
    reason: ReasonOption,
    by: ByOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase a source from every store; names the versions whose weights had learned it."""
    with connect(config) as client:
        reply = client.memory.forget_source(source, by=by or who(), reason=reason)
    if as_json:
        print_json(reply)
        return
    console = output()
    console.print(f"Erased {reply['deleted_episodes']} passages of {source}.", markup=False)
    if reply["versions"]:
        console.print(f"To be built anew without it: {', '.join(reply['versions'])}", markup=False)


def consolidate(
    is_list: Annotated[bool, typer.Option("--list", help="The last runs instead.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replay, distil, fade and make room now, instead of at the next day's time."""
    with connect(config) as client:
        reply: dict[str, Any] = client.memory.consolidations() if is_list else {"runs": [client.memory.consolidate()]}
    if as_json:
        print_json(reply)
        return
    rows = []
    for run in reply["runs"]:
        steps = run["steps"]
        rows.append(
            (
                run["run"], run["state"], steps.get("replay", {}).get("num_replayed", "-"),
                steps.get("distil", {}).get("num_repeating", "-"), steps.get("fade", {}).get("num_changed", "-"),
                steps.get("prune", {}).get("num_pruned", "-"), run["problem"],
            )
        )  # fmt: skip
    titles = ("run", "state", "replayed", "repeating", "faded", "let go", "problem")
    output().print(table(None, titles, rows) if rows else "None has run yet.")


def undo(
    run: Annotated[str, typer.Argument(help="From: autonomous memory consolidate --list")],
    reason: ReasonOption,
    by: ByOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a run of consolidation back."""
    with connect(config) as client:
        reply = client.memory.undo_consolidation(run, by=by or who(), reason=reason)
    if as_json:
        print_json(reply)
    else:
        output().print(f"Run {run} is {reply['state']}.", markup=False)


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _moment(option: str, text: str | None) -> float | None:
    """Seconds since the epoch of a day's end, or as given. Raises typer.BadParameter."""
    if text is None:
        return None
    try:
        if text.isdigit() and len(text) > len("20260131"):
            return float(text)
        return float(calendar_day(text) + 86_400)
    except ValueError as error:
        raise typer.BadParameter(
            f"{option} = {text!r}: write a day as 2026-01-31, or seconds since the epoch"
        ) from error


def calendar_day(text: str) -> int:
    """Seconds since the epoch of a day's beginning, UTC. Raises ValueError."""
    from calendar import timegm

    return timegm(time.strptime(text, "%Y-%m-%d"))
