"""The feed: any viewer reads exactly its events, once and in order, wherever they lie."""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sandbox_agent.engine.feed import Feed, FeedMemory, Slice
from sandbox_agent.engine.sse import SseDecoder
from sandbox_agent.server.agents.spill import Spiller
from tests.support.effort import repeats
from tests.support.memory_spill import MemorySpill

NAMES = ["", "ann", "bob"]


def ids(data: bytes) -> list[int]:
    return [int(event.id or 0) for event in SseDecoder().feed(data)]


@pytest.mark.parametrize(
    ("last_event_id", "epoch", "cursor", "reset"),
    [
        (0, None, 0, False),
        (3, None, 3, False),
        (5, None, 5, False),
        (6, None, 0, True),
        (10**18, None, 0, True),
        (3, "now", 3, False),
        (0, "now", 0, False),
        (0, "then", 0, True),
        (3, "then", 0, True),
        (3, "", 0, True),
    ],
)
def test_a_viewer_begins_where_it_was_or_is_reset(
    last_event_id: int, epoch: str | None, cursor: int, reset: bool
) -> None:
    feed = Feed("now", FeedMemory(1000))
    feed.append([b"{}"] * 5, None)
    assert feed.begin(last_event_id, epoch) == (cursor, reset)


def test_sequences_are_contiguous_from_one_over_all_audiences() -> None:
    feed = Feed("e", FeedMemory(10**6))
    feed.append([b"{}", b"{}"], None)
    feed.append([b"{}"], "ann")
    feed.append([b"{}"], "")
    feed.append([b"{}"], None)
    part = feed.read(0, "ann", max_bytes=10**6)
    assert part is not None
    assert ids(part.data) == [1, 2, 3, 5]
    assert part.cursor == feed.last == 5
    part = feed.read(0, "", max_bytes=10**6)
    assert part is not None
    assert ids(part.data) == [1, 2, 4, 5]


def test_a_viewer_at_the_end_reads_nothing_and_one_whose_events_are_spilled_is_sent_elsewhere() -> None:
    feed = Feed("e", FeedMemory(10**6))
    assert feed.read(0, "", max_bytes=100) == Slice(b"", 0)
    feed.append([b"{}"] * 4, None)
    feed.append([b"{}"] * 4, None)
    feed.forget(4)
    assert feed.held_from == 5
    assert feed.read(3, "", max_bytes=100) is None
    part = feed.read(4, "", max_bytes=1000)
    assert part is not None
    assert ids(part.data) == [5, 6, 7, 8]
    feed.forget(8)
    assert feed.read(7, "", max_bytes=100) is None
    assert feed.read(8, "", max_bytes=100) == Slice(b"", 8)


def test_memory_is_counted_over_all_feeds_and_given_back() -> None:
    memory = FeedMemory(100)
    one, two = Feed("1", memory), Feed("2", memory)
    one.append([b"x" * 80], None)
    two.append([b"x" * 300], None)
    assert memory.used == one.held_bytes + two.held_bytes
    assert memory.over_limit
    assert memory.largest() is two
    two.forget(1)
    assert two.held_bytes == 0
    assert memory.largest() is one
    one.close()
    two.close()
    assert memory.used == 0
    assert memory.largest() is None


@dataclass
class Reader:
    """A viewer of the model: where it began, where it is, what it saw."""

    feed: int
    name: str
    start: int
    cursor: int
    seen: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])


class FeedMachine(RuleBasedStateMachine):
    """Two feeds over one bound, against plain lists; viewers read at their own pace."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = FeedMemory(0)
        self.spill = MemorySpill()
        self.spiller = Spiller(self.memory, self.spill)
        self.feeds = [Feed("a", self.memory), Feed("b", self.memory)]
        self.model: list[list[tuple[str | None, bytes]]] = [[], []]
        self.viewers: list[Reader] = []

    @initialize(limit=st.integers(0, 2000))
    def start(self, limit: int) -> None:
        self.memory.limit = limit

    @rule(
        which=st.integers(0, 1),
        lines=st.lists(st.integers(1, 300), min_size=1, max_size=5),
        audience=st.sampled_from([None, *NAMES]),
    )
    def append(self, which: int, lines: list[int], audience: str | None) -> None:
        base = len(self.model[which])
        payload = [b'{"n":%d,"pad":"%b"}' % (base + at, b"p" * size) for at, size in enumerate(lines)]
        self.feeds[which].append(payload, audience)
        self.model[which] += [(audience, line) for line in payload]

    @rule()
    def relieve(self) -> None:
        anyio.run(self.spiller.spill_excess)
        assert not self.memory.over_limit

    @rule(which=st.integers(0, 1), size=st.integers(1, 500))
    def spill_and_die_before_forgetting(self, which: int, size: int) -> None:
        """A writer that is cancelled after the store took the chunks: they come again later."""
        chunks = self.feeds[which].oldest(size)
        if chunks:
            anyio.run(self.spill.write, self.feeds[which].epoch, chunks)

    @rule(which=st.integers(0, 1), name=st.sampled_from(NAMES), start=st.integers(0, 40))
    def view(self, which: int, name: str, start: int) -> None:
        position = self.feeds[which].begin(start, self.feeds[which].epoch)
        assert position.reset is (start > len(self.model[which]))
        cursor = position.cursor
        self.viewers.append(Reader(which, name, cursor, cursor))

    @rule(index=st.integers(0, 30), max_bytes=st.integers(1, 1500), slices=st.integers(1, 4))
    def read(self, index: int, max_bytes: int, slices: int) -> None:
        if self.viewers:
            viewer = self.viewers[index % len(self.viewers)]
            for _ in range(slices):
                self._read(viewer, max_bytes)

    def _read(self, viewer: Reader, max_bytes: int) -> bool:
        feed = self.feeds[viewer.feed]
        part = feed.read(viewer.cursor, viewer.name, max_bytes=max_bytes)
        if part is None:
            part = anyio.run(self.spiller.read, feed.epoch, viewer.cursor, viewer.name, max_bytes)
            assert part.cursor > viewer.cursor
        moved = part.cursor > viewer.cursor
        viewer.cursor = part.cursor
        viewer.seen += [(int(event.id or 0), event.data) for event in SseDecoder().feed(part.data)]
        return moved

    @invariant()
    def each_viewer_saw_exactly_its_events_up_to_its_cursor(self) -> None:
        for viewer in self.viewers:
            expected = [
                (sequence, line)
                for sequence, (audience, line) in enumerate(self.model[viewer.feed], start=1)
                if viewer.start < sequence <= viewer.cursor and audience in (None, viewer.name)
            ]
            assert viewer.seen == expected

    @invariant()
    def memory_counts_what_is_held(self) -> None:
        assert self.memory.used == sum(feed.held_bytes for feed in self.feeds)

    def teardown(self) -> None:
        for viewer in self.viewers:
            while self._read(viewer, 700):
                pass
            assert viewer.cursor == len(self.model[viewer.feed])
        self.each_viewer_saw_exactly_its_events_up_to_its_cursor()


TestFeedMachine = pytest.mark.loops(FeedMachine.TestCase)
TestFeedMachine.settings = settings(max_examples=repeats(20, 60), stateful_step_count=40, deadline=None)
