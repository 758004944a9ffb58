"""A clock that a test sets."""


class Clock:
    """Seconds since the epoch; it stands still until `now` is changed."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
