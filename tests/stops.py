"""Guards that refuse, as a stop latch that was pulled does."""


class Stopped(Exception):
    """What they raise."""


def refuse() -> None:
    """A guard that lets nothing through."""
    raise Stopped


class StopAfter:
    """A guard that refuses from its call number `limit` on."""

    def __init__(self, limit: int) -> None:
        self.num_calls = 0
        self._limit = limit

    def __call__(self) -> None:
        self.num_calls += 1
        if self.num_calls >= self._limit:
            raise Stopped
