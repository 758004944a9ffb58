"""ReadingThread: a StreamReader that reads by itself, in an actor as in an agent of one process."""

import logging
import threading
import time
from typing import Any

from autonomous.sources.stream import StreamReader

logger = logging.getLogger(__name__)

RETRY_S = 5.0
MAX_WAIT_S = 60.0


class ReadingThread:
    """Steps the reader from its construction on until it is closed."""

    def __init__(self, stream: StreamReader) -> None:
        self._stream = stream
        self._error = ""
        self._wake = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._read, name="read", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look at once whether something is due."""
        self._wake.set()

    def close(self) -> None:
        """Wait until the step that is under way has ended; none follows."""
        self._is_over = True
        self._wake.set()
        self._thread.join()

    def status(self) -> dict[str, Any]:
        """Every source with its counts and its last error, and what all of them wait for."""
        status = self._stream.status(time.monotonic())
        return {**status, "waits_for": self._error or status["waits_for"]}

    def _read(self) -> None:
        while not self._is_over:
            try:
                pause_s = min(MAX_WAIT_S, self._stream.step(time.monotonic()).wait_s)
                self._error = ""
            except Exception as error:  # the thread must live: the failure is shown by status() and retried
                logger.exception("reading failed")
                self._error, pause_s = f"{type(error).__name__}: {error}", RETRY_S
            if pause_s > 0 and self._wake.wait(pause_s):
                self._wake.clear()
