"""OpenTelemetry spans of turns and tool calls, made from what the recorder has stored.

A turn is a span ``invoke_agent``, a tool call in it a span ``execute_tool``, with the attributes of the
semantic conventions for generative AI. Prompts, answers, arguments, results and texts of errors are in them
only if that is wanted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sandbox_agent.persist.store import Changes, EventRow, SessionRow, TurnRow
from sandbox_agent.server.recorder.counting import currency_label
from sandbox_agent.server.recorder.session_metadata import read_usage
from sandbox_agent.server.trace_context import read_trace
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, loads
from sandbox_agent.wire.universal import (
    ItemEventData,
    StatusPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    TurnEventData,
    UniversalItem,
    decode_event,
)

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

SERVICE = "sandbox-agent"
# How long the end of the server waits for spans that are not sent yet.
FLUSH_SECONDS = 2.0
# A content of a span is cut after so many characters.
MAX_CONTENT = 16_384
# A turn has at most so many open tool calls, and a server so many sessions with turns, that become spans.
MAX_TOOLS = 500
MAX_SESSIONS = 10_000

_TOKENS = {
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cached_read_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cached_write_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "thought_tokens": "gen_ai.usage.reasoning.output_tokens",
}
# Agents of one provider; the others are named themselves.
_PROVIDERS = {"claude": "anthropic", "codex": "openai", "gemini": "gcp.gemini"}
_EVENTS = frozenset({"turn.started", "turn.ended", "item.started", "item.completed"})
_propagator = TraceContextTextMapPropagator()


@asynccontextmanager
async def exporting_spans(*, content: bool) -> AsyncGenerator[Spans]:
    """Yield what makes spans, which are sent over OTLP as the variables ``OTEL_*`` say."""
    resource = Resource.create({"service.name": SERVICE, "service.version": version("sandbox-agent-py")})
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES replace these.
    resource = resource.merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    spans = Spans(provider.get_tracer("sandbox_agent", version("sandbox-agent-py")), content=content)
    try:
        yield spans
    finally:
        spans.close()
        # A thread of its own, which does not keep the process: the collector may hang.
        ending = threading.Thread(target=provider.shutdown, daemon=True)
        ending.start()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(ending.join, FLUSH_SECONDS)


class _Turn:
    """A turn that runs: its span, those of its open tool calls by item id, and its answer."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.context: Context = set_span_in_context(span, Context())
        self.tools: dict[str, Span] = {}
        self.answer = ""


