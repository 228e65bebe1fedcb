"""Public types and errors are pickled and copied with all that they have."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import sandbox_agent
from sandbox_agent import SandboxAgentError

ERRORS: list[SandboxAgentError] = [
    sandbox_agent.SandboxAgentError("text", status=418, problem={"type": "x"}),
    sandbox_agent.InvalidRequestError("detail", field="x"),
    sandbox_agent.AgentProcessExitedError("gone", agent="mock", exitCode=1),
    sandbox_agent.AcpRpcError(-32601, "no", {"a": [1]}),
    sandbox_agent.SessionNotFoundError("s"),
    sandbox_agent.PersistError("bad", session_id="s"),
    sandbox_agent.SessionFencedError("s", 3),
    sandbox_agent.UnsupportedPermissionReplyError("p", "always", ["once"]),
    sandbox_agent.UnsupportedSessionCategoryError("s", "model", ["mode"]),
    sandbox_agent.UnsupportedSessionConfigOptionError("s", "x", ["y"]),
    sandbox_agent.UnsupportedSessionValueError("s", "mode", "mode", "x", ["y"]),
    sandbox_agent.ConnectionLostError("lost"),
    sandbox_agent.HealthTimeoutError("late"),
]


VALUES: list[Any] = [
    sandbox_agent.SessionEvent("e", 1, "s", 2, "c", "agent", b'{"method":"x"}'),
    sandbox_agent.SessionRecord(
        id="s", agent="mock", agent_session_id="a", last_connection_id="c", created_at=1, modes={"x": 1}
    ),
    sandbox_agent.PermissionRequest("p", "s", "a", 1, {"title": "t"}, [{"optionId": "o"}], ["once"], {}),
    sandbox_agent.ListPage([1], "cursor"),
    sandbox_agent.EventPage([], has_more=True),
    sandbox_agent.PermissionRule(reply="allow", kind="read", path="/x/**"),
]


def _pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("clone", [_pickled, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_pickled_and_copied_with_its_message_and_fields(
    error: SandboxAgentError, clone: Callable[[Any], Any]
) -> None:
    again = clone(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert again.args == error.args


@pytest.mark.parametrize("clone", [_pickled, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_public_value_is_pickled_and_copied(value: Any, clone: Callable[[Any], Any]) -> None:
    again = clone(value)
    assert type(again) is type(value)
    assert again == value
