import json
from typing import Any

import pytest

from sandbox_agent.agents.quirks import adapt


def envelope(method: str, params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


@pytest.mark.parametrize(
    ("agent_id", "method"),
    [("claude", "initialize"), ("mock", "session/new"), ("pi", "session/prompt"), ("pi", None)],
)
def test_an_envelope_goes_on_as_it_is_where_there_is_no_quirk(agent_id: str, method: str | None) -> None:
    data = b'{"protocolVersion":"1"} not even JSON'
    assert adapt(agent_id, method, data) is data


@pytest.mark.parametrize(
    ("version", "number"),
    [('"1"', 1), ('"2"', 2), ('"1.0"', 1), ('"2025-06-18"', 1), ('"20250618"', 1), ('""', 1), ('"v1"', 1)],
)
def test_pi_gets_its_protocol_version_as_a_number(version: str, number: int) -> None:
    data = f'{{"id":"a","method":"initialize","params":{{"x":[1.50],"protocolVersion":{version}}}}}'
    expected = f'{{"id":"a","method":"initialize","params":{{"x":[1.50],"protocolVersion":{number}}}}}'
    assert adapt("pi", "initialize", data.encode()) == expected.encode()


@pytest.mark.parametrize("params", [{"protocolVersion": 1}, {"protocolVersion": None}, {}])
def test_pis_initialize_goes_on_as_it_is_where_the_version_is_no_string(params: dict[str, Any]) -> None:
    data = envelope("initialize", params)
    assert adapt("pi", "initialize", data) is data


@pytest.mark.parametrize("method", ["session/new", "session/load", "session/resume"])
def test_pi_gets_mcp_servers_where_there_are_none(method: str) -> None:
    adapted = json.loads(adapt("pi", method, envelope(method, {"cwd": "/w"})))
    assert adapted["params"] == {"cwd": "/w", "mcpServers": []}
    assert adapted["id"] == 1


def test_pi_gets_params_where_there_are_none() -> None:
    data = b'{"jsonrpc":"2.0","id":1,"method":"session/new"}'
    assert json.loads(adapt("pi", "session/new", data))["params"] == {"mcpServers": []}


def test_pi_keeps_the_mcp_servers_that_it_is_given() -> None:
    data = envelope("session/new", {"cwd": "/w", "mcpServers": [{"name": "x"}]})
    assert adapt("pi", "session/new", data) is data


@pytest.mark.parametrize("data", [b"", b"[]", b'{"params":[]}', b'{"params":null}', b"{", b"[" * 100_000])
def test_what_cannot_be_read_goes_on_as_it_is(data: bytes) -> None:
    assert adapt("pi", "session/new", data) is data
