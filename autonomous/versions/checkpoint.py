"""The files that say how far the audit log had come: one beside the ledger, and one elsewhere if it is wanted.

In: the last row of each commit. Out: that row again, to whoever checks the log. The one elsewhere is signed
(autonomous/signing.py), so that a folder which others may write too does not let them vouch for a shorter log.
"""

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autonomous.signing import BadSignature, SigningKey
from autonomous.versions.audit import GENESIS_HASH, Checkpoint, canonical_json


class CheckpointFile:
    """One checkpoint on disk: a line of JSON, replaced atomically, never set back. Several processes may write it.

    `key` gives the signing key, if it is signed.
    """

    def __init__(self, path: Path, *, key: Callable[[], SigningKey] | None = None) -> None:
        self.path = path
        self._key = key
        self._lock_path = path.with_name(path.name + ".lock")

    @property
    def is_signed(self) -> bool:
        """Whether it lies elsewhere, signed."""
        return self._key is not None

    def read(self) -> Checkpoint | None:
        """None if there is no file. Raises ValueError for a damaged one, and for one that this system did not sign."""
        try:
            values: dict[str, Any] = json.loads(self.path.read_text("utf-8"))
            if self._key is not None:
                values = self._key().check(values)
            return Checkpoint(seq=int(values["seq"]), hash=str(values["hash"]))
        except FileNotFoundError:
            return None
        except BadSignature as error:
            raise ValueError(f"checkpoint {self.path} does not count: {error}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"checkpoint {self.path} is damaged ({error}): restore it from a copy") from error

    def write(self, checkpoint: Checkpoint) -> None:
        """Put the newest checkpoint on disk; an older one than the file's changes nothing. A damaged file is kept."""
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock_path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            current = self.read()
            if current is not None and current.seq >= checkpoint.seq:
                return
            values: dict[str, Any] = {"seq": checkpoint.seq, "hash": checkpoint.hash}
            if self._key is not None:
                values = self._key().sign(values)
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.{threading.get_ident()}")
            with temporary.open("w", encoding="utf-8") as file:
                file.write(canonical_json(values) + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)  # a power cut may bring back the one before, which is still true


def checkpoint_of(ledger: Path) -> CheckpointFile:
    """The checkpoint next to a ledger's database file."""
    return CheckpointFile(ledger.with_name(ledger.name + ".checkpoint"))


def second_checkpoint_of(ledger: Path, folder: Path) -> CheckpointFile:
    """The signed one in another folder. The key lies with the stop latch of the same home."""
    key = ledger.parent / "safety" / "signing-key"
    return CheckpointFile(folder / (ledger.name + ".checkpoint"), key=lambda: SigningKey.open(key))


def is_on_chain(connection: sqlite3.Connection, checkpoint: Checkpoint) -> bool:
    """Whether the log holds the row that a checkpoint names. If not, the checkpoint is what proves it, and must stay."""
    if checkpoint.seq == 0:
        return checkpoint.hash == GENESIS_HASH
    row = connection.execute("SELECT hash FROM audit WHERE seq = ?", (checkpoint.seq,)).fetchone()
    return row is not None and row[0] == checkpoint.hash
