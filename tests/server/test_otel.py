"""Spans of turns and tool calls: what they have, whose children they are, and that a collector gets them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from sandbox_agent import InMemorySessionPersistDriver, SandboxAgent
from sandbox_agent.persist.store import TurnRow
from sandbox_agent.server.recorder.spans import Spans
from sandbox_agent.server.trace_context import TraceContext, add_trace, parse_trace, read_trace, trace_context
from tests.server.sessions.stack import Stack, running
from tests.server.talk import client_of, envelope, talk
from tests.support.servers import descendants, our_server

pytestmark = pytest.mark.anyio

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
SECRET = "hunter2-of-someone"


class Traced:
    """A server in this process, and the spans that have ended."""

    def __init__(self, stack: Stack, exporter: InMemorySpanExporter, spans: Spans) -> None:
        self.stack = stack
        self.spans = spans
        self._exporter = exporter

    def ended(self) -> dict[str, ReadableSpan]:
        """Return the spans that have ended, by name."""
        spans = {span.name: span for span in self._exporter.get_finished_spans()}
        assert len(spans) == len(self._exporter.get_finished_spans())
        return spans

    async def turn(self, text: str, trace: TraceContext | None = None) -> None:
        with trace_context(trace):
            turn = await self.stack.say(text)
        await self.stack.over(turn)


@asynccontextmanager
async def traced(folder: Path, *, content: bool = False) -> AsyncGenerator[Traced]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = Spans(provider.get_tracer("test"), content=content)
    try:
        async with running(folder) as stack:
            stack.recorder.observers.append(spans.observe)
            await stack.create()
            yield Traced(stack, exporter, spans)
    finally:
        provider.shutdown()


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return dict(span.attributes or {})


def text_of(span: ReadableSpan) -> str:
    """Return all that a span says."""
    return f"{span.name} {attributes(span)} {span.status.description}"


async def test_a_turn_and_its_tool_call_are_spans(tmp_path: Path) -> None:
    async with traced(tmp_path) as server:
        await server.turn("tool")
        spans = server.ended()
        live = await server.stack.recorder.open("s")
        stored = await server.stack.store.turns(live.row.key, limit=1)
    turn, tool = spans["invoke_agent mock"], spans["execute_tool read"]
    assert attributes(turn) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "mock",
        "gen_ai.agent.name": "mock",
        "gen_ai.conversation.id": "s",
        "gen_ai.request.model": live.row.model,
        "gen_ai.response.finish_reasons": ("end_turn",),
        "sandbox_agent.turn.id": stored[0].turn_id,
    }
    assert attributes(tool)["gen_ai.operation.name"] == "execute_tool"
    assert attributes(tool)["gen_ai.tool.name"] == "read"
    assert attributes(tool)["gen_ai.tool.call.id"]
    assert tool.parent is not None
    assert turn.context is not None
    assert (tool.parent.span_id, tool.parent.trace_id) == (turn.context.span_id, turn.context.trace_id)
    assert turn.parent is None
    assert (turn.status.status_code, tool.status.status_code) == (StatusCode.UNSET, StatusCode.UNSET)
    assert (turn.start_time, turn.end_time) == (
        (stored[0].started_at or 0) * 1_000_000,
        (stored[0].ended_at or 0) * 1_000_000,
    )
    assert (turn.start_time or 0) <= (tool.start_time or 0) <= (tool.end_time or 0) <= (turn.end_time or 0)


async def test_tokens_and_cost_are_attributes(tmp_path: Path) -> None:
    async with traced(tmp_path) as server:
        await server.turn("usage")
        span = server.ended()["invoke_agent mock"]
    found = attributes(span)
    assert found["gen_ai.usage.input_tokens"] > 0
    assert found["gen_ai.usage.output_tokens"] > 0
    assert found["sandbox_agent.cost.usd"] == 0.0125


async def test_content_is_off_by_default(tmp_path: Path) -> None:
    async with traced(tmp_path) as server:
        await server.turn(f"echo {SECRET}")
        await server.stack.recorder.flush()
    async with traced(tmp_path / "b") as other:
        await other.turn("tool")
        spans = [*server.ended().values(), *other.ended().values()]
    said = " ".join(map(text_of, spans))
    assert SECRET not in said
    assert "hello.txt" not in said
    assert "1 line changed" not in said


async def test_content_is_on_if_that_is_wanted(tmp_path: Path) -> None:
    async with traced(tmp_path, content=True) as server:
        await server.turn("tool")
        spans = server.ended()
    turn, tool = attributes(spans["invoke_agent mock"]), attributes(spans["execute_tool read"])
    assert json.loads(turn["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "tool"}]}
    ]
    [answer] = json.loads(turn["gen_ai.output.messages"])
    assert answer["role"] == "assistant"
    assert "The tool is done." in answer["parts"][0]["content"]
    assert answer["finish_reason"] == "stop"
    assert "hello.txt" in tool["gen_ai.tool.call.arguments"]
    assert "1 line changed" in tool["gen_ai.tool.call.result"]


async def test_a_turn_whose_agent_dies_is_an_error(tmp_path: Path) -> None:
    async with traced(tmp_path) as server:
        await server.turn("die 3")
        span = server.ended()["invoke_agent mock"]
    assert span.status.status_code == StatusCode.ERROR
    assert span.status.description == "the turn was failed"
    assert attributes(span)["error.type"] == "failed"


async def test_a_cancelled_turn_and_its_open_tool_call_say_so(tmp_path: Path) -> None:
    async with traced(tmp_path) as server:
        turn = await server.stack.say("permission")
        await server.stack.asked()
        await server.stack.sessions.cancel("s")
        await server.stack.over(turn)
        await server.stack.recorder.flush()
        spans = server.ended()
    assert attributes(spans["invoke_agent mock"])["error.type"] == "cancelled"
    assert spans["execute_tool edit"].end_time is not None


async def test_the_end_of_the_server_ends_what_runs(tmp_path: Path) -> None:
    async with traced(tmp_path) as server:
        await server.stack.say("permission")
        await server.stack.asked()
        assert server.ended() == {}
        server.spans.close()
        spans = server.ended()
    assert {attributes(span)["error.type"] for span in spans.values()} == {"interrupted"}
    assert set(spans) == {"invoke_agent mock", "execute_tool edit"}


async def test_a_turn_that_began_before_this_server_has_a_span(tmp_path: Path) -> None:
    async with traced(tmp_path) as server:
        turn = await server.stack.say("stall")
        await server.stack.until("turn.started")
        server.spans.close()
        server.stack.recorder.observers.clear()
        fresh, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(fresh))
        server.stack.recorder.observers.append(Spans(provider.get_tracer("test"), content=False).observe)
        await server.stack.sessions.cancel("s")
        await server.stack.over(turn)
        await server.stack.recorder.flush()
        [span] = fresh.get_finished_spans()
        provider.shutdown()
    assert attributes(span)["error.type"] == "cancelled"
    assert (span.end_time or 0) >= (span.start_time or 0) > 0


async def test_the_trace_of_a_message_reaches_the_agent_and_is_the_parent(tmp_path: Path) -> None:
    async with traced(tmp_path) as server:
        await server.turn("first", TraceContext(TRACEPARENT, "vendor=1"))
        first = server.ended()["invoke_agent mock"]
        live = await server.stack.recorder.open("s")
        rows = await server.stack.store.newest_envelopes(live.row.key, limit=100)
        [sent] = [json.loads(row.data) for row in rows if b'"session/prompt"' in row.data]
    assert sent["params"]["_meta"] == {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
    assert first.parent is not None
    assert (f"{first.parent.trace_id:032x}", f"{first.parent.span_id:016x}") == (TRACE, PARENT)
    assert first.context is not None
    assert first.context.trace_id == first.parent.trace_id


async def test_each_message_of_a_queue_keeps_its_own_trace(tmp_path: Path) -> None:
    other = TRACEPARENT.replace(TRACE, "1" * 32)
    async with traced(tmp_path) as server:
        turns: list[TurnRow] = []
        for trace in (TraceContext(TRACEPARENT), None, TraceContext(other)):
            with trace_context(trace):
                turns.append(await server.stack.say("echo x"))
        for turn in turns:
            await server.stack.over(turn)
        live = await server.stack.recorder.open("s")
        rows = await server.stack.store.newest_envelopes(live.row.key, limit=100)
    prompts = [json.loads(row.data)["params"] for row in rows if b'"session/prompt"' in row.data]
    found = [each.get("_meta", {}).get("traceparent") for each in prompts]
    assert sorted(found, key=str) == sorted([TRACEPARENT, None, other], key=str)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"{TRACEPARENT}\n",
        f"01-{TRACE}-{PARENT}-01-{'x' * 600}",
    ],
)
def test_an_invalid_trace_is_not_used(value: str) -> None:
    assert parse_trace([("traceparent", value)]) is None


def test_a_prompt_keeps_its_own_trace_and_all_of_its_bytes() -> None:
    body = b'{"jsonrpc":"2.0","id":1.0,"method":"session/prompt","params":{"n":1E2,"_meta":{"a":1}}}'
    own = b'{"id":1,"method":"session/prompt","params":{"_meta":{"traceparent":"mine"}}}'
    assert add_trace("session/prompt", body) is body
    with trace_context(TraceContext(TRACEPARENT)):
        changed = add_trace("session/prompt", body)
        assert add_trace("session/new", body) is body
        assert add_trace("session/prompt", own) is own
        for odd in (b"[]", b'{"params":[]}', b'{"params":{"_meta":3}}', b'{"id":1}', b"{"):
            assert add_trace("session/prompt", odd) is odd
    meta = {"a": 1, "traceparent": TRACEPARENT}
    assert json.loads(changed) == {**json.loads(body), "params": {"n": 100.0, "_meta": meta}}
    assert b"1E2" in changed
    assert read_trace(changed) == TraceContext(TRACEPARENT)


class Collector:
    """An OTLP collector: the spans that it has received."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.paths: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.changed = threading.Condition()

    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@contextmanager
