"""Export sessions as JSON lines, and import them.

A session is a line with its record, ``{"record": {…}}``, followed by a line for each event. The last line,
``{"end": {…}}``, has the totals. An import also reads lines of events without a record, as older exports and
other programs write them, and lines that are a bare record.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import aclosing, contextmanager, suppress
from typing import Any, Final, NoReturn, cast

import anyio
import msgspec

from sandbox_agent.errors import InvalidRequestError, SandboxAgentError
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.transfer.history import Place, SessionWriter, raise_first_error, read_pages
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, loads
from sandbox_agent.wire.records import Sender, SessionEvent, SessionRecord

# The agent of a session without a record.
UNKNOWN_AGENT: Final = "unknown"

# Limits of what is in memory and stored together: events, and bytes of their payloads.
_BATCH: Final = 1_000
_BATCH_BYTES: Final = 4 * 1024 * 1024
# So many sessions are stored at once.
_AT_ONCE: Final = 128
# The agent's session id is searched in so many events of a history without a record.
_LOOKED_AT: Final = 50


class Imported(msgspec.Struct):
    """The result of an import.

    Attributes:
        sessions: how many sessions the export contained.
        events: how many events the export contained.
        stored: how many of them were stored; the store had the others.
        complete: whether the export has its last line; None for exports that never have one.
    """

    sessions: int = 0
    events: int = 0
    stored: int = 0
    complete: bool | None = None


class _Line(msgspec.Struct, rename="camel"):
    """Any line: the members of an event, a bare record, or a line of our own."""

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
    """An envelope that may contain the agent's session id."""

    params: _Named = msgspec.field(default_factory=_Named)
    result: _Named = msgspec.field(default_factory=_Named)


_SPACE: Final = re.compile(r"[ \t\r\n]*")
_RAW: Final = frozenset({"record", "end", "payload"})
_decoder: Final = msgspec.json.Decoder(_Line)
_event_encoder: Final = msgspec.json.Encoder()


def event_line(event: SessionEvent) -> bytes:
    """Return an event as a line without a line break; the bytes of the payload do not change."""
    payload = event.payload_json
    if b"\n" in payload or b"\r" in payload:
        # Line breaks are only between JSON tokens, where a space means the same.
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
    """Iterate over the lines of an export, without line breaks."""
    sessions = events = 0
    async with aclosing(records):
        async for record in records:
            yield dumps({"record": record})
            sessions += 1
            async with aclosing(read_pages(driver, record.id)) as pages:
                async for page in pages:
                    for event in page:
                        yield event_line(event)
                    events += len(page)
    yield dumps({"end": {"sessions": sessions, "events": events}})


async def import_lines(
    target: SessionPersistDriver,
    lines: Iterable[bytes],
    *,
    agent: str = UNKNOWN_AGENT,
    on_progress: Callable[[Imported], None] | None = None,
) -> Imported:
    """Store the sessions of an export. Rows that the store has are not stored again.

    Args:
        target: the store.
        lines: the export.
        agent: the agent of sessions without a record.
        on_progress: called now and then with the result so far.

    Raises:
        InvalidRequestError: a line is damaged; the message names it. The lines before it are stored.
        PersistError: the store has another history of a session, or failed.
    """
    work = _Import(target, agent, on_progress)
    try:
        for work.line, line in enumerate(lines, 1):
            # Windows programs put a byte order mark in front.
            text = line.removeprefix(codecs.BOM_UTF8) if work.line == 1 else line
            if text.strip():
                await work.read_line(text)
    except _DamagedError as error:
        number = work.line
        await work.finish()
        raise InvalidRequestError(
            f"line {number} can't be imported, {error}; the {work.imported.events} events in the lines "
            "before it are in the store: repair the line and import again, it continues there"
        ) from error
    await work.finish()
    return work.imported


class _DamagedError(Exception):
    """A line is not part of an export."""


