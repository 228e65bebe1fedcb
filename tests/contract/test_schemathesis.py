"""Whatever fits our document, and whatever doesn't: a documented answer, never a crash."""

from __future__ import annotations

import fcntl
import importlib
import itertools
import json
import os
from collections.abc import Generator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from sandbox_agent.server.app import openapi_json
from tests.support.effort import repeats
from tests.support.servers import ServerProcess, our_server

# A body that asks an agent something it never answers ends after a second, not after two minutes.
OPTIONS = ("--request-timeout", "1", "--max-body-bytes", "200000", "--max-upload-bytes", "200000")
EXAMPLES = repeats(25, 150)
# A session with events, which every second example of these paths is about. (Its stream has no end.)
STORED = "stored"
STORED_PATHS = {"/v1/sessions/{session_id}/events", "/v1/sessions/{session_id}/export"}

document: dict[str, Any] = json.loads(openapi_json())
post = document["paths"]["/v1/acp/{server_id}"]["post"]
# the agent that every machine has, and what no machine has; and methods that the agent knows
for parameter in post["parameters"]:
    if parameter["name"] == "agent":
        parameter["schema"] = {"type": "string", "enum": ["mock", "mock", "bogus", "codex", "", "m/ock"]}
# what can be installed is not: no test downloads hundreds of megabytes
for parameter in document["paths"]["/v1/agents/{agent}/install"]["post"]["parameters"]:
    parameter["schema"] = {"type": "string", "enum": ["mock", "bogus", "cursor", "m/ock"]}
# no command does harm, and each ends soon: so do the streams of its output
for name in ("ProcessCreateRequest", "ProcessRunRequest"):
    command = {"type": "string", "enum": ["true", "false", "echo", "no-such-command", "/", ""]}
    document["components"]["schemas"][name]["properties"]["command"] = command
post["requestBody"]["content"]["application/json"]["schema"] = {
    "type": "object",
    "required": ["jsonrpc"],
    "properties": {
        "jsonrpc": {"type": "string"},
        "id": {"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "number"}, {}]},
        "method": {"anyOf": [{"enum": ["initialize", "session/new", "session/list"]}, {"type": "string"}]},
        "params": {"anyOf": [{"type": "object"}, {"type": "array"}, {}]},
        "result": {},
    },
}
# schemathesis' own types are partly unknown to a strict checker
general: Any = importlib.import_module("schemathesis.checks")
openapi: Any = importlib.import_module("schemathesis.specs.openapi.checks")
builder: Any = importlib.import_module("schemathesis.pytest._test_builder")
feedback: Any = importlib.import_module("schemathesis.generation.feedback")
constants: Any = importlib.import_module("schemathesis.python._constants.orchestrator")
schemathesis.serializer("application/x-tar")(lambda _, value: value if isinstance(value, bytes) else b"x")
checks = [
    general.not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_schema_conformance,
]
schema: Any = schemathesis.openapi.from_dict(document)
ALL = [(path, method) for path, of_path in document["paths"].items() for method in of_path]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    """A server that is sent what schemathesis thinks of."""
    folder = tmp_path_factory.mktemp("schemathesis")
    # Its paths are random, and files are deleted: nothing outside of this folder may be reached.
    (folder / "root").mkdir()
    options = (*OPTIONS, "--fs-root", str(folder / "root"))
    with our_server(folder, *options, env={"PATH": "/usr/bin:/bin", "HOME": str(folder / "root")}) as running:
        session = f"{running.url}/v1/sessions/{STORED}"
        httpx2.post(session, json={"agent": "mock"}).raise_for_status()
        httpx2.post(f"{session}/messages/stream", json={"message": "diff"}, timeout=30).raise_for_status()
        yield running


# What the examples of all operations reach: statuses of methods, and of the paths of the stored session.
EXPECTED = {
    *(("POST", 200), ("POST", 202), ("POST", 400), ("POST", 404), ("DELETE", 204), ("GET", 200)),
    *((path, 200) for path in STORED_PATHS),
}
operations: set[str] = set()
seen: set[tuple[str, int]] = set()
numbers = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def reached(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Check EXPECTED once all operations were tested, by however many processes."""
    yield
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / "schemathesis.json").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        before = json.loads(file.read() or "[[], []]")
        operations.update(before[0])
        seen.update((what, status) for what, status in before[1])
        file.truncate(0)
        json.dump([sorted(operations), sorted(seen)], file)
    if len(operations) == len(ALL):
        assert seen >= EXPECTED


SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


@pytest.mark.loops
@pytest.mark.parametrize(
    ("path", "method"), [pytest.param(path, method, id=f"{method.upper()} {path}") for path, method in ALL]
)
def test_every_answer_is_a_documented_one(path: str, method: str, target: ServerProcess) -> None:
    # As schema.parametrize(), which makes the examples of all operations in each process at collection.
    test = builder.build_operation_test(
        config=schema.config,
        operation=schema[path][method],
        test_func=lambda case: send(case, target),  # pyright: ignore[reportUnknownLambdaType]
        given_kwargs={},
        feedback=feedback.FeedbackSources(
            constants_value_source=constants.make_constants_value_source(schema)
        ),
        explicit_settings=SETTINGS,
    )
    test()


def send(case: Any, target: ServerProcess) -> None:
    """Send an example and check the answer."""
    stored = case.operation.path in STORED_PATHS and next(numbers) % 2 == 0
    if stored:
        case.path_parameters["session_id"] = STORED
    if case.operation.path == "/v1/fs/watch":
        # the stream of a folder that exists has no end, either
        case.query = {**(case.query or {}), "path": "missing/folder"}
    response = case.call_and_validate(base_url=target.url, checks=checks, timeout=30)
    operations.add(case.operation.label)
    seen.add((case.operation.method.upper(), response.status_code))
    if stored:
        seen.add((case.operation.path, response.status_code))
    if case.operation.method == "post":
        # the stream of events has no end: there is one only where a POST left a connection behind
        case.call(base_url=target.url, method="DELETE")
