"""Sessions as JSON lines, out of and into any store.

A session is a line with its record, ``{"record": {…}}``, and a line for each event behind it; the last line,
``{"end": {…}}``, says how much there is. Lines of events only, as older exports and other programs write
them, are read as well, and so are records that stand alone on a line.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, suppress
from typing import Any, Final, NoReturn

import msgspec

from sandbox_agent.errors import InvalidRequestError, SandboxAgentError
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.transfer.writer import Place, SessionWriter
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, loads
from sandbox_agent.wire.records import Sender, SessionEvent, SessionRecord

__all__ = ["UNKNOWN_AGENT", "Imported", "event_line", "export_lines", "import_lines"]

# What a session's agent is where nothing tells it.
UNKNOWN_AGENT: Final = "unknown"

_PAGE: Final = 500
# What waits to be stored together: events, and bytes of their payloads.
_BATCH: Final = 1_000
_BATCH_BYTES: Final = 4 * 1024 * 1024
# How far into a history without a record the agent's own session id is looked for, in events.
_LOOKED_AT: Final = 50


class Imported(msgspec.Struct):
    """What an import found and did.

    Attributes:
        sessions: how many sessions were in it.
        events: how many events were in it.
        stored: how many of them were stored; the others were there already.
        complete: whether its last line says that it is whole; None where it is one that never says.
    """

    sessions: int = 0
    events: int = 0
    stored: int = 0
    complete: bool | None = None


class _Line(msgspec.Struct, rename="camel"):
    """Any line: members of an event, of a record, or one of ours."""

    record: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    end: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    id: str | msgspec.UnsetType = msgspec.UNSET
    agent_session_id: str | msgspec.UnsetType = msgspec.UNSET
    event_index: int | msgspec.UnsetType = msgspec.UNSET
    session_id: str | msgspec.UnsetType = msgspec.UNSET
    created_at: int | msgspec.UnsetType = msgspec.UNSET
    connection_id: str | msgspec.UnsetType = msgspec.UNSET
    sender: Sender | msgspec.UnsetType = msgspec.UNSET
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Named(msgspec.Struct, rename="camel"):
    session_id: str = ""


class _Naming(msgspec.Struct):
    """An envelope that may say the agent's own id of the session."""

    params: _Named = msgspec.field(default_factory=_Named)
    result: _Named = msgspec.field(default_factory=_Named)


_SPACE: Final = re.compile(r"[ \t\r\n]*")
_RAW: Final = frozenset({"record", "end", "payload"})
_decoder: Final = msgspec.json.Decoder(_Line)
_event_encoder: Final = msgspec.json.Encoder()


def event_line(event: SessionEvent) -> bytes:
    """Return an event as a line without its end, field names as on the wire, the payload byte for byte."""
    payload = event.payload_json
    if b"\n" in payload or b"\r" in payload:
        # Between its tokens, where a space means the same.
        payload = payload.replace(b"\r", b" ").replace(b"\n", b" ")
    fields: dict[str, Any] = {
        "id": event.id,
        "eventIndex": event.event_index,
        "sessionId": event.session_id,
        "createdAt": event.created_at,
        "connectionId": event.connection_id,
        "sender": event.sender,
        "payload": msgspec.Raw(payload),
    }
    return _event_encoder.encode(fields)


async def export_lines(
    driver: SessionPersistDriver, records: AsyncGenerator[SessionRecord]
) -> AsyncGenerator[bytes]:
    """Iterate over the lines of an export, without their ends."""
    sessions = events = 0
    async with aclosing(records):
        async for record in records:
            yield dumps({"record": record})
            sessions += 1
            cursor: str | None = None
            while True:
                page = await driver.list_events(record.id, limit=_PAGE, cursor=cursor)
                for event in page.items:
                    yield event_line(event)
                events += len(page.items)
                cursor = page.next_cursor
                if cursor is None:
                    break
    yield dumps({"end": {"sessions": sessions, "events": events}})


