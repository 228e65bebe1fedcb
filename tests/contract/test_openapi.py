"""Our OpenAPI document holds all that the published servers' documents say of the paths served by now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from sandbox_agent.server.app import openapi_json
from sandbox_agent.wire.universal import EVENT_DATA_TYPES

JsonObject = dict[str, Any]

DATA = Path(__file__).parent / "data"
CHECKED_IN = Path(__file__).parents[2] / "docs/openapi.json"
OURS: JsonObject = json.loads(openapi_json())
# What is served by now; a path that is served later is added here.
DUE = {
    "openapi-0.4.2.json": [
        ("get", "/v1/health"),
        ("get", "/v1/acp"),
        ("get", "/v1/acp/{server_id}"),
        ("post", "/v1/acp/{server_id}"),
        ("delete", "/v1/acp/{server_id}"),
        ("get", "/v1/agents"),
        ("get", "/v1/agents/{agent}"),
        ("post", "/v1/agents/{agent}/install"),
        ("get", "/v1/fs/entries"),
        ("delete", "/v1/fs/entry"),
        ("get", "/v1/fs/file"),
        ("put", "/v1/fs/file"),
        ("post", "/v1/fs/mkdir"),
        ("post", "/v1/fs/move"),
        ("get", "/v1/fs/stat"),
        ("post", "/v1/fs/upload-batch"),
        ("get", "/v1/processes"),
        ("post", "/v1/processes"),
        ("get", "/v1/processes/config"),
        ("post", "/v1/processes/config"),
        ("post", "/v1/processes/run"),
        ("get", "/v1/processes/{id}"),
        ("delete", "/v1/processes/{id}"),
        ("post", "/v1/processes/{id}/input"),
        ("post", "/v1/processes/{id}/kill"),
        ("get", "/v1/processes/{id}/logs"),
        ("post", "/v1/processes/{id}/stop"),
        ("post", "/v1/processes/{id}/terminal/resize"),
        ("get", "/v1/processes/{id}/terminal/ws"),
        ("get", "/v1/config/mcp"),
        ("put", "/v1/config/mcp"),
        ("delete", "/v1/config/mcp"),
        ("get", "/v1/config/skills"),
        ("put", "/v1/config/skills"),
        ("delete", "/v1/config/skills"),
    ],
    "openapi-0.1-sessions.json": [
        ("get", "/v1/health"),
        ("get", "/v1/agents"),
        ("get", "/v1/agents/{agent}/models"),
        ("get", "/v1/agents/{agent}/modes"),
        ("get", "/v1/sessions"),
        ("post", "/v1/sessions/{session_id}"),
        ("get", "/v1/sessions/{session_id}/events"),
        ("get", "/v1/sessions/{session_id}/events/sse"),
        ("post", "/v1/sessions/{session_id}/messages"),
        ("post", "/v1/sessions/{session_id}/messages/stream"),
        ("post", "/v1/sessions/{session_id}/permissions/{permission_id}/reply"),
        ("post", "/v1/sessions/{session_id}/questions/{question_id}/reject"),
        ("post", "/v1/sessions/{session_id}/questions/{question_id}/reply"),
        ("post", "/v1/sessions/{session_id}/terminate"),
    ],
}
# Their server answers so on a system where it has no processes; ours does not run on one.
UNSUPPORTED = {"501"}
# In 0.1 the response had no body; 0.4.2's has one.
REPLACED = {"openapi-0.1-sessions.json": {("post", "/v1/agents/{agent}/install")}}
# What 0.1's /v1/agents said of a shared agent process and 0.4.2's, the newer of the two, does not.
_AGENT = "get /v1/agents 200.agents[]"
SUPERSEDED = {
    f"{_AGENT}.capabilities.variants",
    f"{_AGENT}.capabilities.variants is required",
    f"{_AGENT}.serverStatus.baseUrl",
    f"{_AGENT}.serverStatus.lastError",
    f"{_AGENT}.serverStatus.restartCount",
    f"{_AGENT}.serverStatus.restartCount is required",
}
CASES = [(file, method, path) for file, operations in DUE.items() for method, path in operations]


def theirs(file: str) -> JsonObject:
    document: JsonObject = json.loads((DATA / file).read_text())
    return document


def resolved(document: JsonObject, schema: JsonObject) -> JsonObject:
    """Return the schema that a reference, or a nullable one, stands for."""
    while True:
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        elif len(schema.get("allOf", [])) == 1:
            schema = schema["allOf"][0]
        else:
            return schema


def missing(
    their_doc: JsonObject, their: JsonObject, our: JsonObject, at: str, depth: int = 0
) -> Iterator[str]:
    """Name what their schema has and ours has not."""
    their, our = resolved(their_doc, their), resolved(OURS, our)
    if depth > 12:
        return
    if "discriminator" in our and "properties" in their:
        for variant in our["oneOf"]:
            yield from missing(their_doc, their, variant, f"{at} as {variant['$ref']}", depth + 1)
        return
    for name, schema in their.get("properties", {}).items():
        if name not in our.get("properties", {}):
            yield f"{at}.{name}"
        else:
            yield from missing(their_doc, schema, our["properties"][name], f"{at}.{name}", depth + 1)
    for name in their.get("required", []):
        if name not in our.get("required", []):
            yield f"{at}.{name} is required"
    if "items" in their:
        if "items" not in our:
            yield f"{at}[]"
        else:
            yield from missing(their_doc, their["items"], our["items"], f"{at}[]", depth + 1)


def bodies(document: JsonObject, holder: JsonObject) -> list[JsonObject]:
    return [content["schema"] for content in holder.get("content", {}).values() if "schema" in content]


def test_the_checked_in_document_is_current() -> None:
    assert CHECKED_IN.read_bytes() == openapi_json(), (
        "docs/openapi.json is old: python -c 'import sys; from sandbox_agent.server.app import openapi_json; "
        "sys.stdout.buffer.write(openapi_json())' > docs/openapi.json"
    )


@pytest.mark.parametrize("file", DUE)
def test_every_path_that_we_serve_and_they_have_is_compared(file: str) -> None:
    both = {
        (method, path)
        for path, methods in theirs(file)["paths"].items()
        for method in methods
        if method in OURS["paths"].get(path, {})
    }
    assert both - REPLACED.get(file, set()) == set(DUE[file])


@pytest.mark.parametrize(("file", "method", "path"), CASES)
def test_our_operation_has_their_parameters_and_statuses(file: str, method: str, path: str) -> None:
    their, our = theirs(file)["paths"][path][method], OURS["paths"][path][method]
    ours = {(each["in"], each["name"]): each for each in our.get("parameters", [])}
    for parameter in their.get("parameters", []):
        found = ours[parameter["in"], parameter["name"]]
        assert found["required"] is parameter["required"]
        assert found["schema"]["type"] == resolved(theirs(file), parameter["schema"])["type"]
    assert set(their["responses"]) - UNSUPPORTED <= set(our["responses"])
    assert ("requestBody" in their) == ("requestBody" in our)
    if file == "openapi-0.4.2.json":
        assert our["operationId"] == their["operationId"]


@pytest.mark.parametrize(("file", "method", "path"), CASES)
def test_our_bodies_have_their_fields(file: str, method: str, path: str) -> None:
    document = theirs(file)
    their, our = document["paths"][path][method], OURS["paths"][path][method]
    pairs = [
        (status, response, our["responses"][status])
        for status, response in their["responses"].items()
        if status not in UNSUPPORTED
    ]
    if "requestBody" in their:
        pairs.append(("request", their["requestBody"], our["requestBody"]))
    lacking = [
        name
        for at, theirs_, ours_ in pairs
        for schema in bodies(document, theirs_)
        for name in missing(document, schema, bodies(OURS, ours_)[0], f"{method} {path} {at}")
    ]
    assert [name for name in lacking if name not in SUPERSEDED] == []


def test_what_is_superseded_is_not_in_the_newer_document() -> None:
    newer = theirs("openapi-0.4.2.json")["components"]["schemas"]
    fields = {*newer["AgentCapabilities"]["properties"], *newer["ServerStatusInfo"]["properties"]}
    assert not fields & {"variants", "baseUrl", "lastError", "restartCount"}


def test_the_document_is_valid() -> None:
    validate(OURS)


def test_the_servers_are_the_one_that_answers_and_the_default() -> None:
    assert [server["url"] for server in OURS["servers"]] == ["/", "http://127.0.0.1:2468"]


PARAMETERS = [
    (f"{method} {path}", parameter)
    for path, methods in OURS["paths"].items()
    for method, operation in methods.items()
    for parameter in operation.get("parameters", [])
]


@pytest.mark.parametrize(("operation", "parameter"), PARAMETERS)
def test_a_parameter_has_the_limits_of_the_code(operation: str, parameter: JsonObject) -> None:
    schema = parameter["schema"]
    if schema["type"] == "integer":
        assert {"minimum", "maximum"} <= set(schema)
    if parameter["in"] == "path":
        assert schema["minLength"] == 1
    if parameter["name"] in {
        "server_id",
        "session_id",
        "permission_id",
        "question_id",
        "sandbox-agent-client",
    }:
        assert schema["maxLength"] == 256


def test_an_event_is_told_apart_by_its_type() -> None:
    schemas = OURS["components"]["schemas"]
    event = schemas["UniversalEvent"]
    assert event["discriminator"]["propertyName"] == "type"
    assert set(event["discriminator"]["mapping"]) == set(EVENT_DATA_TYPES)
    assert [choice["$ref"] for choice in event["oneOf"]] == list(event["discriminator"]["mapping"].values())
    for kind, reference in event["discriminator"]["mapping"].items():
        properties = resolved(OURS, {"$ref": reference})["properties"]
        assert properties["type"]["enum"] == [kind]
        assert properties["data"]["$ref"].endswith(f"/{EVENT_DATA_TYPES[kind].__name__}")


def test_every_reference_of_our_document_leads_somewhere() -> None:
    names = set(OURS["components"]["schemas"])
    text = json.dumps(OURS)
    used = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert used <= names
    assert names <= used | {"AcpEnvelope"}