def collecting() -> Generator[tuple[Collector, str]]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            request = ExportTraceServiceRequest()
            request.ParseFromString(body)
            with collector.changed:
                collector.requests.append(request)
                collector.paths.append(self.path)
                collector.headers.append(dict(self.headers))
                collector.changed.notify_all()
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as inherited
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector, f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


async def test_a_collector_gets_the_spans_over_otlp(tmp_path: Path) -> None:
    with collecting() as (collector, url):
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_EXPORTER_OTLP_HEADERS": "x-key=a-key",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
        }
        with our_server(tmp_path, "--otel", env=variables) as server:
            async with client_of(server) as client:
                path = "/v1/sessions/traced"
                await client.post(path, json={"agent": "mock"})
                headers = {"traceparent": TRACEPARENT}
                await client.post(f"{path}/messages/stream", json={"message": "tool"}, headers=headers)
            async with talk(server, "acp") as talking:
                # The key of the collector is none of the agent's business.
                agents = [pid for pid in descendants(server.pid) if b"agents.mock" in command(pid)]
                assert agents
                assert not [pid for pid in agents if b"a-key" in environment(pid)]
                body = envelope("session/prompt", talking.prompting("tool"), 77)
                second = {"traceparent": TRACEPARENT.replace(TRACE, "2" * 32)}
                answer = await talking.client.post(talking.path, json=body, headers=second)
                assert answer.json()["result"]["stopReason"] == "end_turn"
            assert await anyio.to_thread.run_sync(server.stop) == 0  # it sends what it has
        found = {(span.name, span.trace_id.hex()): span for span in collector.spans()}
    assert set(found) == {
        (name, trace) for name in ("invoke_agent mock", "execute_tool read") for trace in (TRACE, "2" * 32)
    }
    turn = found["invoke_agent mock", TRACE]
    assert turn.parent_span_id.hex() == PARENT
    assert found["execute_tool read", TRACE].parent_span_id == turn.span_id
    assert set(collector.paths) == {"/v1/traces"}
    assert collector.headers[0]["x-key"] == "a-key"
    [resource] = {
        tuple(sorted((each.key, each.value.string_value) for each in part.resource.attributes))
        for request in collector.requests
        for part in request.resource_spans
    }
    named = dict(resource)
    assert named["service.name"] == "sandbox-agent"
    assert named["deployment.environment"] == "test"