async def import_lines(
    target: SessionPersistDriver,
    lines: Iterable[bytes],
    *,
    agent: str = UNKNOWN_AGENT,
    told: Callable[[Imported], None] | None = None,
) -> Imported:
    """Store the sessions of an export; what is in the store already is not stored again.

    Args:
        target: where they go.
        lines: the export.
        agent: whose session it is where only events are in it.
        told: called now and then with what was done.

    Raises:
        InvalidRequestError: a line is damaged; it says which. What stands before it is stored.
        PersistError: the store has another history of a session, or failed.
    """
    work = _Import(target, agent, told)
    number = 0
    try:
        for number, line in enumerate(lines, 1):  # noqa: B007 - which line it was is told below
            if line.strip():
                await work.take(line)
    except _DamagedError as error:
        await work.flush()
        await work.finish()
        raise InvalidRequestError(
            f"line {number} can't be imported, {error}; the {work.imported.events} events in the lines "
            "before it are in the store: mend the line and import again, it goes on there"
        ) from error
    except SandboxAgentError as error:
        error.args = (f"line {number}: {error}", *error.args[1:])
        raise
    await work.finish()
    return work.imported


class _DamagedError(Exception):
    """A line is no part of an export."""


class _Open:
    """A session of which lines came."""

    def __init__(self, writer: SessionWriter) -> None:
        self.writer = writer
        self.record: SessionRecord | None = None
        self.first: SessionEvent | None = None
        self.connection_id = ""
        self.agent_session_id = ""
        self.looked_at = 0


class _Import:
    def __init__(
        self, target: SessionPersistDriver, agent: str, told: Callable[[Imported], None] | None
    ) -> None:
        self._target = target
        self._agent = agent
        self._told = told
        self._current: str | None = None
        self._open: _Open | None = None
        self._batch: list[SessionEvent] = []
        self._bytes = 0
        self._has_records = False
        # The last event that was taken of each session: lines of several may be mixed.
        self._ended: dict[str, Place | None] = {}
        self.imported = Imported()

    async def take(self, line: bytes) -> None:
        """Take a line."""
        if self.imported.complete:
            # Exports behind one another in one file.
            self.imported.complete = None
        found = _decode(line)
        if found.payload is not msgspec.UNSET:
            await self._take_event(_event(found, found.payload))
        elif found.record is not msgspec.UNSET:
            self._has_records = True
            await self._take_record(bytes(found.record))
        elif found.end is not msgspec.UNSET:
            await self.flush()
            self.imported.complete = True
        elif found.agent_session_id is not msgspec.UNSET:
            await self._take_record(line)
        else:
            raise _DamagedError("it is neither an event nor a record")

    async def flush(self) -> None:
        """Store what waits."""
        if self._open is None or not self._batch:
            return
        batch, self._batch, self._bytes = self._batch, [], 0
        before = self._open.writer.stored
        await self._open.writer.put(batch)
        self.imported.events += len(batch)
        self.imported.stored += self._open.writer.stored - before
        if self._told is not None:
            self._told(self.imported)

    async def finish(self) -> None:
        """Store what waits, and end the session."""
        await self._close()
        if self._has_records and self.imported.complete is None:
            self.imported.complete = False

    async def _take_record(self, text: bytes) -> None:
        try:
            record = msgspec.convert(loads(text), SessionRecord)
        except (InvalidEnvelopeError, msgspec.ValidationError) as error:
            raise _DamagedError(f"its record can't be read: {error}") from error
        opened = await self._switch(record.id)
        opened.record = record
        if opened.writer.last is None and await self._target.get_session(record.id) is None:
            # Seen from the beginning: what is only half there is not hidden.
            await self._target.update_session(record)

    async def _take_event(self, event: SessionEvent) -> None:
        opened = self._open
        if opened is None or event.session_id != self._current:
            opened = await self._switch(event.session_id)
        given = opened.writer.given
        last = self._batch[-1].event_index if self._batch else given.event_index if given else None
        if last is not None and event.event_index <= last:
            raise _DamagedError(f"event {event.event_index} stands behind event {last}")
        self._batch.append(event)
        self._bytes += len(event.payload_json)
        if opened.record is None:
            _learn(opened, event)
        if len(self._batch) >= _BATCH or self._bytes >= _BATCH_BYTES:
            await self.flush()

    async def _switch(self, session_id: str) -> _Open:
        """End the session that lines came of, and begin the next."""
        await self._close()
        opened = _Open(await SessionWriter.open(self._target, session_id, self._ended.get(session_id)))
        self._open, self._current = opened, session_id
        self.imported.sessions += session_id not in self._ended
        return opened

    async def _close(self) -> None:
        await self.flush()
        if self._open is None:
            return
        record = self._open.record
        if record is None and await self._target.get_session(self._current or "") is None:
            record = _made_up(self._open, self._agent)
        await self._open.writer.finish(record)
        self._ended[self._open.writer.session_id] = self._open.writer.given
        self._open = self._current = None


