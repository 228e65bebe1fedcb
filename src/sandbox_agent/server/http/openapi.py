"""The OpenAPI document, generated from the operations and the wire's structs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import msgspec

from sandbox_agent.errors import ProblemError, TokenInvalidError
from sandbox_agent.server.http.event_schema import EVENT_DATA_TYPES, EVENT_SCHEMAS
from sandbox_agent.server.http.operations import Answer, Operation
from sandbox_agent.server.http.problems import PROBLEM_JSON
from sandbox_agent.wire import api
from sandbox_agent.wire.api import ProblemDetails

__all__ = ["ACP_ENVELOPE_SCHEMA", "build_document"]

ACP_ENVELOPE_SCHEMA: dict[str, Any] = {
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
_REF = "#/components/schemas/{name}"


def build_document(operations: Iterable[Operation]) -> dict[str, Any]:
    """Return the OpenAPI 3.0 document of the operations."""
    operations = tuple(operations)
    bodies = {
        answer.body for operation in operations for answer in operation.answers.values() if _is_type(answer)
    }
    bodies |= {each.request_body for each in operations if inspect.isclass(each.request_body)}
    bodies |= {schema for each in operations for schema in each.schemas}
    _, components = msgspec.json.schema_components(
        sorted(bodies | {ProblemDetails}, key=lambda body: body.__name__), ref_template=_REF
    )
    for name in api.__all__:
        struct: type[msgspec.Struct] = getattr(api, name)
        if name in components and not struct.__struct_config__.omit_defaults:
            components[name]["required"] = list(components[name]["properties"])  # always written
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "sandbox-agent",
            "version": version("sandbox-agent-py"),
            "description": "Any coding agent over HTTP and server-sent events.",
            "license": {"name": "Apache-2.0"},
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {
                **{name: _nullable(schema) for name, schema in sorted(components.items())},
                "AcpEnvelope": ACP_ENVELOPE_SCHEMA,
                **(EVENT_SCHEMAS if bodies.issuperset(EVENT_DATA_TYPES) else {}),
            },
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}, {}],
    }


def _is_type(answer: Answer) -> bool:
    return inspect.isclass(answer.body)


def _operation(operation: Operation) -> dict[str, Any]:
    document: dict[str, Any] = {
        "operationId": operation.operation_id,
        "summary": operation.summary,
        "description": operation.description,
        "tags": [operation.tag],
        "responses": _responses(operation),
    }
    if operation.parameters:
        document["parameters"] = [
            {
                "name": parameter.name,
                "in": parameter.where,
                "required": parameter.where == "path",
                "description": parameter.description,
                "schema": dict(parameter.schema),
            }
            for parameter in operation.parameters
        ]
    if operation.request_body is not None:
        body = operation.request_body
        document["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(body) if inspect.isclass(body) else body}},
        }
    return document


def _responses(operation: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, answer in operation.answers.items():
        responses[str(status)] = {"description": answer.description}
        if answer.body is not None:
            schema = _ref(answer.body) if _is_type(answer) else answer.body
            responses[str(status)]["content"] = {answer.media_type: {"schema": schema}}
    by_status: dict[int, list[str]] = {}
    for error in (*operation.errors, TokenInvalidError):
        if issubclass(error, ProblemError) and error.status is not None:
            by_status.setdefault(error.status, []).append(error.name)
    for status, names in sorted(by_status.items()):
        responses[str(status)] = {
            "description": ", ".join(names),
            "content": {PROBLEM_JSON: {"schema": _ref(ProblemDetails)}},
        }
    return responses


def _ref(body: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=body.__name__)}


def _nullable(schema: Any) -> Any:
    """Turn JSON Schema's ``anyOf [..., null]`` into OpenAPI 3.0's ``nullable``."""
    if isinstance(schema, list):
        return [_nullable(item) for item in schema]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(schema, dict):
        return schema
    members: dict[str, Any] = {key: _nullable(value) for key, value in schema.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    choices: list[dict[str, Any]] | None = members.get("anyOf")
    if choices is not None and {"type": "null"} in choices:
        kept = [choice for choice in choices if choice != {"type": "null"}]
        del members["anyOf"]
        members.update({"allOf": kept} if "$ref" in kept[0] else kept[0])
        members["nullable"] = True
    if members.get("default", ...) is None:
        del members["default"]
    return members
