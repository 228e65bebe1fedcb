"""Public types and errors are pickled and copied with all that they have."""

from __future__ import annotations

import copy
import inspect
import pickle
import typing
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect as shapes

import sandbox_agent
from sandbox_agent import Capability, ProblemError, SandboxAgentError
from sandbox_agent.wire.objects import PermissionOption, PermissionToolCall
from sandbox_agent.wire.universal import decode_event
from tests.client.scripted_sessions import event

# Errors whose arguments are not one message.
ERRORS: dict[str, SandboxAgentError] = {
    type(error).__name__: error
    for error in (
        sandbox_agent.AcpRpcError(-32601, "no", {"a": [1]}),
        sandbox_agent.PersistError("bad", session_id="s"),
        sandbox_agent.SandboxDestroyedError("box", "e2b"),
        sandbox_agent.SessionBusyError("s", "process 7"),
        sandbox_agent.SessionFencedError("s", 3),
        sandbox_agent.SessionNotFoundError("s"),
        sandbox_agent.SettingNotConfirmedError("s", {"mode": "refused"}),
        sandbox_agent.UnsupportedPermissionReplyError("p", "always", ["once"]),
        sandbox_agent.UnsupportedSessionCategoryError("s", "model", ["mode"]),
        sandbox_agent.UnsupportedSessionConfigOptionError("s", "x", ["y"]),
        sandbox_agent.UnsupportedSessionValueError("s", "mode", "mode", "x", ["y"]),
    )
}
# Values that are not structs of msgspec, or not of fields that it can describe.
VALUES: dict[str, Any] = {
    "Capability": Capability.FENCE,
    "EventPage": sandbox_agent.EventPage([], has_more=True),
    "PermissionRequest": sandbox_agent.PermissionRequest(
        "p", "s", "a", 1, PermissionToolCall(title="t"), [PermissionOption(optionId="o")], ["once"], {}
    ),
    "QuestionField": sandbox_agent.QuestionField(
        "f", "t", "d", "choice", [sandbox_agent.QuestionOption("v", "l", "d")], required=True
    ),
    "QuestionOption": sandbox_agent.QuestionOption("v", "l", "d"),
    "QuestionRequest": sandbox_agent.QuestionRequest("q", "s", "a", 1, "m", [], "elicitation/create", {}),
    "SessionEvent": sandbox_agent.SessionEvent("e", 1, "s", 2, "c", "agent", b'{"method":"x"}'),
    "UniversalEvent": decode_event(event(1)),
    "AgentEvent": decode_event(event(1)),
    "AcpObject": sandbox_agent.AcpObject(a=1),
    "ConfigOption": sandbox_agent.ConfigOption(id="model", currentValue="m"),
    "ConfigOptionValue": sandbox_agent.ConfigOptionValue(value="m"),
    "PermissionOption": PermissionOption(optionId="o"),
    "PermissionToolCall": PermissionToolCall(title="t"),
    "SessionMode": sandbox_agent.SessionMode(id="plan"),
    "SessionModes": sandbox_agent.SessionModes(currentModeId="plan"),
    "FsDiff": sandbox_agent.FsDiff(b"diff", truncated=True),
    "Limits": sandbox_agent.Limits(memory="2g", pids=100, cpus=1.5),
    "Mount": sandbox_agent.Mount("data", "/data", writable=True),
}
# They hold sockets, tasks, files or processes.
LIVE = {
    *("EncryptedSessionPersistDriver", "InMemorySessionPersistDriver", "PostgresSessionPersistDriver"),
    *("RedisSessionPersistDriver", "RivetSessionPersistDriver", "SQLiteSessionPersistDriver"),
    *("StateSessionPersistDriver", "SessionPersistDriver", "SandboxProvider", "LocalProvider"),
    *("CloudflareProvider", "ComputeSDKProvider", "DaytonaProvider", "DockerProvider", "E2BProvider"),
    *(
        "JailProvider",
        "ModalProvider",
        "PodmanProvider",
        "VercelProvider",
        "SpritesProvider",
        "KubernetesProvider",
    ),
    *("KubernetesProvider", "MicrosandboxProvider"),
    *("EventSink", "PostgresSink", "RedisSink", "SQLiteSink"),
    *(
        "Files",
        "FolderConfig",
        "Processes",
        "ProcessTerminal",
        "SandboxAgent",
        "SandboxAgentClient",
        "ServerSessions",
    ),
    *("Session", "Turn", "Viewer"),
    "Transcript",  # it grows
}
CLONES: list[Callable[[Any], Any]] = [
    lambda value: pickle.loads(pickle.dumps(value)),
    copy.copy,
    copy.deepcopy,
]


def _value_of(shape: shapes.Type) -> Any:
    """Return a value of a type in which every optional member is present."""
    match shape:
        case shapes.StructType(cls=kind, fields=fields):
            return kind(**{field.name: _value_of(field.type) for field in fields})
        case shapes.UnionType(types=types):
            return _value_of(next(each for each in types if not isinstance(each, shapes.NoneType)))
        case shapes.ListType(item_type=item):
            return [_value_of(item)]
        case shapes.DictType(key_type=key, value_type=value):
            return {_value_of(key): _value_of(value)}
        case shapes.LiteralType(values=values):
            return values[0]
        case shapes.Metadata(type=inner):
            return _value_of(inner)
        case shapes.AnyType():
            return {"any": [1, None]}
        case shapes.StrType():
            return "text \ud83d"
        case shapes.FloatType():
            return 0.5
        case shapes.BoolType():
            return True
        case _:
            return 3


def _instances() -> Iterator[tuple[str, Any]]:
    for name in sandbox_agent.__all__:
        kind: Any = getattr(sandbox_agent, name)
        if name in VALUES or name in ERRORS:
            yield name, VALUES.get(name) or ERRORS[name]
        elif inspect.isclass(kind) and issubclass(kind, msgspec.Struct):
            yield name, _value_of(shapes.type_info(kind))
        elif inspect.isclass(kind) and issubclass(kind, ProblemError):
            yield name, kind("detail", status=418, problem={"type": "x"}, agent="mock", exitCode=1)
        elif inspect.isclass(kind) and issubclass(kind, SandboxAgentError):
            yield name, kind("message", status=418, problem={"type": "x"})


INSTANCES = dict(_instances())


def test_every_public_type_is_a_value_or_is_known_to_be_live() -> None:
    classes = {
        name
        for name in sandbox_agent.__all__
        if inspect.isclass(kind := getattr(sandbox_agent, name)) and not typing.is_typeddict(kind)
    }
    assert classes == INSTANCES.keys() | LIVE


@pytest.mark.parametrize("clone", CLONES, ids=["pickle", "copy", "deepcopy"])
@pytest.mark.parametrize("name", INSTANCES)
def test_a_public_type_is_pickled_and_copied_with_its_fields(name: str, clone: Callable[[Any], Any]) -> None:
    value = INSTANCES[name]
    again = clone(value)
    assert type(again) is type(value)
    if isinstance(value, SandboxAgentError):
        assert str(again) == str(value)
        assert (vars(again), again.args) == (vars(value), value.args)
    else:
        assert again == value