def _decode(line: bytes) -> _Line:
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        damage = _DamagedError(f"it is not a line of an export: {error}")
    # msgspec refuses lone surrogates ("\\ud800"), which JavaScript writes; the standard library reads them.
    try:
        members = _members(line.decode())
        raw = {name: msgspec.Raw(members.pop(name)[1].encode()) for name in _RAW & members.keys()}
        found = msgspec.convert({name: value for name, (value, _) in members.items()}, _Line)
    except (ValueError, RecursionError):
        raise damage from None
    return msgspec.structs.replace(found, **raw)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _members(text: str) -> dict[str, tuple[Any, str]]:
    """Return an object's members: each one's value, and its text as it stands there.

    Raises:
        ValueError: the text is not an object.
    """
    members: dict[str, tuple[Any, str]] = {}
    scanner = json.JSONDecoder(parse_constant=_no_constant)
    position = _past(text, 0, "{")
    while not text.startswith("}", position):
        if members:
            position = _past(text, position, ",")
        name, position = scanner.raw_decode(text, position)
        start = _past(text, position, ":")
        value, end = scanner.raw_decode(text, start)
        if not isinstance(name, str):
            raise ValueError("a member's name is not a string")
        members[name] = (value, text[start:end])
        position = _past(text, end, "")
    if text[position + 1 :].strip():
        raise ValueError("something stands behind the object")
    return members


def _past(text: str, position: int, mark: str) -> int:
    """Return where the text goes on behind white space, a mark and white space."""
    found = _SPACE.match(text, position)
    position = found.end() if found else position
    if not text.startswith(mark, position):
        raise ValueError(f"expected {mark} at {position}")
    found = _SPACE.match(text, position + len(mark))
    return found.end() if found else position + len(mark)


def _event(line: _Line, payload: msgspec.Raw) -> SessionEvent:
    if (
        line.id is msgspec.UNSET
        or line.event_index is msgspec.UNSET
        or line.session_id is msgspec.UNSET
        or line.created_at is msgspec.UNSET
        or line.connection_id is msgspec.UNSET
        or line.sender is msgspec.UNSET
    ):
        raise _DamagedError(
            "the event lacks one of id, eventIndex, sessionId, createdAt, connectionId, sender"
        )
    text = bytes(payload)
    if not text.startswith(b"{"):
        raise _DamagedError("the event's payload is not an object")
    return SessionEvent(
        line.id,
        line.event_index,
        line.session_id,
        line.created_at,
        line.connection_id,
        line.sender,
        text,
    )


def _learn(opened: _Open, event: SessionEvent) -> None:
    """Keep what a record can be made of."""
    opened.first = opened.first or event
    opened.connection_id = event.connection_id
    opened.looked_at += 1
    if opened.agent_session_id or opened.looked_at > _LOOKED_AT:
        return
    with suppress(msgspec.ValidationError):
        named = msgspec.convert(event.payload, _Naming)
        opened.agent_session_id = named.params.session_id or named.result.session_id


def _made_up(opened: _Open, agent: str) -> SessionRecord | None:
    if opened.first is None:
        return None
    return SessionRecord(
        id=opened.first.session_id,
        agent=agent,
        agent_session_id=opened.agent_session_id,
        last_connection_id=opened.connection_id,
        created_at=opened.first.created_at,
    )