async def test_the_span_of_the_users_program_is_the_parent(tmp_path: Path) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    tracer = provider.get_tracer("a program")
    with collecting() as (collector, url):
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_SERVICE_NAME": "mine"}
        with our_server(tmp_path, "--otel", env=variables) as server:
            store = InMemorySessionPersistDriver()
            async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
                session = await sdk.create_session(agent="mock")
                with tracer.start_as_current_span("one") as one:
                    await session.prompt("echo x")
                await sdk.sessions.create("two", agent="mock")
                with tracer.start_as_current_span("two") as two:
                    async for _ in sdk.sessions.stream_turn("two", "echo x"):
                        pass
                with tracer.start_as_current_span("three") as three:
                    await sdk.sessions.post_message("two", "echo x")
                await session.prompt("echo outside")
            assert await anyio.to_thread.run_sync(server.stop) == 0
        spans = collector.spans()
    provider.shutdown()
    wanted = {span.get_span_context().span_id for span in (one, two, three)}
    assert {int(span.parent_span_id.hex(), 16) for span in spans if span.parent_span_id} == wanted
    assert sum(not span.parent_span_id for span in spans) == 1


async def test_a_collector_that_is_not_there_delays_nothing(tmp_path: Path) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with our_server(tmp_path, "--otel", env=variables) as server:
        async with client_of(server) as client:
            await client.post("/v1/sessions/s", json={"agent": "mock"})
            answer = await client.post("/v1/sessions/s/messages/stream", json={"message": "echo x"})
            assert "turn.ended" in answer.text
        assert await anyio.to_thread.run_sync(server.stop) == 0


