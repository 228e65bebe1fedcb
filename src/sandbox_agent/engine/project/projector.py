"""The fold's entrance: envelopes, and what happens to a session that is no envelope."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from sandbox_agent.engine.project.content import block_part
from sandbox_agent.engine.project.emit import Emitter
from sandbox_agent.engine.project.inputs import Inputs
from sandbox_agent.engine.project.open_requests import Asks
from sandbox_agent.engine.project.questions import read_question
from sandbox_agent.engine.project.read import Envelope, members, read_chunk, read_envelope, value
from sandbox_agent.engine.project.restores import Calls
from sandbox_agent.engine.project.state import State
from sandbox_agent.engine.project.statuses import Statuses
from sandbox_agent.engine.project.texts import STREAMS, Texts
from sandbox_agent.engine.project.tools import Tools
from sandbox_agent.engine.project.turns import Turns
from sandbox_agent.wire import acp
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, loads
from sandbox_agent.wire.records import RESTORED_METHOD, Sender
from sandbox_agent.wire.universal import AgentUnparsedData, UniversalEvent

__all__ = ["Projector"]

# What an agent may ask of its client that a session's viewers learn from the tool call.
_SERVICES = ("fs/", "terminal/")
_SILENT = {"elicitation/complete"}

_permission_decoder = msgspec.json.Decoder(acp.PermissionRequest)


class Projector(Inputs):
    """Turns one session's envelopes into universal events.

    Same inputs, same events: ids come from the session id and the sequence, times are passed in. An item
    that starts completes at the latest when its turn ends, is interrupted, or the agent is gone.

    Args:
        session_id: the server's id of the session.
        native_session_id: the agent's, where known; it is also read from the envelopes.
        first_sequence: the sequence of the first event; above 1 where something was said before.
    """

    def __init__(
        self, session_id: str, *, native_session_id: str | None = None, first_sequence: int = 1
    ) -> None:
        before = first_sequence - 1
        self._build(State(session_id, sequence=before, native_session_id=native_session_id, seen=before > 0))

    def _build(self, state: State) -> None:
        self._state = state
        self._emit = Emitter(state)
        self._texts = Texts(state, self._emit)
        self._tools = Tools(state, self._emit, self._texts)
        self._statuses = Statuses(state, self._emit)
        self._asks = Asks(state, self._emit, self._tools)
        self._turns = Turns(state, self._emit, self._texts, self._tools, self._asks)
        self._calls = Calls(state, self._emit, self._texts, self._tools, self._statuses)

    def snapshot(self) -> dict[str, Any]:
        """Return all that the fold remembers as JSON values; it shares nothing with the fold."""
        for item in self._state.texts.values():
            item.pieces = ["".join(item.pieces)] if item.pieces else []
        return cast("dict[str, Any]", msgspec.to_builtins(self._state))

    @classmethod
    def restore(cls, snapshot: Mapping[str, Any]) -> Projector:
        """Return a fold that goes on where the snapshot was taken.

        Raises:
            msgspec.ValidationError: it is no snapshot of this version.
        """
        projector = cls("")
        # A snapshot's lists become the fold's own: it may be restored again.
        projector._build(msgspec.convert(msgspec.to_builtins(snapshot), State))
        return projector

    def feed(
        self,
        sender: Sender,
        envelope: bytes,
        time_ms: int,
        *,
        subject_id: str | None = None,
        by: str | None = None,
    ) -> list[UniversalEvent]:
        """Take the next envelope.

        Args:
            sender: who sent it.
            envelope: its bytes, as they were stored.
            time_ms: when, in milliseconds since the epoch.
            subject_id: the name of the turn, permission or question that it begins, where the server has
                given it one; else it is made from the sequence.
            by: who sent an answer; put into permission.resolved as ``answered_by``.

        Returns:
            The events that it makes, in order; often one, sometimes none.
        """
        events = self._emit.begin(time_ms)
        if sender == "agent":
            chunk = read_chunk(envelope)
            if chunk is not None and chunk.stream in STREAMS:
                self._texts.chunk(chunk.stream, chunk.native_id, chunk.text)
                return events
        try:
            message = read_envelope(envelope)
        except InvalidEnvelopeError as error:
            self._unparsed(str(error), sender, envelope)
            return events
        if sender == "agent":
            self._from_agent(message, envelope, subject_id)
        else:
            self._from_client(message, subject_id, by)
        return events

    def _from_agent(self, message: Envelope, envelope: bytes, subject_id: str | None) -> None:
        method = message.method
        request_id = message.request_id
        if method is None:
            self._response(message, request_id)
        elif method == "session/update":
            self._update(message, envelope)
        elif method == "session/request_permission" and request_id:
            self._asks.permission(request_id, _permission(bytes(message.params)), subject_id)
        elif method == "$/cancel_request":
            self._asks.drop(
                msgspec.json.encode(members(message.params).get("requestId")).decode(), "cancelled"
            )
        elif method == "_adapter/agent_exited":
            told = members(message.params)
            code = told.get("code")
            self._exited(code if isinstance(code, int) else None, success=told.get("success") is True)
        elif method == "_adapter/invalid_stdout":
            told = members(message.params)
            self._unparsed(str(told.get("error") or "invalid line"), "stdout", envelope, told.get("raw"))
        elif request_id and (question := read_question(method, members(message.params))) is not None:
            self._asks.question(request_id, question, subject_id)
        elif not method.startswith(("_", *_SERVICES)) and method not in _SILENT:
            self._unparsed(f"unknown method {method!r}", "method", envelope)

    def _response(self, message: Envelope, request_id: str) -> None:
        failed = bool(message.error) and bytes(message.error) != b"null"
        if request_id in self._state.turns:
            if failed:
                self._turns.fail(request_id, value(message.error))
            else:
                self._turns.respond(request_id, value(message.result))
        elif failed:
            self._calls.fail(request_id, value(message.error))
        else:
            self._calls.succeed(request_id, members(message.result))

    def _update(self, message: Envelope, envelope: bytes) -> None:
        raw = members(message.params).get("update")
        update = acp.parse_update(cast("dict[str, Any]", raw) if isinstance(raw, dict) else {})
        match update:
            case acp.ToolCall() | acp.ToolCallUpdate():
                self._tools.update(update)
            case (
                acp.AgentMessageChunk()
                | acp.AgentThoughtChunk()
                | acp.UserMessageChunk()
                | acp.CompactionSummaryChunk()
            ):
                self._chunk(update)
            case acp.UnknownUpdate():
                self._unparsed(f"unknown update {update.session_update!r}", "params.update", envelope)
            case acp.CompactionUpdate():
                self._texts.end("compaction_summary_chunk")
                self._statuses.update(update)
            case _:
                self._statuses.update(update)

    def _chunk(
        self,
        update: acp.AgentMessageChunk
        | acp.AgentThoughtChunk
        | acp.UserMessageChunk
        | acp.CompactionSummaryChunk,
    ) -> None:
        summary = isinstance(update, acp.CompactionSummaryChunk)
        native_id = update.compaction_id if summary else update.message_id
        if isinstance(update.content, acp.TextContent):
            self._texts.chunk(update.session_update, native_id or None, update.text)
        else:
            self._texts.block(update.session_update, native_id or None, block_part(update.content))

    def _from_client(self, message: Envelope, subject_id: str | None, by: str | None) -> None:
        method = message.method
        request_id = message.request_id
        if method is None:
            error = value(message.error)
            self._asks.answer(request_id, value(message.result), error, by)
            return
        params = members(message.params)
        self._state.exited = False
        if method == "session/prompt" and request_id:
            self._adopt(params)
            self._turns.start(request_id, params.get("prompt"), subject_id)
        elif method == "session/cancel":
            self._turns.cancel()
        elif method == RESTORED_METHOD:
            self._statuses.restored(params)
        elif request_id:
            self._calls.sent(request_id, method, params)

    def _adopt(self, params: dict[str, Any]) -> None:
        # A restored session goes on in another session of the agent's.
        native_id = params.get("sessionId")
        if isinstance(native_id, str) and native_id:
            self._state.native_session_id = native_id

    def _unparsed(self, error: str, location: str, envelope: bytes, raw: Any = None) -> None:
        if raw is None:
            try:
                raw = loads(envelope)
            except InvalidEnvelopeError:
                raw = envelope.decode("utf-8", "replace")
        digest = hashlib.sha256(envelope).hexdigest()
        self._emit.event("agent.unparsed", AgentUnparsedData(error, location, digest), "daemon", raw=raw)


def _permission(params: bytes) -> acp.PermissionRequest:
    try:
        return _permission_decoder.decode(params)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return acp.parse_permission_request(params)
