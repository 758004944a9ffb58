"""Sentinels: texts and prompts that the learner can never read, and the only way to them.

The evaluator alone imports this package: import-linter (.importlinter) keeps it from training, the curriculum, the loop and
memory, and from whatever those import. Each evaluation asks a part of them, drawn by a secret of the home, so that versions
are not selected, step by step, for the same few. In a report they appear by id.
"""

import hashlib
import hmac
import importlib.resources
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from autonomous.suite import Suite, read_suite
from train.files import sync_path

SENTINELS = ("safety", "texts")
"""Rows as those of the suites safety and domains."""
SECRET_BYTES = 32

Row = TypeVar("Row", bound=Mapping[str, str])


def load_sentinel(name: str) -> Suite:
    """Read a set. Raises ValueError for an unknown name."""
    if name not in SENTINELS:
        raise ValueError(f"sentinel set is {name!r}: choose one of {', '.join(SENTINELS)}")
    return read_suite(importlib.resources.files("autonomous.sentinel").joinpath(f"{name}.jsonl"))


def draw_rows(rows: Sequence[Row], *, num: int, secret: bytes, rotation: str) -> list[Row]:
    """`num` of the rows, or all, in their order: the same for the same secret and rotation, and not to be guessed without."""
    ranks = sorted(range(len(rows)), key=lambda row: _rank(rows[row]["id"], secret=secret, rotation=rotation))
    return [rows[row] for row in sorted(ranks[:num])]


def load_secret(path: Path) -> bytes:
    """The secret of a home, made at the first call; readable by its owner alone. Two processes that begin together agree.

    Raises ValueError for a file that is not one.
    """
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, secrets.token_bytes(SECRET_BYTES))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.link(temporary, path)  # the first one wins
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
        sync_path(path.parent)
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise ValueError(
            f"{path} has {len(secret)} bytes, a secret has {SECRET_BYTES}: delete the file, a new one is made"
        )
    return secret


def _rank(item_id: str, *, secret: bytes, rotation: str) -> bytes:
    return hmac.new(secret, f"{rotation}\0{item_id}".encode(), hashlib.sha256).digest()
