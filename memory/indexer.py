"""Indexer: a thread that embeds what a store has acknowledged; until it has, words find a passage."""

import logging
import threading

from memory.embed import Embedder
from memory.episodic import EpisodicMemory

logger = logging.getLogger(__name__)

IDLE_S = 0.2
RETRY_S = 5.0


class Indexer:
    """Runs from its construction to `close`."""

    def __init__(self, memory: EpisodicMemory, *, embedder: Embedder) -> None:
        self._memory = memory
        self._embedder = embedder
        self._wake = threading.Event()
        self._is_closed = threading.Event()
        self._error = ""
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something new."""
        self._wake.set()

    def check(self) -> None:
        """Raises if indexing fails, with the reason."""
        if self._error:
            raise RuntimeError(f"indexing fails and is retried every {RETRY_S:.0f} s: {self._error}")

    def close(self) -> None:
        """End the thread; what is not embedded yet is embedded after the next start."""
        self._is_closed.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        is_saved, is_warm = True, False
        while not self._is_closed.is_set():
            try:
                if not is_warm:
                    self._embedder.embed(["loads the model, so that the first question does not wait for it"])
                    is_warm = True
                num_indexed = self._memory.index_pending()
                self._error = ""
                if num_indexed:
                    is_saved = False
                    continue
                if self._memory.maintain() or not is_saved:
                    self._memory.save_index()
                    is_saved = True
                self._wake.wait(IDLE_S)
                self._wake.clear()
            except Exception as error:  # the thread must live: the failure is shown by check() and retried
                logger.exception("indexing failed")
                self._error = f"{type(error).__name__}: {error}"
                self._is_closed.wait(RETRY_S)