class _Part:
    """Neighboring lines of one session.

    Attributes:
        line: the number of the first one.
        given: the last event of the session's part before.
    """

    def __init__(self, session_id: str, line: int, given: Place | None) -> None:
        self.session_id = session_id
        self.line = line
        self.given = given
        self.record: SessionRecord | None = None
        self.events: list[SessionEvent] = []
        self.writer: SessionWriter | None = None
        self.first: SessionEvent | None = None
        self.last: Place | None = None
        self.connection_id = ""
        self.agent_session_id = ""
        self.looked_at = 0


class _Import:
    """Collects lines, and stores many small sessions at once, which then share commits.

    Attributes:
        line: the number of the line that is read.
        imported: the result so far.
    """

    def __init__(
        self, target: SessionPersistDriver, agent: str, on_progress: Callable[[Imported], None] | None
    ) -> None:
        self.line = 0
        self.imported = Imported()
        self._target = target
        self._agent = agent
        self._on_progress = on_progress
        # Parts that are complete, each of another session; and the last one, whose next lines may follow.
        self._parts: dict[str, _Part] = {}
        self._current: _Part | None = None
        # Of all of these.
        self._events = self._bytes = 0
        self._has_records = False
        # The last event of each session: the lines of several sessions may be mixed.
        self._ended: dict[str, Place | None] = {}

    async def read_line(self, line: bytes) -> None:
        """Store a line, or keep it until more can be stored with it."""
        if self.imported.complete:
            # Several exports may follow each other in one file.
            self.imported.complete = None
        found = _decode(line)
        if found.payload is not msgspec.UNSET:
            await self._add_event(_event(found, found.payload))
        elif found.record is not msgspec.UNSET:
            self._has_records = True
            await self._add_record(bytes(found.record))
        elif found.end is not msgspec.UNSET:
            self.imported.complete = True
        elif found.agent_session_id is not msgspec.UNSET:
            await self._add_record(line)
        else:
            raise _DamagedError("it is neither an event nor a record")

    async def finish(self) -> None:
        """Store what is left."""
        await self._end_part()
        await self._store_parts()
        if self._has_records and self.imported.complete is None:
            self.imported.complete = False

    async def _add_record(self, text: bytes) -> None:
        try:
            record = msgspec.convert(loads(text), SessionRecord)
        except (InvalidEnvelopeError, msgspec.ValidationError) as error:
            raise _DamagedError(f"its record can't be read: {error}") from error
        part = await self._begin_part(record.id)
        part.record = record

    async def _add_event(self, event: SessionEvent) -> None:
        part = self._current
        if part is None or event.session_id != part.session_id:
            part = await self._begin_part(event.session_id)
        if part.last is not None and event.event_index <= part.last.event_index:
            raise _DamagedError(f"event {event.event_index} comes after event {part.last.event_index}")
        part.events.append(event)
        part.last = Place(event.event_index, event.id)
        self._events += 1
        self._bytes += len(event.payload_json)
        if part.record is None:
            _note_record(part, event)
        if self._events >= _BATCH or self._bytes >= _BATCH_BYTES:
            await self._store_parts()
            with _named(part):
                await self._write(part)
            self._events = self._bytes = 0
            self._report()

    async def _begin_part(self, session_id: str) -> _Part:
        """End the part before, and begin another one."""
        await self._end_part()
        if session_id in self._parts:
            await self._store_parts()
        part = _Part(session_id, self.line, self._ended.get(session_id))
        self.imported.sessions += session_id not in self._ended
        self._ended[session_id] = None
        self._current = part
        return part

    async def _end_part(self) -> None:
        part, self._current = self._current, None
        if part is not None:
            self._parts[part.session_id] = part
            if part.writer is not None or len(self._parts) >= _AT_ONCE:
                await self._store_parts()

    async def _store_parts(self) -> None:
        """Store the parts that are complete.

        Raises:
            SandboxAgentError: that of the first part that could not be stored. The others are stored.
        """
        parts, self._parts = list(self._parts.values()), {}
        if not parts:
            return
        failed: dict[int, SandboxAgentError] = {}

        async def store(part: _Part) -> None:
            try:
                with _named(part):
                    await self._write(part)
                    await self._finish_part(part)
            except SandboxAgentError as error:
                failed[part.line] = error

        with raise_first_error():
            async with anyio.create_task_group() as group:
                for part in parts:
                    group.start_soon(store, part)
        if failed:
            raise failed[min(failed)]
        left = self._current.events if self._current else []
        self._events, self._bytes = len(left), sum(len(event.payload_json) for event in left)
        self._report()

    async def _write(self, part: _Part) -> None:
        """Store the part's lines so far."""
        writer = part.writer
        if writer is None:
            writer = part.writer = await SessionWriter.open(self._target, part.session_id, part.given)
            if part.record is not None:
                await writer.begin(part.record)
        events, part.events = part.events, []
        before = writer.stored
        await writer.write(events)
        self.imported.events += len(events)
        self.imported.stored += writer.stored - before

    async def _finish_part(self, part: _Part) -> None:
        assert part.writer is not None
        record = part.record
        if record is None and await self._target.get_session(part.session_id) is None:
            record = _create_record(part, self._agent)
        await part.writer.finish(record)
        self._ended[part.session_id] = part.writer.given

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self.imported)


