"""Checks MCP servers that a caller passed, and converts them to ACP's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

_STDIO = {"name": True, "command": True, "args": False, "env": False}
_HTTP = {"name": True, "url": True, "headers": False}
# The members of each transport, and whether they are required.
_MEMBERS = {"stdio": _STDIO, "http": _HTTP, "sse": _HTTP}


def to_acp(servers: Sequence[object]) -> list[dict[str, Any]]:
    """Return MCP servers in ACP's shape; ``env`` and ``headers`` may be dicts.

    Raises:
        ValueError: a server is invalid, or has a member that ACP does not define.
    """
    return [_convert(server, f"mcp_servers[{index}]") for index, server in enumerate(servers)]


def _convert(server: object, where: str) -> dict[str, Any]:
    if not isinstance(server, Mapping):
        raise ValueError(f"{where} must be a dict, not {type(server).__name__}")
    given = cast("Mapping[str, Any]", server)
    kind = given.get("type", "stdio")
    if kind not in _MEMBERS:
        raise ValueError(f"{where}.type must be one of {', '.join(_MEMBERS)}, not {kind!r}")
    known = _MEMBERS[kind]
    for name in given:
        if name not in known and name not in ("type", "_meta"):
            raise ValueError(
                f"{where}: unknown member {name!r}; a {kind} server has {', '.join(known)}, _meta"
            )
    for name, required in known.items():
        if required and name not in given:
            raise ValueError(f"{where}: {name!r} is missing")
    converted = {name: list(value) if name == "args" else value for name, value in given.items()}
    if kind == "stdio":
        converted.setdefault("args", [])
    pairs = "env" if kind == "stdio" else "headers"
    converted[pairs] = _to_pairs(given.get(pairs) or [], f"{where}.{pairs}")
    return converted


def _to_pairs(value: object, where: str) -> list[Any]:
    if isinstance(value, Mapping):
        pairs = [{"name": name, "value": text} for name, text in cast("Mapping[str, object]", value).items()]
    else:
        pairs = list(cast("Sequence[Any]", value)) if isinstance(value, list | tuple) else [None]
    for pair in cast("list[object]", pairs):
        fields = cast("dict[str, object]", pair) if isinstance(pair, dict) else {}
        if not isinstance(fields.get("name"), str) or not isinstance(fields.get("value"), str):
            raise ValueError(f"{where} must be a dict of strings, or a list of name and value, not {value!r}")
    return pairs
