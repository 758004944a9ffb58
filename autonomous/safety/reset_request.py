"""The open request for a reset: one small signed file next to the latch, so it needs neither a service nor the ledger.

In: what one person asked for, bound to the epoch of the latch that he saw. Out: the same, to a second person's process,
as long as nobody stopped again: every stop removes the file, and a changed latch voids it.
"""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from autonomous.consent import ConsentRequest
from autonomous.signing import SigningKey
from train.files import sync_path

logger = logging.getLogger(__name__)

NAME = "reset-request"
KEY_NAME = "signing-key"
"""The system's signing key lies next to the latch too."""
FORMAT = 1
MAX_BYTES = 64 << 10


class ResetRequests:
    """The one request of a latch's folder. Safe from several processes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._key_path = folder / KEY_NAME

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Only one process at a time decides about a reset. A stop does not wait for it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(NAME + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self) -> ConsentRequest | None:
        """The open request. One that cannot be read, or that another key signed, is none: it is asked for anew."""
        try:
            with self.path.open("rb") as file:
                signed = json.loads(file.read(MAX_BYTES))
            record = SigningKey.open(self._key_path).check(signed)
            if record.pop("format", None) != FORMAT:
                raise ValueError(f"it is not of format {FORMAT}")
            return ConsentRequest(**record)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            logger.warning("the request %s does not count: %s", self.path, error)
            return None

    def write(self, request: ConsentRequest) -> None:
        """Keep it; on disk when this returns. Raises OSError."""
        signed = SigningKey.open(self._key_path).sign({"format": FORMAT, **asdict(request)})
        temporary = self.path.with_name(f".{NAME}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(signed, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        sync_path(self.path.parent)

    def take(self) -> bool:
        """Remove it; whether there was one. Of two who take it, one gets True."""
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        sync_path(self.path.parent)
        return True
