"""Adds the end of an agent's stderr to its error responses."""

from __future__ import annotations

from typing import Any, cast

from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, loads


def with_stderr(response: bytes, tail: str) -> bytes:
    """Return an error response with the end of stderr in ``error.data.agentStderr``.

    Data that is present and not an object is left as the agent wrote it.

    Args:
        response: the agent's response.
        tail: the end of its stderr.
    """
    if not tail or b'"error"' not in response:
        return response
    try:
        document: dict[str, Any] = loads(response)
    except InvalidEnvelopeError:  # nested too deeply to be decoded
        return response
    error: Any = document.get("error")
    if not isinstance(error, dict):
        return response
    members = cast("dict[str, Any]", error)
    data: Any = members.get("data")
    if data is None:
        data = members["data"] = {}
    if not isinstance(data, dict):
        return response
    data["agentStderr"] = tail
    return dumps(document)