@contextmanager
def _named(part: _Part) -> Generator[None]:
    """Name the line in an error."""
    try:
        yield
    except SandboxAgentError as error:
        error.args = (f"line {part.line}: {error}", *error.args[1:])
        raise


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
    """Return the value and the text of each member; raise ValueError if the text is not an object."""
    members: dict[str, tuple[Any, str]] = {}
    scanner = json.JSONDecoder(parse_constant=_no_constant)
    position = _skip(text, 0, "{")
    while not text.startswith("}", position):
        if members:
            position = _skip(text, position, ",")
        name, position = scanner.raw_decode(text, position)
        start = _skip(text, position, ":")
        value, end = scanner.raw_decode(text, start)
        if not isinstance(name, str):
            raise ValueError("a member's name is not a string")
        members[name] = (value, text[start:end])
        position = _skip(text, end, "")
    if text[position + 1 :].strip():
        raise ValueError("there is text after the object")
    return members


def _skip(text: str, position: int, mark: str) -> int:
    """Return the position after white space, a mark and white space."""
    found = _SPACE.match(text, position)
    position = found.end() if found else position
    if not text.startswith(mark, position):
        raise ValueError(f"expected {mark} at {position}")
    found = _SPACE.match(text, position + len(mark))
    return found.end() if found else position + len(mark)


def _event(line: _Line, payload: msgspec.Raw) -> SessionEvent:
    fields = (line.id, line.event_index, line.session_id, line.created_at, line.connection_id, line.sender)
    if msgspec.UNSET in fields:
        raise _DamagedError(
            "the event lacks one of id, eventIndex, sessionId, createdAt, connectionId, sender"
        )
    text = bytes(payload)
    if not text.startswith(b"{"):
        raise _DamagedError("the event's payload is not an object")
    return SessionEvent(*cast("tuple[str, int, str, int, str, Sender]", fields), text)


def _note_record(opened: _Part, event: SessionEvent) -> None:
    """Remember what a record can be created from."""
    opened.first = opened.first or event
    opened.connection_id = event.connection_id
    opened.looked_at += 1
    if opened.agent_session_id or opened.looked_at > _LOOKED_AT:
        return
    with suppress(msgspec.ValidationError):
        named = msgspec.convert(event.payload, _Naming)
        opened.agent_session_id = named.params.session_id or named.result.session_id


def _create_record(opened: _Part, agent: str) -> SessionRecord | None:
    if opened.first is None:
        return None
    return SessionRecord(
        id=opened.first.session_id,
        agent=agent,
        agent_session_id=opened.agent_session_id,
        last_connection_id=opened.connection_id,
        created_at=opened.first.created_at,
    )
