"""Whatever happens to the sources, and wherever the process dies: in the end the store says what the sources say, once."""

import json
import os
from contextlib import ExitStack, suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from autonomous.sources.batch import ReadLimit
from autonomous.sources.stream import IngestBusy
from memory.store import StoreFull
from tests.streams import Crash, Stream
from tests.unit.autonomous.ledger_life import quick_folder

NAMES = st.sampled_from(["a.md", "b.md", "deep/c.md"])


class Dies:
    """The commit of a cursor does not happen: the process died right before it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._real = stream.cursors.commit

    def __enter__(self) -> None:
        def die(*_: object, **__: object) -> bool:
            raise Crash

        self._stream.cursors.commit = die  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        self._stream.cursors.commit = self._real  # type: ignore[method-assign]


class StreamMachine(RuleBasedStateMachine):
    """A wiki whose files change, and a log that grows, read with crashes, stops and a store that refuses."""

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        folder = self.stack.enter_context(quick_folder())
        self.wiki, self.log = folder / "wiki", folder / "log.jsonl"
        (self.wiki / "deep").mkdir(parents=True)
        self.stream = Stream(folder, limit=ReadLimit(num_documents=2, num_bytes=200))
        self.stack.callback(self.stream.close)
        self.stream.add(id="wiki", kind="folder", path=str(self.wiki))
        self.stream.add(id="log", kind="jsonl", path=str(self.log))
        self.pages: dict[str, str] = {}
        self.lines: list[str] = []
        self.num_changes = 0
        self.write_page("a.md")

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()

    def text(self) -> str:
        self.num_changes += 1
        return f"Change number {self.num_changes} says so."

    @rule(name=NAMES)
    def write_page(self, name: str) -> None:
        self.pages[name] = self.text()
        (self.wiki / name).write_text(self.pages[name])
        os.utime(self.wiki / name, (self.num_changes, self.num_changes))

    @precondition(lambda self: len(self.pages) > 1)
    @rule(name=NAMES)
    def remove_page(self, name: str) -> None:
        if self.pages.keys() - {name} and self.pages.pop(name, None):
            (self.wiki / name).unlink()

    @rule(count=st.integers(1, 5))
    def append_lines(self, count: int) -> None:
        with self.log.open("a") as file:
            for _ in range(count):
                self.lines.append(self.text())
                file.write(json.dumps({"text": self.lines[-1]}) + "\n")

    @rule(num_steps=st.integers(1, 4))
    def read(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.stream.now += self.stream.reader.step(self.stream.now).wait_s

    @rule()
    def crash_behind_the_acknowledgement(self) -> None:
        with Dies(self.stream), suppress(Crash):
            self.stream.reader.step(self.stream.now)
        self.stream.restart()

    @rule()
    def crash_before_the_acknowledgement_arrives(self) -> None:
        self.stream.store.crash_after = True
        with suppress(Crash):
            self.stream.reader.step(self.stream.now)
        self.stream.store.crash_after = False
        self.stream.restart()

    @rule(error=st.sampled_from([IngestBusy("busy"), StoreFull("full"), OSError("broken")]))
    def refuse_in_the_store(self, error: Exception) -> None:
        self.stream.store.failures = [error]
        self.stream.now += self.stream.reader.step(self.stream.now).wait_s
        self.stream.store.failures = []

    @rule()
    def stop_and_reset(self) -> None:
        before = self.stream.store.num_calls
        self.stream.latch.stop(reason="drill", by="ann")
        assert self.stream.reader.step(self.stream.now).did == "stopped"
        assert self.stream.store.num_calls == before
        self.stream.latch.reset(reason="over", by="ann")

    @rule()
    def settle(self) -> None:
        """Time passes and nothing else happens: then the store says what the sources say, each thing once."""
        for _ in range(3):
            self.stream.drain(seconds=4000)
        assert self.stream.store.texts() == sorted([*self.pages.values(), *self.lines])
        assert self.stream.reader.status(self.stream.now)["waits_for"] == ""


StreamMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestStream = StreamMachine.TestCase