class Spans:
    """Makes spans of turns and tool calls. Their times are those of the stored events.

    Args:
        tracer: makes them.
        content: whether they have prompts, answers, arguments, results and texts of errors.
    """

    def __init__(self, tracer: Tracer, *, content: bool) -> None:
        self._tracer = tracer
        self._content = content
        # By the session's key, in the order of their start.
        self._turns: dict[int, dict[str, _Turn]] = {}

    def observe(self, changes: Changes) -> None:
        """Process what a commit of the recorder has stored."""
        sessions = {row.key: row for row in changes.sessions}
        for event in changes.events:
            row = sessions.get(event.key)
            if row is not None and event.type in _EVENTS:
                self._add_event(row, event, changes)
        for turn in changes.turns:
            row = sessions.get(turn.key)
            if row is not None and turn.ended_at is not None:
                self._end_turn(row, turn)

    def close(self) -> None:
        """End the spans of turns that still run: the server ends."""
        for turns in self._turns.values():
            for turn in turns.values():
                for span in (*turn.tools.values(), turn.span):
                    _fail(span, "interrupted", "the server has ended")
                    span.end()
        self._turns.clear()

    def _add_event(self, row: SessionRow, event: EventRow, changes: Changes) -> None:
        data = decode_event(event.data).data
        if isinstance(data, TurnEventData):
            if data.turn_id is not None and event.type == "turn.started" and len(self._turns) < MAX_SESSIONS:
                span = self._start_turn(row, data.turn_id, event.time, _parent(event, changes))
                self._turns.setdefault(row.key, {})[data.turn_id] = _Turn(span)
        elif isinstance(data, ItemEventData):
            self._add_item(row, event, data.item)

    def _start_turn(self, row: SessionRow, turn_id: str, time_ms: int, parent: Context) -> Span:
        attributes = {**_attributes(row, "invoke_agent"), "sandbox_agent.turn.id": turn_id}
        return self._tracer.start_span(
            f"invoke_agent {row.agent}",
            context=parent,
            kind=SpanKind.INTERNAL,
            attributes=attributes,
            start_time=_nanoseconds(time_ms),
        )

    def _add_item(self, row: SessionRow, event: EventRow, item: UniversalItem) -> None:
        turn = next(reversed(self._turns.get(row.key, {}).values()), None)
        if turn is None:
            return  # between turns
        if item.kind == "tool_call":
            if event.type == "item.started" and len(turn.tools) < MAX_TOOLS:
                parent = turn.tools.get(item.parent_id or "")
                turn.tools[item.item_id] = self._tracer.start_span(
                    "execute_tool",
                    context=turn.context if parent is None else set_span_in_context(parent, Context()),
                    kind=SpanKind.INTERNAL,
                    attributes=_attributes(row, "execute_tool"),
                    start_time=_nanoseconds(event.time),
                )
            if (span := turn.tools.get(item.item_id)) is not None:
                self._describe_call(span, item)
        elif item.kind == "tool_result" and event.type == "item.completed":
            span = turn.tools.pop(item.parent_id or "", None)
            if span is not None:
                self._end_call(span, item, event.time)
        elif event.type == "item.completed" and self._content and _is_answer(item):
            text = "".join(part.text for part in item.content if isinstance(part, TextPart))
            turn.answer = (turn.answer + text)[:MAX_CONTENT]

    def _describe_call(self, span: Span, item: UniversalItem) -> None:
        for part in item.content:
            if isinstance(part, ToolCallPart):
                name = _tool_name(item, part)
                span.update_name(f"execute_tool {name}")
                span.set_attributes({"gen_ai.tool.name": name, "gen_ai.tool.call.id": part.call_id})
                if self._content and part.arguments:
                    span.set_attribute("gen_ai.tool.call.arguments", part.arguments[:MAX_CONTENT])

    def _end_call(self, span: Span, item: UniversalItem, time_ms: int) -> None:
        output = "".join(part.output for part in item.content if isinstance(part, ToolResultPart))
        if self._content and output:
            span.set_attribute("gen_ai.tool.call.result", output[:MAX_CONTENT])
        if item.status == "failed":
            _fail(span, "tool_error", "the tool call has failed")
        span.end(_nanoseconds(time_ms))

    def _end_turn(self, row: SessionRow, turn: TurnRow) -> None:
        assert turn.ended_at is not None
        turns = self._turns.get(row.key, {})
        running = turns.pop(turn.turn_id, None)
        if not turns:
            self._turns.pop(row.key, None)
        if running is None:
            if turn.started_at is None:
                return  # it was never sent to the agent
            # It began before this server did.
            running = _Turn(self._start_turn(row, turn.turn_id, turn.started_at, Context()))
        span = running.span
        for tool in running.tools.values():
            _fail(tool, turn.state, "the turn has ended before the tool call")
            tool.end(_nanoseconds(turn.ended_at))
        if row.model:  # it may have changed with the turn's own request
            span.set_attribute("gen_ai.request.model", row.model)
        if turn.stop_reason is not None:
            span.set_attribute("gen_ai.response.finish_reasons", [turn.stop_reason])
        usage = read_usage(turn.usage)
        if usage is not None:
            for name, attribute in _TOKENS.items():
                if (count := getattr(usage, name)) is not None:
                    span.set_attribute(attribute, count)
            for currency, amount in (usage.cost or {}).items():
                span.set_attribute(f"sandbox_agent.cost.{currency_label(currency).lower()}", amount)
        if turn.state != "done":
            text = turn.error if self._content else None
            _fail(span, turn.state, (text or f"the turn was {turn.state}")[:MAX_CONTENT])
        if self._content:
            self._add_content(span, turn, running.answer)
        span.end(_nanoseconds(turn.ended_at))

    def _add_content(self, span: Span, turn: TurnRow, answer: str) -> None:
        prompt = _messages("user", _prompt_texts(turn.prompt))
        span.set_attribute("gen_ai.input.messages", prompt)
        if answer:
            finish = "stop" if turn.state == "done" else "error"
            output = _messages("assistant", [answer[:MAX_CONTENT]], finish_reason=finish)
            span.set_attribute("gen_ai.output.messages", output)


def _is_answer(item: UniversalItem) -> bool:
    return item.kind == "message" and item.role == "assistant"


def _attributes(row: SessionRow, operation: str) -> dict[str, str]:
    found = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": _PROVIDERS.get(row.agent, row.agent),
        "gen_ai.agent.name": row.agent,
        "gen_ai.conversation.id": row.session_id,
    }
    return {**found, "gen_ai.request.model": row.model} if row.model else found


def _tool_name(item: UniversalItem, call: ToolCallPart) -> str:
    """Return the tool's name. The title of a call, which may be in its place, says what the call is about."""
    status = next((part for part in item.content if isinstance(part, StatusPart)), None)
    if status is not None and status.label == call.name:
        return status.detail or "tool"
    return call.name


def _parent(event: EventRow, changes: Changes) -> Context:
    """Return the context of the prompt that began a turn."""
    for envelope in changes.envelopes:
        if envelope.key == event.key and envelope.index == event.envelope:
            trace = read_trace(envelope.data)
            return Context() if trace is None else _propagator.extract(trace.carrier(), Context())
    return Context()


def _fail(span: Span, kind: str, description: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, description))


def _prompt_texts(prompt: bytes) -> Sequence[str]:
    try:
        blocks = msgspec.convert(loads(prompt), list[dict[str, Any]])
    except (InvalidEnvelopeError, msgspec.ValidationError):
        return []
    return [text[:MAX_CONTENT] for block in blocks if isinstance(text := block.get("text"), str)]


def _messages(role: str, texts: Sequence[str], **fields: str) -> str:
    parts: list[Mapping[str, str]] = [{"type": "text", "content": text} for text in texts]
    return dumps([{"role": role, "parts": parts, **fields}]).decode()


def _nanoseconds(time_ms: int) -> int:
    return time_ms * 1_000_000
