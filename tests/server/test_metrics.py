"""What ``GET /v1/metrics`` shows of a running server."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sandbox_agent.server import metrics
from tests.server.processes.viewing import terminals
from tests.server.talk import client_of, envelope, talk
from tests.support.servers import ServerProcess, our_server, put_launcher

pytestmark = pytest.mark.anyio

SECRET = "sk-not-in-any-label"
ACP = "/v1/acp/{server_id}"


class Scrape:
    """Metrics as Prometheus reads them."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """Return the value of a series, 0 without it."""
        return self._values.get((f"sandbox_agent_{name}", frozenset(labels.items())), 0.0)


async def scrape(client: httpx2.AsyncClient) -> Scrape:
    response = await client.get("/v1/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == metrics.CONTENT_TYPE
    return Scrape(response.text)


async def until(client: httpx2.AsyncClient, name: str, wanted: float, **labels: str) -> Scrape:
    """Scrape until a series has a value: what ends is counted when the server notices it."""
    with anyio.fail_after(30):
        while (found := await scrape(client)).value(name, **labels) != wanted:
            await anyio.lowlevel.checkpoint()
    return found


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    with our_server(tmp_path_factory.mktemp("metrics"), token=SECRET * 2) as running:
        yield running


@asynccontextmanager
async def session_of(client: httpx2.AsyncClient, name: str, agent: str = "mock") -> AsyncGenerator[str]:
    path = f"/v1/sessions/{name}"
    assert (await client.post(path, json={"agent": agent})).status_code == 200
    try:
        yield path
    finally:
        await client.delete(path)


async def turn(client: httpx2.AsyncClient, path: str, message: str) -> None:
    response = await client.post(f"{path}/messages/stream", json={"message": message})
    assert response.status_code == 200, response.text


async def test_a_scrape_is_valid_and_has_the_server_and_its_process(own: ServerProcess) -> None:
    async with client_of(own) as client:
        found = await scrape(client)
    assert all(name.startswith(("sandbox_agent_", "process_")) for name in found.families)
    assert all(family.documentation and family.type != "unknown" for family in found.families.values())
    assert found.families["process_resident_memory_bytes"].samples[0].value > 1_000_000
    assert found.families["process_open_fds"].samples[0].value > 3
    assert found.families["process_max_fds"].samples[0].value > 3
    assert found.families["process_cpu_seconds"].samples[0].value > 0
    [build] = found.families["sandbox_agent_build_info"].samples
    assert set(build.labels) == {"version", "python"}
    assert found.value("uptime_seconds") > 0


async def test_requests_are_counted_by_route_method_and_status(own: ServerProcess) -> None:
    async with client_of(own) as client:
        before = await scrape(client)
        for _ in range(3):
            await client.get("/v1/agents/no-such-agent")
        await client.get("/v1/nothing-here")
        await client.put("/v1/health")
        after = await scrape(client)
    for labels, grown in (
        ({"route": "/v1/agents/{agent}", "method": "GET", "status": "400"}, 3),
        ({"route": "other", "method": "GET", "status": "404"}, 1),
        ({"route": "/v1/health", "method": "PUT", "status": "405"}, 1),
    ):
        name = "http_requests_total"
        assert after.value(name, **labels) - before.value(name, **labels) == grown, labels
    seconds = {"route": "/v1/agents/{agent}", "method": "GET"}
    name = "http_request_duration_seconds_count"
    assert after.value(name, **seconds) - before.value(name, **seconds) == 3
    assert "no-such-agent" not in after.text
    assert "nothing-here" not in after.text


@pytest.mark.parametrize("headers", [{}, {"origin": "http://127.0.0.1"}])
async def test_envelopes_are_counted_on_the_fast_path_and_beside_it(
    own: ServerProcess, headers: Mapping[str, str]
) -> None:
    labels = {"route": ACP, "method": "POST", "status": "200"}
    async with client_of(own, **headers) as client, talk(own) as talking:
        before = await scrape(client)
        for number in range(3):
            body = envelope("session/list", {}, 100 + number)
            assert (await client.post(talking.path, json=body)).status_code == 200
        after = await scrape(client)
    assert after.value("http_requests_total", **labels) - before.value("http_requests_total", **labels) == 3
    name, seconds = "http_request_duration_seconds_count", {"route": ACP, "method": "POST"}
    assert after.value(name, **seconds) - before.value(name, **seconds) == 3


async def test_agents_and_open_streams_are_gauges(own: ServerProcess) -> None:
    async with client_of(own) as client:
        await until(client, "agents_running", 0, agent="mock")
        before = await scrape(client)
        async with talk(own) as talking, talking.stream() as stream:
            await stream.raw()
            found = await scrape(client)
            assert found.value("agents_running", agent="mock") == 1
            assert found.value("agents_memory_bytes", agent="mock") > 1_000_000
            assert found.value("agents_cpu_seconds_total", agent="mock") > 0
            assert found.value("streams_open", route=ACP, type="sse") == 1
        found = await until(client, "streams_open", 0, route=ACP, type="sse")
        found = await until(client, "agents_running", 0, agent="mock")
    starts = found.value("agent_starts_total", agent="mock")
    assert starts - before.value("agent_starts_total", agent="mock") == 1
    exits = {"agent": "mock", "reason": "stopped"}
    assert found.value("agent_exits_total", **exits) - before.value("agent_exits_total", **exits) == 1
    # What has ended has used the processor: the counter does not fall.
    assert found.value("agents_cpu_seconds_total", agent="mock") > 0


async def test_a_turn_is_counted_with_its_outcome_tokens_and_cost(own: ServerProcess) -> None:
    async with client_of(own) as client, session_of(client, "metrics-turns") as path:
        before = await scrape(client)
        await turn(client, path, "usage")
        stalled = asyncio.ensure_future(turn(client, path, "stall"))
        await until(client, "turns_running", 1)
        assert (await client.post(f"{path}/cancel")).status_code == 204
        await stalled
        after = await scrape(client)
        assert after.value("sessions_open") >= 1
    for name, grown, labels in (
        ("turns_total", 1, {"agent": "mock", "outcome": "done"}),
        ("turns_total", 1, {"agent": "mock", "outcome": "cancelled"}),
        ("turn_duration_seconds_count", 2, {"agent": "mock"}),
        ("cost_total", 0.0125, {"agent": "mock", "currency": "USD"}),
    ):
        assert after.value(name, **labels) - before.value(name, **labels) == grown, (name, labels)
    tokens = {"agent": "mock", "type": "input"}
    assert after.value("tokens_total", **tokens) > before.value("tokens_total", **tokens)
    assert after.value("events_stored_total") > before.value("events_stored_total")
    assert after.value("envelopes_stored_total") > before.value("envelopes_stored_total")
    name = "store_commit_duration_seconds_count"
    assert after.value(name) > before.value(name)
    assert after.value("store_degraded") == 0


async def test_a_turn_that_waits_for_a_permission_is_shown_until_it_is_answered(own: ServerProcess) -> None:
    async with client_of(own) as client, session_of(client, "metrics-permission") as path:
        running = asyncio.ensure_future(turn(client, path, "permission"))
        found = await until(client, "permissions_pending", 1)
        assert found.value("turns_running") == 1
        while not (requests := (await client.get("/v1/permissions")).json()["permissions"]):
            pass  # it is stored a moment later
        [request] = requests
        url = f"{path}/permissions/{request['permissionId']}/reply"
        assert (await client.post(url, json={"reply": "once"})).status_code == 204
        await running
        found = await scrape(client)
        assert found.value("permissions_pending") == found.value("turns_running") == 0


async def test_an_agent_that_dies_again_and_again_is_a_crash_loop(own: ServerProcess) -> None:
    async with client_of(own) as client, session_of(client, "metrics-crash") as path:
        for _ in range(4):
            await turn(client, path, "die 3")
        found = await scrape(client)
    assert found.value("agent_crash_loops_total", agent="mock") == 1
    assert found.value("agent_exits_total", agent="mock", reason="exited") == 3
    assert found.value("turns_total", agent="mock", outcome="failed") >= 3


async def test_an_agent_that_cannot_be_started_is_counted(own: ServerProcess, tmp_path: Path) -> None:
    put_launcher(own.log.parent / "data", "broken", ["true"])
    launcher = own.log.parent / "data/sandbox-agent/bin/agent_processes/broken-acp"
    launcher.write_bytes(b"\x00not a program")
    async with client_of(own) as client:
        body = envelope("initialize", {"protocolVersion": 1}, 1)
        response = await client.post("/v1/acp/broken?agent=broken", json=body)
        assert response.status_code >= 500
        assert (await scrape(client)).value("agent_start_failures_total", agent="broken") == 1


async def test_processes_terminals_and_their_viewers_are_counted(own: ServerProcess) -> None:
    async with client_of(own) as client:
        before = await scrape(client)
        body = {"command": "cat", "tty": True}
        made = (await client.post("/v1/processes", json=body)).json()
        async with terminals(own) as viewers, viewers.view(made["id"]):
            found = await scrape(client)
            assert found.value("processes_running") == 1
            route = "/v1/processes/{id}/terminal/ws"
            assert found.value("streams_open", route=route, type="websocket") == 1
        await client.post(f"/v1/processes/{made['id']}/kill", params={"waitMs": 10_000})
        await client.delete(f"/v1/processes/{made['id']}")
        await client.post("/v1/processes/run", json={"command": "true"})
        after = await scrape(client)
    for kind in ("create", "run"):
        name = "processes_started_total"
        assert after.value(name, kind=kind) - before.value(name, kind=kind) == 1
    assert after.value("processes_running") == 0


async def test_a_viewer_of_another_connection_is_reset_and_a_dropped_log_is_a_gap(own: ServerProcess) -> None:
    async with client_of(own) as client, talk(own) as talking:
        before = await scrape(client)
        headers = {"last-event-id": "7"}
        async with client.stream("GET", f"{talking.path}?epoch=another", headers=headers) as stream:
            await anext(stream.aiter_bytes())
        config = (await client.get("/v1/processes/config")).json()
        await client.post("/v1/processes/config", json={**config, "maxLogBytesPerProcess": 1000})
        body = {"command": "sh", "args": ["-c", "seq 1000; echo end; sleep 600"]}
        made = (await client.post("/v1/processes", json=body)).json()
        logs = f"/v1/processes/{made['id']}/logs"
        with anyio.fail_after(30):
            while (await client.get(logs)).json().get("gap") is None:
                await anyio.lowlevel.checkpoint()
        params = {"follow": "true", "since": "1"}
        async with client.stream("GET", logs, params=params) as stream:
            data = b""
            async for chunk in stream.aiter_bytes():
                data += chunk
                if b"event: gap" in data:
                    break
        await client.post("/v1/processes/config", json=config)
        await client.post(f"/v1/processes/{made['id']}/kill", params={"waitMs": 10_000})
        after = await scrape(client)
    assert after.value("stream_resets_total") - before.value("stream_resets_total") == 1
    gaps = {"stream": "process_logs"}
    assert after.value("stream_gaps_total", **gaps) - before.value("stream_gaps_total", **gaps) >= 1


async def test_refused_requests_are_counted_by_status(own: ServerProcess) -> None:
    async with client_of(own) as client, client_of(own, authorization="Bearer wrong") as stranger:
        before = await scrape(client)
        assert (await stranger.get("/v1/metrics")).status_code == 401
        assert (await stranger.get("/v1/metrics", headers={"origin": "http://a.example"})).status_code == 401
        with socket.create_connection(("127.0.0.1", own.port)) as raw:
            raw.sendall(b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b" 414 " in raw.recv(1000)
        after = await scrape(client)
    for status, count in (("401", 2), ("414", 1)):
        name = "http_refused_total"
        assert after.value(name, status=status) - before.value(name, status=status) == count


async def test_connections_beyond_the_limit_are_counted(tmp_path: Path) -> None:
    with our_server(tmp_path, "--max-connections", "2") as server:
        async with client_of(server) as client:
            await scrape(client)  # holds one
            with (
                socket.create_connection(("127.0.0.1", server.port)) as second,
                socket.create_connection(("127.0.0.1", server.port)) as third,
            ):
                assert b" 503 " in third.recv(1000)
                assert second.fileno() > 0
                found = await until(client, "http_connections", 2)
    assert found.value("http_refused_connections_total") == 1
    assert found.value("http_refused_total", status="503") == 1


async def test_no_label_has_what_a_client_chose(own: ServerProcess) -> None:
    async with client_of(own) as client, session_of(client, "zebra-session") as path:
        await turn(client, path, "echo zebra-text")
        await client.get("/v1/sessions/zebra-other")
        await client.get("/v1/fs/file", params={"path": "/zebra-path"})
        await client.request("PURGE", "/v1/zebra-route")
        text = (await scrape(client)).text
    assert "zebra" not in text
    assert SECRET not in text
    labels = set(re.findall(r'(\w+)="', text))
    assert labels <= {
        *("agent", "currency", "kind", "le", "method", "outcome", "python", "reason", "route"),
        *("status", "stream", "type", "version"),
    }


def test_a_metric_has_a_bounded_number_of_series() -> None:
    counted = metrics.Counter("c_total", "A counter.", "label")
    timed = metrics.Histogram("h_seconds", "A histogram.", [1, 2], "label")
    for number in range(3 * metrics.MAX_SERIES):
        counted.add(f"value {number}")
        timed.observe(number % 4, f"value {number}")
    assert len(counted.collect().samples) <= metrics.MAX_SERIES + 1
    total = sum(sample.value for sample in counted.collect().samples)
    assert total == 3 * metrics.MAX_SERIES
    counts = [sample for sample in timed.collect().samples if sample.suffix == "_count"]
    assert len(counts) <= metrics.MAX_SERIES // 2 + 1
    assert sum(sample.value for sample in counts) == 3 * metrics.MAX_SERIES


def test_text_is_escaped_and_a_histogram_is_cumulative() -> None:
    counted = metrics.Counter("c_total", 'A "help"\nwith \\ lines.', "label")
    counted.add('a "value"\nwith \\ lines')
    timed = metrics.Histogram("h_seconds", "Times.", [0.5, 2])
    for seconds in (0.5, 1, 1, 7):
        timed.observe(seconds)
    text = metrics.expose([counted.collect(), timed.collect()])
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["c"].samples[0].labels == {"label": 'a "value"\nwith \\ lines'}
    values = {(each.name, each.labels.get("le")): each.value for each in families["h_seconds"].samples}
    assert values == {
        ("h_seconds_bucket", "0.5"): 1,
        ("h_seconds_bucket", "2"): 3,
        ("h_seconds_bucket", "+Inf"): 4,
        ("h_seconds_sum", None): 9.5,
        ("h_seconds_count", None): 4,
    }


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e300, 0.1, 3.0])
def test_every_number_can_be_exposed(value: float) -> None:
    [family] = text_string_to_metric_families(metrics.expose([metrics.gauge("g", "A gauge.", value)]))
    assert repr(float(family.samples[0].value)) == repr(value)


async def test_every_metric_is_documented(own: ServerProcess) -> None:
    documented = (Path(__file__).parents[2] / "docs/observability.md").read_text()
    async with client_of(own) as client:
        text = (await scrape(client)).text
    names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    tables, _, examples = documented.partition("### Scrape")
    assert set(re.findall(r"^\| `(\w+)`", tables, re.MULTILINE)) == names
    used = re.findall(r"(?:sandbox_agent|process)_\w+", examples.partition("## Logs")[0])
    assert {name.removesuffix("_bucket") for name in used} <= names
    assert json.loads((Path(__file__).parents[2] / "docs/openapi.json").read_text())["paths"]["/v1/metrics"]
