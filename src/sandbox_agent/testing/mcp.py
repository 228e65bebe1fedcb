"""A small MCP server with one tool, ``add_numbers``, over stdio or HTTP."""

from __future__ import annotations

import json
import sys
from typing import Any

from sandbox_agent.wire.jsonrpc import members

TOOL = "add_numbers"
_PROTOCOL_VERSION = "2025-06-18"
_SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
    "required": ["a", "b"],
}


def answer(message: dict[str, Any]) -> dict[str, Any] | None:
    """Return the response to a JSON-RPC message, or None if it is not a request."""
    if "id" not in message or "method" not in message:
        return None
    result = _result(str(message["method"]), members(message.get("params")))
    if result is None:
        return _response(message, error={"code": -32601, "message": "Method not found"})
    return _response(message, result=result)


def _result(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    if method == "initialize":
        return {
            "protocolVersion": params.get("protocolVersion") or _PROTOCOL_VERSION,
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "tiny", "version": "1"},
        }
    if method == "ping":
        return {}
    if method == "tools/list":
        description = "Adds two numbers."
        return {"tools": [{"name": TOOL, "description": description, "inputSchema": _SCHEMA}]}
    if method == "tools/call":
        arguments = members(params.get("arguments"))
        total = arguments.get("a", 0) + arguments.get("b", 0)
        return {"content": [{"type": "text", "text": f"The sum is {total}."}], "isError": False}
    return None


def _response(message: dict[str, Any], **outcome: object) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": message["id"], **outcome}


def main() -> None:
    """Serve on standard input and output."""
    for line in sys.stdin:
        response = answer(json.loads(line))
        if response is not None:
            sys.stdout.write(json.dumps(response) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
