"""Generate the OpenAPI document from the operations and the structs of the wire format."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import msgspec

from sandbox_agent.errors import InvalidRequestError, ProblemError, TokenInvalidError
from sandbox_agent.server.config import DEFAULT_PORT
from sandbox_agent.server.http.operations import BODY_ERRORS, Answer, Operation
from sandbox_agent.server.http.problems import PROBLEM_JSON
from sandbox_agent.wire import api
from sandbox_agent.wire.api import ProblemDetails
from sandbox_agent.wire.universal import EVENT_DATA_TYPES, EventSource

_REF = "#/components/schemas/{name}"
# An attribute in a docstring in Google style, with its continuation lines.
_ATTRIBUTE = re.compile(r"^    (\w+): (.+(?:\n     +.+)*)", re.MULTILINE)
_WHITE_SPACE = re.compile(r"\s+")
_TAGS = {
    "meta": "The server itself.",
    "acp": "Connections to agents: JSON-RPC envelopes of the Agent Client Protocol over HTTP.",
    "agents": "The agents that this server can start.",
    "files": "The files of the sandbox.",
    "config": "MCP servers and skills of folders, for the sessions in them.",
    "sessions": "Sessions, their events, and the permissions and questions of their agents.",
}
_ACP_ENVELOPE: dict[str, Any] = {
    "type": "object",
    "description": "A JSON-RPC 2.0 envelope of the Agent Client Protocol.",
    "required": ["jsonrpc"],
    "properties": {
        "jsonrpc": {"type": "string"},
        "id": {"nullable": True},
        "method": {"type": "string", "nullable": True},
        "params": {"nullable": True},
        "result": {"nullable": True},
        "error": {"nullable": True},
    },
}


def build_document(operations: Iterable[Operation]) -> dict[str, Any]:
    """Build the OpenAPI 3.0 document of the operations."""
    from importlib.metadata import version

    operations = tuple(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "sandbox-agent",
            "version": version("sandbox-agent-py"),
            "description": "Run any coding agent over HTTP and server-sent events.",
            "license": {"name": "Apache-2.0"},
        },
        "servers": [
            {"url": "/", "description": "The server that this document comes from."},
            {"url": f"http://127.0.0.1:{DEFAULT_PORT}", "description": "A local server on its default port."},
        ],
        "tags": [{"name": name, "description": description} for name, description in _TAGS.items()],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": _schemas(operations),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}, {}],
    }


def _schemas(operations: Iterable[Operation]) -> dict[str, Any]:
    bodies: set[type] = {ProblemDetails}
    for operation in operations:
        declared = [operation.request_body, *(answer.body for answer in operation.answers.values())]
        bodies.update(body for body in declared if inspect.isclass(body))
        bodies.update(operation.schemas)
    _, components = msgspec.json.schema_components(
        sorted(bodies, key=lambda body: body.__name__), ref_template=_REF
    )
    for name in api.__all__:
        struct: type[msgspec.Struct] = getattr(api, name)
        if name in components and not struct.__struct_config__.omit_defaults:
            components[name]["required"] = list(components[name]["properties"])  # always written
    schemas = {name: _openapi_schema(schema) for name, schema in sorted(components.items())}
    schemas["AcpEnvelope"] = _ACP_ENVELOPE
    if bodies.issuperset(EVENT_DATA_TYPES.values()):
        schemas.update(_event_schemas())
    return schemas


def _event_schemas() -> dict[str, Any]:
    """Return one schema per type of event, and their union, in which ``type`` is the discriminator."""
    names = {kind: "".join(map(str.capitalize, kind.split("."))) + "Event" for kind in EVENT_DATA_TYPES}
    references = {kind: _REF.format(name=name) for kind, name in names.items()}
    return {
        "EventSource": {"type": "string", "enum": list(get_args(EventSource))},
        **{name: _event_schema(kind) for kind, name in names.items()},
        "UniversalEvent": {
            "description": "One event of a session; `type` selects the schema of the event and of its data.",
            "oneOf": [{"$ref": reference} for reference in references.values()],
            "discriminator": {"propertyName": "type", "mapping": references},
        },
    }


def _event_schema(kind: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": f"An event of type `{kind}`.",
        "required": ["event_id", "sequence", "time", "session_id", "synthetic", "source", "type", "data"],
        "properties": {
            "event_id": {"type": "string"},
            "sequence": {"type": "integer", "format": "int64", "minimum": 0},
            "time": {"type": "string"},
            "session_id": {"type": "string"},
            "native_session_id": {"type": "string", "nullable": True},
            "source": {"$ref": _REF.format(name="EventSource")},
            "synthetic": {"type": "boolean"},
            "type": {"type": "string", "enum": [kind]},
            "data": _ref(EVENT_DATA_TYPES[kind]),
            "raw": {"nullable": True, "description": "The agent's envelope, if the request asks for it."},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    summary, _, description = (inspect.getdoc(operation.endpoint) or "").partition("\n\n")
    document: dict[str, Any] = {
        "operationId": operation.endpoint.__name__,
        "summary": summary.removesuffix("."),
        "description": _WHITE_SPACE.sub(" ", description),
        "tags": [operation.tag],
        "responses": _responses(operation),
    }
    if operation.parameters:
        document["parameters"] = [
            {
                "name": parameter.name,
                "in": parameter.where,
                "required": parameter.required or parameter.where == "path",
                "description": parameter.description,
                "schema": dict(parameter.schema),
            }
            for parameter in operation.parameters
        ]
    if operation.request_body is not None:
        document["requestBody"] = {
            "required": True,
            "content": {operation.media_type: {"schema": _body_schema(operation.request_body)}},
        }
    return document


def _responses(operation: Operation) -> dict[str, Any]:
    responses = {str(status): _response(answer) for status, answer in operation.answers.items()}
    by_status: dict[int, list[str]] = {}
    of_parameters = (InvalidRequestError,) if operation.parameters else ()
    of_body = () if operation.request_body is None else BODY_ERRORS
    for error in (*of_parameters, *operation.errors, *of_body, TokenInvalidError):
        if issubclass(error, ProblemError) and error.status is not None:
            by_status.setdefault(error.status, []).append(error.name)
    for status, names in sorted(by_status.items()):
        responses[str(status)] = {
            "description": ", ".join(names),
            "content": {PROBLEM_JSON: {"schema": _ref(ProblemDetails)}},
        }
    return responses


def _response(answer: Answer) -> dict[str, Any]:
    response: dict[str, Any] = {"description": answer.description}
    if answer.headers:
        response["headers"] = {
            name: {"description": description, "schema": {"type": "string"}}
            for name, description in answer.headers.items()
        }
    if answer.body is not None:
        schema = _body_schema(answer.body)
        types = [answer.media_type] if isinstance(answer.media_type, str) else answer.media_type
        response["content"] = {media_type.partition(";")[0]: {"schema": schema} for media_type in types}
    return response


def _body_schema(body: type | Mapping[str, Any]) -> Mapping[str, Any]:
    return _ref(body) if isinstance(body, type) else body


def _ref(body: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=body.__name__)}


def _openapi_schema(schema: Any) -> Any:
    """Convert a JSON Schema into one of OpenAPI 3.0.

    ``anyOf [..., null]`` becomes ``nullable``, base64 the format ``byte``, an enumeration of strings gets its
    type, and an empty ``required`` is left out.
    """
    if isinstance(schema, list):
        return [_openapi_schema(item) for item in schema]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(schema, dict):
        return schema
    members: dict[str, Any] = {key: _openapi_schema(value) for key, value in schema.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if members.pop("contentEncoding", None) == "base64":
        members["format"] = "byte"
    choices: list[dict[str, Any]] | None = members.get("anyOf")
    if choices is not None and {"type": "null"} in choices:
        kept = [choice for choice in choices if choice != {"type": "null"}]
        del members["anyOf"]
        if len(kept) > 1:
            members["anyOf"] = kept
        else:
            members.update({"allOf": kept} if "$ref" in kept[0] else kept[0])
        members["nullable"] = True
    if members.get("default", ...) is None:
        del members["default"]
    if members.get("required") == []:
        del members["required"]
    if isinstance(members.get("enum"), list):
        members.setdefault("type", "string")
    if isinstance(members.get("description"), str):
        _describe(members)
    return members


def _describe(schema: dict[str, Any]) -> None:
    """Move the attributes in the docstring of a struct to the descriptions of its properties."""
    text, _, attributes = inspect.cleandoc(schema["description"]).partition("\n\nAttributes:\n")
    schema["description"] = text
    described = {
        name.replace("_", ""): _WHITE_SPACE.sub(" ", what) for name, what in _ATTRIBUTE.findall(attributes)
    }
    properties: dict[str, dict[str, Any]] = schema.get("properties", {})
    for name, member in properties.items():
        found = described.get(name.replace("_", "").lower())
        if found and "$ref" not in member:
            member["description"] = found[0].upper() + found[1:]
