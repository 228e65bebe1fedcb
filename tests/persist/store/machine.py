"""A store against a plain model, through any sequence of calls, reopened in between."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from sandbox_agent.persist.store import (
    LARGE_BYTES,
    Changes,
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SessionRow,
    SessionStore,
    TextRow,
    TurnRow,
)
from tests.persist.store.making import PLENTY, TIME, envelope, event, permission, session, turn

__all__ = ["StoreMachine"]

T = TypeVar("T")

NAMES = st.sampled_from(["a", "b", "ü \U0001f980"])
# What envelopes repeat: large data, and such as reads like a reference to other data.
CONTENTS = {"small": None, "a": b"a" * LARGE_BYTES, "b": b"b" * LARGE_BYTES, "=1": b"=1", "==": b"=="}
# Mostly small, because the store is read after each step.
KINDS = [*["small"] * 12, *CONTENTS]
STATES = st.sampled_from(["accepted", "running", "done", "failed"])


class Kept:
    """What the model knows of a session."""

    def __init__(self, row: SessionRow) -> None:
        self.row = row
        self.events: dict[int, EventRow] = {}
        self.envelopes: dict[int, EnvelopeRow] = {}
        self.newest: dict[bytes, int] = {}
        self.texts: dict[int, TextRow] = {}
        self.turns: dict[str, TurnRow] = {}
        self.permissions: dict[str, PermissionRow] = {}

    @property
    def is_open(self) -> bool:
        return any(row.state in ("accepted", "running") for row in self.turns.values())


class StoreMachine(RuleBasedStateMachine):
    """The model: sessions by name. ``place`` says where the store is: empty, and another one each time."""

    def place(self) -> AbstractAsyncContextManager[SessionStore]:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.kept: dict[str, Kept] = {}
        self.last_key = 0
        self.clock = TIME
        self.open()

    def do(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    def open(self) -> None:
        self.store = self.do(self.stack.enter_async_context(self.place()))

    def commit(self, changes: Changes) -> None:
        self.do(self.store.commit(changes))

    def of(self, name: str) -> Kept:
        if name not in self.kept:
            key = self.do(self.store.next_key())
            assert key > self.last_key
            self.last_key = key
            self.kept[name] = Kept(session(key, session_id=name))
            self.commit(Changes(sessions=[self.kept[name].row]))
        return self.kept[name]

    @rule(name=NAMES, managed=st.booleans(), ended=st.booleans(), title=st.none() | st.text(max_size=5))
    def update(self, name: str, managed: bool, ended: bool, title: str | None) -> None:
        row = self.of(name).row
        row.managed, row.ended, row.title = managed, ended, title
        self.commit(Changes(sessions=[row]))

    @rule(
        name=NAMES,
        contents=st.lists(st.sampled_from(KINDS), min_size=1, max_size=9),
        step=st.integers(-3, 9),
        again=st.booleans(),
        wrong=st.booleans(),
    )
    def append(self, name: str, contents: list[str], step: int, again: bool, wrong: bool) -> None:
        kept = self.of(name)
        row, changes = kept.row, Changes(sessions=[kept.row])
        for content in contents:
            self.clock += step
            row.last_sequence += 1
            row.last_envelope += 1
            number = row.last_sequence
            written = envelope(row.last_envelope, row.key, time=self.clock, data=CONTENTS[content])
            written.same_as = 1 if wrong else kept.newest.get(written.data, 0)
            kept.newest[written.data] = written.index
            changes.envelopes.append(written)
            changes.events.append(event(number, row.key, time=self.clock, envelope=row.last_envelope))
            changes.texts.append(TextRow(row.key, number, self.clock, f"word number{number}"))
        for _ in range(1 + again):
            self.commit(changes)
        kept.events |= {one.sequence: one for one in changes.events}
        kept.envelopes |= {one.index: replace(one, same_as=0) for one in changes.envelopes}
        kept.texts |= {one.sequence: one for one in changes.texts}

    @rule(name=NAMES, number=st.integers(1, 4), state=STATES)
    def set_turn(self, name: str, number: int, state: str) -> None:
        kept = self.of(name)
        row = turn(number, kept.row.key, state=state, idempotency_key=f"k{number}")
        kept.turns[row.turn_id] = row
        self.commit(Changes(turns=[row]))

    @rule(name=NAMES, permission_id=st.sampled_from("pqr"), answered=st.none() | st.just("accepted"))
    def ask(self, name: str, permission_id: str, answered: str | None) -> None:
        kept = self.of(name)
        # Of the future, so that an expiry leaves it as it is.
        row = permission(permission_id, kept.row.key, answered=answered, sequence=10**6)
        kept.permissions[permission_id] = row
        self.commit(Changes(permissions=[row]))

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        kept = self.of(name)
        self.do(self.store.delete(kept.row.key))
        del self.kept[name]

    @rule(back=st.integers(-5, 60))
    def expire(self, back: int) -> None:
        before = self.clock - back
        lost: set[int] = set()
        for name, kept in list(self.kept.items()):
            if kept.is_open or not (_drop(kept.events, before) | _drop(kept.envelopes, before)):
                continue
            row = kept.row
            lost.add(row.key)
            row.first_sequence = min(kept.events, default=row.last_sequence + 1)
            kept.texts = {one: text for one, text in kept.texts.items() if one >= row.first_sequence}
            if not kept.events and (row.ended or not row.managed):
                del self.kept[name]
        assert {row.key for row in self.do(self.store.expire(before=before))} == lost

    @rule()
    def reopen(self) -> None:
        self.do(self.stack.aclose())
        self.open()

    @invariant()
    def store_holds_what_the_model_holds(self) -> None:
        by_key = sorted(self.kept.values(), key=lambda kept: -kept.row.key)
        rows, _ = self.do(self.store.sessions(limit=99))
        assert rows == [kept.row for kept in by_key]
        for kept in by_key:
            key = kept.row.key
            assert self.do(self.store.session(kept.row.session_id)) == kept.row
            events = self.do(self.store.events(key, after=0, limit=PLENTY, max_bytes=PLENTY))
            assert events == list(kept.events.values())
            envelopes = self.do(self.store.envelopes(key, after=0, limit=PLENTY))
            assert envelopes == list(kept.envelopes.values())
            turns = sorted(kept.turns.values(), key=lambda row: row.number)
            assert self.do(self.store.turns(key, limit=99)) == turns
            for one in kept.permissions.values():
                assert self.do(self.store.permission(key, one.permission_id)) == one
            hits = self.do(self.store.search("word", limit=1000, session_id=kept.row.session_id))
            assert sorted(hit.sequence for hit in hits) == sorted(kept.texts)
        hits = self.do(self.store.search("word", limit=1000))
        assert len(hits) == min(sum(len(kept.texts) for kept in by_key), 1000)
        pending = self.do(self.store.pending_permissions(limit=99))
        waiting = {
            (k.row.key, p.permission_id) for k in by_key for p in k.permissions.values() if not p.answered
        }
        assert {(row.key, one.permission_id) for row, one in pending} == waiting
        opened_turns = self.do(self.store.open_turns())
        assert {row.key for row, _ in opened_turns} == {kept.row.key for kept in by_key if kept.is_open}

    def teardown(self) -> None:
        self.do(self.stack.aclose())
        self.runner.close()


def _drop(rows: dict[int, Any], before: int) -> bool:
    """Drop the rows from the front that are older; True if there were any."""
    count = len(rows)
    while rows and (first := next(iter(rows))) and rows[first].time < before:
        del rows[first]
    return len(rows) < count