async def test_a_collector_that_hangs_does_not_hold_the_end_of_the_server(tmp_path: Path) -> None:
    hanging = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = hanging.extra(anyio.abc.SocketAttribute.local_port)
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
    async with hanging:
        with our_server(tmp_path, "--otel", env=variables) as server:
            async with client_of(server) as client:
                await client.post("/v1/sessions/s", json={"agent": "mock"})
                await client.post("/v1/sessions/s/messages/stream", json={"message": "echo x"})
            assert await anyio.to_thread.run_sync(server.stop) == 0


def test_nothing_of_opentelemetry_is_imported_without_the_option() -> None:
    script = (
        "import sys, sandbox_agent.server.app, sandbox_agent.cli.server\n"
        "from sandbox_agent.client import trace\n"
        "assert trace.current_trace() == {}\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [(["--otel"], "sandbox-agent-py[otel]"), (["--otel-content"], "--otel-content needs --otel")],
)
def test_an_option_without_what_it_needs_is_refused(options: list[str], wanted: str) -> None:
    script = (
        "import sys\n"
        "sys.modules['opentelemetry.sdk'] = None\n"
        "from sandbox_agent.cli.main import main\n"
        f"sys.argv = ['sandbox-agent', 'server', '--port', '0', *{options!r}]\n"
        "main()"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert wanted in ran.stderr
    assert "Traceback" not in ran.stderr
