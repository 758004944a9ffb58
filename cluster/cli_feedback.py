"""`autonomous feedback` and `gaps`: what people think of answers, and what is to be learned from that."""

from enum import StrEnum
from typing import Annotated

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

IdArgument = Annotated[str, typer.Argument(help="Of an answer: the last word of what `autonomous ask` prints.")]


class RatingName(StrEnum):
    """Whether an answer was good."""

    UP = "up"
    DOWN = "down"


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="What people think of answers.")
    group.callback()(_feedback)
    group.command(
        epilog=examples(
            "autonomous feedback give chatcmpl-0123 up",
            'autonomous feedback give chatcmpl-0123 down --correction "The gate is green."',
        )
    )(give)
    group.command(epilog=examples("autonomous feedback queue --limit 5"))(queue)
    group.command(
        epilog=examples("autonomous feedback forget chatcmpl-0123", "autonomous feedback forget --person ann")
    )(forget)
    app.add_typer(group, name="feedback", rich_help_panel=PANEL)
    app.command(
        rich_help_panel=PANEL,
        epilog=examples(
            "autonomous gaps                what is badly answered, and what becomes of it",
            "autonomous gaps --collect      look for it now",
            "autonomous gaps --learn        learn the next batch, which begins with it",
        ),
    )(gaps)


def _feedback() -> None:
    """What people think of answers."""


def give(
    response_id: IdArgument,
    *,
    rating: Annotated[RatingName, typer.Argument(help="Was it good?")],
    correction: Annotated[str, typer.Option(help="What would have been right.", show_default=False)] = "",
    reason: Annotated[str, typer.Option(help="Why.", show_default=False)] = "",
    by: ByOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether an answer was good, and what would have been right."""
    with connect(config) as client:
        reply = client.feedback.give(
            response_id, rating.value, correction=correction, reason=reason, by=who() if by is None else by
        )
    if as_json:
        print_json(reply)
        return
    told = {
        "none": "",
        "accepted": " The correction becomes a document with the next look for gaps.",
        "waits": " The correction becomes a document that waits until it is released: autonomous memory waiting",
        "quarantined": f" The correction is held back: {'; '.join(reply['reasons'])}",
    }
    console = output()
    console.print(f"{reply['status'].capitalize()}.{told[reply['correction']]}", markup=False, soft_wrap=True)


def queue(
    limit: Annotated[int, typer.Option(min=1, max=200, help="Most answers.")] = 10,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answers that people should look at next: those the model was least sure of, far apart."""
    with connect(config) as client:
        reply = client.feedback.labelling_queue(limit=limit)
    if as_json:
        print_json(reply)
        return
    console = output()
    for one in reply["answers"]:  # no table: an id is to be copied whole
        sure = "" if one["confidence"] is None else f"  confidence {one['confidence']:.2f}"
        for line in (f"{one['response_id']}{sure}", f"  {short(one['question'])}", f"  -> {short(one['answer'])}"):
            console.print(line, markup=False, soft_wrap=True)
    if not reply["answers"]:
        console.print("Nothing waits for a look.")


def forget(
    response_id: Annotated[str | None, typer.Argument(help="Of an answer.", show_default=False)] = None,
    person: Annotated[str | None, typer.Option(help="All that this person asked and said.", show_default=False)] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase a request, or a person, with feedback and the documents made of it."""
    if (response_id is None) == (person is None):
        raise typer.BadParameter("give either the id of an answer or --person NAME")
    with connect(config) as client:
        feedback = client.feedback
        reply = feedback.forget_person(person) if person is not None else feedback.forget_response(str(response_id))
    if as_json:
        print_json(reply)
    else:
        output().print(
            f"Erased {reply['num_requests']} requests, {reply['num_votes']} votes and {reply['num_documents']} documents."
        )


def gaps(
    *,
    collect: Annotated[bool, typer.Option("--collect", help="Look for gaps now.")] = False,
    learn: Annotated[bool, typer.Option("--learn", help="Start learning the next batch.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What was asked and badly answered, and what becomes of it."""
    with connect(config) as client:
        collected = client.feedback.collect_gaps() if collect else None
        run_id = client.feedback.learn_gaps(by=who()) if learn else None
        reply = client.feedback.gaps()
    if as_json:
        print_json({**reply, "collected": collected, "run_id": run_id})
        return
    console = output()
    if collected is not None:
        console.print(
            f"Among {collected['num_requests']} requests {collected['num_gaps']} gaps, {collected['num_with_data']} with "
            f"passages to learn; {collected['num_corrections']} corrections became documents."
        )
    if run_id is not None:
        console.print(f"Learning run {run_id} has begun: autonomous status", markup=False)
    rows = [
        (task["state"], task["size"], task["kind"], short(task["question"]), task["note"] or task["suggestion"])
        for task in reply["tasks"]
    ]
    console.print(
        table(None, ("state", "asked", "why", "question", "what to do"), rows) if rows else "No gaps are known."
    )
