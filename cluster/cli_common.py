"""What the commands of `autonomous` share: options, output, errors, and finding the running system.

Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 it ran, but the new version did not pass its gates; 4 nothing has
changed yet: it waits for a second person; 130 interrupted.
"""

import getpass
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.client import Client

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Configuration of the system. Default: configs/laptop.toml.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]

ByOption = Annotated[
    str | None, typer.Option("--by", help="Your name, as it is recorded. Default: the login name.", show_default=False)
]
WAITS = 4
"""Exit status of what waits for a second person."""
DEFAULT_CONFIG_NAME = "configs/laptop.toml"
PIPED_WIDTH = 120
"""Columns of a table that goes to a file or a pipe."""
_SHOWN_CHARS = 100


class Failure(RuntimeError):
    """A command that cannot go on: the message is for the user, `code` is the exit status."""

    def __init__(self, message: str, *, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def examples(*lines: str) -> str:
    """The epilog of a help screen."""
    return "Examples:\n" + "\n".join(f"  {escape(line)}" for line in lines)


def output(*, stderr: bool = False) -> Console:
    """A console for people: no colours and a fixed width where the stream is not a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    return Console(stderr=stderr, highlight=False, width=width, emoji=False)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_error(message: str, *, as_json: bool, **facts: Any) -> None:
    """One line on stderr, or one JSON object on stdout."""
    line = " ".join(message.split())
    if as_json:
        print_json({"error": {"message": line, **facts}})
    else:
        print(f"error: {line}", file=sys.stderr)


def table(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()
) -> Table:
    """A plain table; the columns named in `right` hold numbers. Cells are text, never markup."""
    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(escape(cell_text(cell)) for cell in row))
    return made


def cell_text(value: Any) -> str:
    """A value as a table shows it."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def size_text(size_bytes: float) -> str:
    """Bytes in the unit a person reads."""
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} GiB"


def who() -> str:
    """The name that audit rows carry."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def print_waiting(waiting: dict[str, Any]) -> None:
    """Say that a second person has to agree, and until when."""
    import time

    until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(waiting["until"])))
    output().print(
        f"Nothing has changed yet. Asked for by {waiting['by']}; waits until {until} for a second person, who gives the same "
        "command under his own name. Take it back: the same command with --withdraw",
        markup=False,
        soft_wrap=True,
    )


def find_config(path: Path | None) -> Path:
    """The configuration file: as named, from the current folder, or from the repository that holds this package."""
    from cluster.config import REPOSITORY

    wanted = path or Path(DEFAULT_CONFIG_NAME)
    if wanted.expanduser().exists() or wanted.expanduser().is_absolute():
        return wanted.expanduser()
    in_repository = REPOSITORY / wanted
    return in_repository if in_repository.exists() else wanted


def connect(config: Path | None, *, timeout_s: float = 300.0) -> Client:
    """A client of the system that this configuration runs. Raises Failure if it is not running."""
    from cluster.config import load_config
    from cluster.state import read_state

    found = find_config(config)
    state = read_state(load_config(found).home)
    if state is None:
        not_running(found)
    return Client(state.url, timeout_s=timeout_s)


def not_running(config_path: Path) -> NoReturn:
    """Say how to start the system."""
    raise Failure(f"The system is not running. Start it with: autonomous up --config {short_path(config_path)}")


def short_path(path: Path) -> str:
    """The path relative to the current folder where that is shorter."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def short(text: str) -> str:
    """The text in one line of a table."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else f"{line[: _SHOWN_CHARS - 3]}..."
