"""The projector: envelopes in, universal events out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from sandbox_agent.engine.project.content import block_part
from sandbox_agent.engine.project.emit import Emitter
from sandbox_agent.engine.project.inputs import Inputs
from sandbox_agent.engine.project.open_requests import OpenRequests
from sandbox_agent.engine.project.read import Envelope, members, read_chunk, read_envelope, value
from sandbox_agent.engine.project.restores import Calls
from sandbox_agent.engine.project.state import State
from sandbox_agent.engine.project.statuses import Statuses
from sandbox_agent.engine.project.texts import STREAMS, Texts
from sandbox_agent.engine.project.tools import Tools
from sandbox_agent.engine.project.turns import Turns
from sandbox_agent.wire import acp
from sandbox_agent.wire.jsonrpc import DECODE_FAILURES, InvalidEnvelopeError, loads
from sandbox_agent.wire.questions import read_question
from sandbox_agent.wire.records import RESTORED_METHOD, Sender
from sandbox_agent.wire.universal import AgentUnparsedData, UniversalEvent

# Requests to the client that need no event: the tool call already shows them.
_SERVICES = ("fs/", "terminal/")
_IGNORED = {"elicitation/complete"}
# Other methods with a slash are an agent's own.
_ACP_METHODS = ("session/", "elicitation/", "$/")
# Longer params of an agent's own methods are only in the envelope.
_SHORT_PARAMS = 2_000
# Updates that may retell the history.
_RETOLD = {*STREAMS, "tool_call", "tool_call_update", "plan"}

_permission_decoder = msgspec.json.Decoder(acp.PermissionRequest)


class Projector(Inputs):
    """Projects the envelopes of one session onto universal events.

    The same inputs give the same events: ids are built from the session id and the sequence, and times are
    arguments. A started item completes at the latest when its turn ends or is interrupted, or when the agent
    exits.

    Args:
        session_id: The server's id of the session.
        native_session_id: The agent's id of the session, or None. It is also read from the envelopes.
        first_sequence: The sequence of the first event. Above 1 if the session already has events.
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
        self._requests = OpenRequests(state, self._emit, self._tools)
        self._turns = Turns(state, self._emit, self._texts, self._tools, self._requests)
        self._calls = Calls(state, self._emit, self._texts, self._tools, self._statuses)

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of the state as JSON values."""
        for item in self._state.texts.values():
            item.pieces = ["".join(item.pieces)] if item.pieces else []
        return cast("dict[str, Any]", msgspec.to_builtins(self._state))

    @classmethod
    def restore(cls, snapshot: Mapping[str, Any]) -> Projector:
        """Return a projector that continues from a snapshot.

        Raises:
            msgspec.ValidationError: The snapshot has another version or is invalid.
        """
        projector = cls("")
        # Copy the snapshot's lists, because it may be restored again.
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
        """Process the next envelope.

        Args:
            sender: The sender.
            envelope: The stored bytes of the envelope.
            time_ms: Its time in milliseconds since the Unix epoch.
            subject_id: The id of the turn, permission or question that it starts, if the server has assigned
                one. Otherwise the id is built from the sequence.
            by: The name of the client that sent an answer, for ``answered_by`` of permission.resolved.

        Returns:
            The events in order: often one, sometimes none.
        """
        events = self._emit.begin(time_ms)
        if sender == "agent":
            chunk = read_chunk(envelope)
            if chunk is not None and chunk.stream in STREAMS:
                # An empty piece changes nothing, and is not counted.
                is_open = self._state.retelling.state != "off" and bool(chunk.text)
                if is_open and not self._is_news(chunk.stream, envelope):
                    return events
                self._texts.add_chunk(chunk.stream, chunk.native_id, chunk.text)
                return events
        try:
            message = read_envelope(envelope)
        except InvalidEnvelopeError as error:
            self._emit_unparsed(str(error), sender, envelope)
            return events
        if sender == "agent":
            self._process_agent_message(message, envelope, subject_id)
        else:
            self._process_client_message(message, subject_id, by)
        return events

    def _process_agent_message(self, message: Envelope, envelope: bytes, subject_id: str | None) -> None:
        method = message.method
        request_id = message.request_id
        if method is None:
            self._process_response(message, request_id)
        elif method == "session/update":
            self._process_update(message, envelope)
        elif method == "session/request_permission" and request_id:
            self._turns.act()
            self._requests.open_permission(request_id, _read_permission(bytes(message.params)), subject_id)
        elif method == "$/cancel_request":
            self._requests.close(
                msgspec.json.encode(members(message.params).get("requestId")).decode(), "cancelled"
            )
        elif method == "_adapter/agent_exited":
            params = members(message.params)
            code = params.get("code")
            reason = params.get("reason")
            self._process_exit(
                code if isinstance(code, int) else None,
                success=params.get("success") is True,
                reason=reason if isinstance(reason, str) else None,
            )
        elif method == "_adapter/egress_refused":
            params = members(message.params)
            self._statuses.show("egress", str(params.pop("message", "")), params or None, source="daemon")
        elif method == "_adapter/left_out":
            params = members(message.params)
            kind, detail = str(params.get("kind")), str(params.get("message", ""))
            self._statuses.show(kind, detail, {"name": params.get("name")}, source="daemon")
        elif method == "_adapter/invalid_stdout":
            params = members(message.params)
            error = str(params.get("error") or "invalid line")
            self._emit_unparsed(error, "stdout", envelope, params.get("raw"))
        elif request_id and (question := read_question(method, members(message.params))) is not None:
            self._turns.act()
            self._requests.open_question(request_id, question, subject_id)
        elif not method.startswith(("_", *_SERVICES)) and method not in _IGNORED:
            if method.startswith(_ACP_METHODS) or "/" not in method:
                self._emit_unparsed(f"unknown method {method!r}", "method", envelope)
            else:
                short = len(message.params) <= _SHORT_PARAMS
                self._statuses.show("extension", method, members(message.params) if short else None)

    def _process_response(self, message: Envelope, request_id: str) -> None:
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
        self._release_held()

    def _is_news(self, kind: str, envelope: bytes) -> bool:
        """Return whether an update does not retell the history; hold it where that is not known yet."""
        state = self._state
        match state.retelling.classify(kind):
            case "news":
                return True
            case "undecided":
                state.held.append(envelope)
            case "past":
                state.skipped += 1 + len(state.held)
                state.held = []
        return False

    def _release_held(self) -> None:
        """Handle the updates that turned out to be news."""
        if self._state.held and self._state.retelling.state != "open":
            held, self._state.held = self._state.held, []
            for envelope in held:
                self._process_update(read_envelope(envelope), envelope)

    def _process_update(self, message: Envelope, envelope: bytes) -> None:
        raw = members(message.params).get("update")
        update = acp.parse_update(cast("dict[str, Any]", raw) if isinstance(raw, dict) else {})
        kind = update.session_update
        is_retold = self._state.retelling.state != "off" and kind in _RETOLD
        if is_retold and getattr(update, "text", None) != "" and not self._is_news(kind, envelope):
            return
        match update:
            case acp.ToolCall() | acp.ToolCallUpdate():
                self._turns.act()
                self._tools.update(update)
            case (
                acp.AgentMessageChunk()
                | acp.AgentThoughtChunk()
                | acp.UserMessageChunk()
                | acp.CompactionSummaryChunk()
            ):
                self._process_chunk(update)
            case acp.UnknownUpdate():
                self._emit_unparsed(f"unknown update {update.session_update!r}", "params.update", envelope)
            case acp.CompactionUpdate():
                self._texts.end("compaction_summary_chunk")
                self._statuses.update(update)
            case _:
                self._statuses.update(update)

    def _process_chunk(
        self,
        update: acp.AgentMessageChunk
        | acp.AgentThoughtChunk
        | acp.UserMessageChunk
        | acp.CompactionSummaryChunk,
    ) -> None:
        summary = isinstance(update, acp.CompactionSummaryChunk)
        native_id = update.compaction_id if summary else update.message_id
        if isinstance(update.content, acp.TextContent):
            self._texts.add_chunk(update.session_update, native_id or None, update.content.text)
        else:
            self._texts.add_block(update.session_update, native_id or None, block_part(update.content))

    def _process_client_message(self, message: Envelope, subject_id: str | None, by: str | None) -> None:
        method = message.method
        request_id = message.request_id
        if method is None:
            error = value(message.error)
            self._requests.answer(request_id, value(message.result), error, by)
            return
        params = members(message.params)
        self._state.exited = False
        if method == "session/prompt" and request_id:
            self._state.retelling.end()
            self._release_held()
            self._set_native_id(params)
            self._turns.start(request_id, params.get("prompt"), subject_id)
        elif method == "session/cancel":
            self._turns.cancel()
        elif method == RESTORED_METHOD:
            self._statuses.show_restored(params)
        elif request_id:
            self._calls.add(request_id, method, params)

    def _set_native_id(self, params: dict[str, Any]) -> None:
        # A restored session continues in another session of the agent.
        native_id = params.get("sessionId")
        if isinstance(native_id, str) and native_id:
            self._state.native_session_id = native_id

    def _emit_unparsed(self, error: str, location: str, envelope: bytes, raw: Any = None) -> None:
        if raw is None:
            try:
                raw = loads(envelope)
            except InvalidEnvelopeError:
                raw = envelope.decode("utf-8", "replace")
        digest = hashlib.sha256(envelope).hexdigest()
        self._emit.event("agent.unparsed", AgentUnparsedData(error, location, digest), "daemon", raw=raw)


def _read_permission(params: bytes) -> acp.PermissionRequest:
    try:
        return _permission_decoder.decode(params)
    except DECODE_FAILURES:
        return acp.parse_permission_request(params)
