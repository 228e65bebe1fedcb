"""Writes the TypeScript types of universal events, from the schemas of the OpenAPI document.

python scripts/event_types.py            writes docs/events.d.ts
python scripts/event_types.py --check    fails if that file is not what it would write
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from sandbox_agent.server.app import openapi_json

FILE = Path(__file__).parents[1] / "docs/events.d.ts"
ROOT = "UniversalEvent"
HEAD = """\
// The universal events of sandbox-agent-py, as GET /v1/sessions/{id}/events and its stream send them.
// Written by scripts/event_types.py from the schemas of the OpenAPI document (docs/openapi.json).
"""
TAIL = f"""
/** A part of an item. */
export type ContentPart = UniversalItem["content"][number];

/** The name of the TypeScript SDK 0.1. */
export type AgentEvent = {ROOT};
"""
_SCALARS = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}
_WIDTH = 100


def text() -> str:
    """Return the file."""
    schemas: dict[str, Any] = json.loads(openapi_json())["components"]["schemas"]
    names = list(dict.fromkeys(_reachable(schemas, ROOT)))
    return "\n".join([HEAD, *(_declaration(name, schemas[name]) for name in names)]) + TAIL


def _reachable(schemas: Mapping[str, Any], name: str) -> Iterator[str]:
    yield name
    for reference in _references(schemas[name]):
        yield from _reachable(schemas, reference)


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        members = cast("dict[str, object]", schema)
        if "$ref" in members:
            yield str(members["$ref"]).rpartition("/")[2]
        for value in members.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in cast("list[object]", schema):
            yield from _references(value)


def _declaration(name: str, schema: Mapping[str, Any]) -> str:
    comment = _comment(schema, "")
    if "properties" not in schema:
        return f"{comment}export type {name} = {_type(schema)};\n"
    required = schema.get("required", [])
    lines = [
        f"{_comment(member, '  ')}  {key}{'' if key in required else '?'}: {_type(member)};"
        for key, member in schema["properties"].items()
    ]
    return "\n".join([f"{comment}export interface {name} {{", *lines, "}", ""])


def _type(schema: Mapping[str, Any]) -> str:
    """Return the type of a schema.

    Raises:
        ValueError: it has a form that this script does not know.
    """
    options = [
        union for key in ("oneOf", "anyOf") if (union := [_type(each) for each in schema.get(key, [])])
    ]
    match schema:
        case {"$ref": str(reference)}:
            found = reference.rpartition("/")[2]
        case {"allOf": [only]}:
            found = _type(only)
        case {"enum": [*values]}:
            found = " | ".join(map(json.dumps, values))
        case _ if options:
            found = (
                " | ".join(options[0])
                if len(options[0]) < 5
                else "".join(f"\n  | {each}" for each in options[0])
            )
        case {"type": "array", "items": items}:
            found = f"Array<{_type(items)}>"
        case {"type": str(kind)} if kind in _SCALARS:
            found = _SCALARS[kind]
        case _ if "type" not in schema:
            return "unknown"  # any JSON value, null included
        case _:
            raise ValueError(f"no TypeScript type is known for {schema}")
    return f"{found} | null" if schema.get("nullable") else found


def _comment(schema: Mapping[str, Any], indent: str) -> str:
    words = str(schema.get("description", "")).replace("``", "`")
    if not words:
        return ""
    lines = textwrap.wrap(words, _WIDTH - len(indent))
    if len(lines) == 1:
        return f"{indent}/** {lines[0]} */\n"
    return "".join([f"{indent}/**\n", *(f"{indent} * {line}\n" for line in lines), f"{indent} */\n"])


def main() -> None:
    """Write the file, or compare it."""
    wanted = text()
    if "--check" not in sys.argv:
        FILE.write_text(wanted, encoding="utf-8")
    elif not FILE.exists() or FILE.read_text(encoding="utf-8") != wanted:
        sys.exit("docs/events.d.ts is not what the schemas say: run 'python scripts/event_types.py'")


if __name__ == "__main__":
    main()
