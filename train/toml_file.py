"""TOML files that people edit: read, changed field by field, their paths made absolute, what is wrong told in a sentence.

In: a file, and what a command line changes of it. Out: plain values, for a pydantic model to check.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError


def read_toml(path: Path, *, error: type[ValueError]) -> dict[str, Any]:
    """The values of a file. Raises `error` naming the file and the fix."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as cause:
        raise error(
            f"configuration {path} cannot be read ({cause.strerror}): give --config an existing file"
        ) from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise error(f"configuration {path} is no valid TOML: {cause}") from cause


def set_fields(values: dict[str, Any], changes: Mapping[str, Any], *, error: type[ValueError]) -> None:
    """Set fields by dotted names ("http.port"). Raises `error` for a name whose section is a plain value."""
    for name, value in changes.items():
        *sections, field = name.split(".")
        table = values
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise error(f"{name}: {section} is no section of the configuration; name a field of it")
        table[field] = value


def absolute_path(value: Any, *, folder: Path) -> Any:
    """A path, or a list of them, from the file's folder; ~ is the home. URIs and what is no text stay."""
    if isinstance(value, list):
        return [absolute_path(one, folder=folder) for one in value]
    if not isinstance(value, str) or "://" in value or not value:
        return value
    return str(folder / Path(value).expanduser())


def with_absolute_locations(rows: Any, *, field: str, folder: Path) -> Any:
    """An array of tables whose `field` is a path."""
    if not isinstance(rows, list):
        return rows
    return [
        one | {field: absolute_path(one[field], folder=folder)} if isinstance(one, dict) and field in one else one
        for one in rows
    ]


def explain(path: Path, error: ValidationError) -> str:
    """The file, and each field with what is wrong about it."""
    return f"configuration {path}: {field_errors(error)}"


def field_errors(error: ValidationError) -> str:
    """Each field with what is wrong about it."""
    return "; ".join(
        f"{'.'.join(map(str, one['loc'])) or 'configuration'}: {one['msg'].removeprefix('Value error, ')}"
        for one in error.errors()
    )
