"""The data in an actor's state: plain JSON with the structure of the TypeScript SDK's Rivet driver.

::

    {
      "sessions": {"<session id>": {"id": …, "agentSessionId": …, …}},
      "events": {"<session id>": [{"id": …, "eventIndex": 1, …, "payload": {…}}]},
      "writers": {"<session id>": 3}, "generation": 3
    }

Events are in order. An event has ``payloadJson`` if the bytes of its envelope differ from ``payload`` written
as JSON. Only this SDK uses ``writers`` and ``generation``, the highest generation so far.
"""

from __future__ import annotations

from collections.abc import MutableMapping, MutableSequence
from typing import Any, cast

import msgspec

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import UNFENCED, not_json_error
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, loads
from sandbox_agent.wire.records import SessionEvent, SessionRecord

Plain = dict[str, Any]


def record_to_plain(record: SessionRecord) -> Plain:
    """Return the record as plain JSON.

    Raises:
        PersistError: a value can't be written as JSON.
    """
    try:
        # The round trip through JSON gives plain values that the caller does not share.
        return cast("Plain", loads(dumps(record)))
    except (TypeError, ValueError, InvalidEnvelopeError) as error:
        raise not_json_error(record.id, error) from error


def plain_to_record(plain: Plain) -> SessionRecord:
    """Return the record of a session in the state.

    Raises:
        PersistError: it is not a session.
    """
    try:
        # The round trip through JSON protects the state from the caller's changes.
        return msgspec.convert(loads(dumps(plain)), SessionRecord)
    except msgspec.ValidationError as error:
        raise PersistError(f"a session in the actor's state is damaged: {error}") from error


def event_to_plain(event: SessionEvent) -> Plain:
    """Return the event as plain JSON.

    Raises:
        PersistError: its envelope is not UTF-8.
    """
    try:
        text = event.payload_json.decode()
    except UnicodeDecodeError as error:
        raise PersistError(
            f"event '{event.id}' was not stored: its envelope is not UTF-8 ({error})",
            session_id=event.session_id,
        ) from error
    try:
        written = dumps(loads(event.payload_json))
        payload: Any = loads(written)
    except InvalidEnvelopeError:
        written, payload = b"", None
    plain: Plain = {
        "id": event.id,
        "eventIndex": event.event_index,
        "sessionId": event.session_id,
        "createdAt": event.created_at,
        "connectionId": event.connection_id,
        "sender": event.sender,
        "payload": payload,
    }
    if written != event.payload_json:
        plain["payloadJson"] = text
    return plain


def plain_to_event(plain: Plain) -> SessionEvent:
    """Return the event of an entry in the state.

    Raises:
        PersistError: it is not an event.
    """
    try:
        text: object = plain.get("payloadJson")
        payload = text.encode() if isinstance(text, str) else dumps(plain["payload"])
        return SessionEvent(
            plain["id"],
            int(plain["eventIndex"]),
            plain["sessionId"],
            int(plain["createdAt"]),
            plain["connectionId"],
            plain["sender"],
            payload,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PersistError(f"an event in the actor's state is damaged: {error!r}") from error


def position(plain: Plain) -> tuple[int, str]:
    """Return the event's place in the order."""
    return plain["eventIndex"], plain["id"]


class ActorData:
    """The state's value, with the old values of all changes.

    Changes replace values; ``undo`` restores the old ones.
    """

    def __init__(self, value: MutableMapping[str, Any] | None) -> None:
        self.value: MutableMapping[str, Any] = {} if value is None else value
        self._undo: list[tuple[MutableMapping[str, Any], str, list[Any]]] = []

    @property
    def sessions(self) -> MutableMapping[str, Plain]:
        """Records by session id."""
        return self._part("sessions")

    @property
    def events(self) -> MutableMapping[str, MutableSequence[Plain]]:
        """Events by session id, in order."""
        return self._part("events")

    @property
    def writers(self) -> MutableMapping[str, int]:
        """Generations by session id, in the order of the claims."""
        return self._part("writers")

    def history(self, session_id: str) -> list[Plain]:
        """Return a session's events, in order."""
        return list(self.events.get(session_id, ()))

    def last_index(self, session_id: str) -> int:
        """Return the highest event index of a session."""
        history = self.events.get(session_id)
        return history[-1]["eventIndex"] if history else 0

    def raise_generation(self, session_id: str, keep: int) -> int:
        """Give the session a generation above all others and return it. The newest ``keep`` are kept."""
        generation = self.value.get("generation", UNFENCED) + 1
        self.set(self.value, "generation", generation)
        writers = {key: value for key, value in self.writers.items() if key != session_id}
        writers[session_id] = generation
        for forgotten in list(writers)[:-keep]:
            del writers[forgotten]
        self.set(self.value, "writers", writers)
        return generation

    def set(self, mapping: MutableMapping[str, Any], key: str, value: Any) -> None:
        """Set a member."""
        self._undo.append((mapping, key, [mapping[key]] if key in mapping else []))
        mapping[key] = value

    def drop(self, mapping: MutableMapping[str, Any], key: str) -> None:
        """Remove a member if it exists."""
        if key in mapping:
            self._undo.append((mapping, key, [mapping[key]]))
            del mapping[key]

    def undo(self) -> None:
        """Restore the old values."""
        while self._undo:
            mapping, key, old = self._undo.pop()
            if old:
                mapping[key] = old[0]
            else:
                mapping.pop(key, None)

    def complete(self) -> None:
        """Add the members that are missing."""
        for name in ("sessions", "events", "writers"):
            if name not in self.value:
                self.set(self.value, name, {})

    def _part(self, name: str) -> Any:
        # Reading must not change the state.
        return self.value.get(name, {})
