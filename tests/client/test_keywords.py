"""The options of a call: errors name a wrong keyword, and help() lists the right ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from sandbox_agent import SandboxAgent, ServerSessions, docker, jail, local, podman, sync

pytestmark = pytest.mark.anyio

KEYWORDS: list[tuple[Callable[..., Any], str, object]] = [
    (SandboxAgent, "replay_max_events", 50),
    (SandboxAgent.connect, "health_timeout", 120.0),
    (SandboxAgent.start, "persist", None),
    (SandboxAgent.create_session, "permission_mode", None),
    (SandboxAgent.resume_session, "take_over", False),
    (SandboxAgent.resume_or_create_session, "env", None),
    (ServerSessions.create, "permission_rules", None),
    (sync.SandboxAgent.connect, "health_timeout", 120.0),
    (sync.SandboxAgent.create_session, "permission_mode", None),
    (sync.ServerSessions.create, "permission_rules", None),
    (docker, "allow_hosts", ...),
    (podman, "allow_hosts", ...),
    (jail, "allow_hosts", ...),
    (local, "agent_env_policy", ...),
]


@pytest.mark.parametrize(("function", "name", "default"), KEYWORDS)
def test_a_signature_lists_the_options_with_their_defaults(
    function: Callable[..., Any], name: str, default: object
) -> None:
    parameters = inspect.signature(function).parameters
    assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters[name].default == default
    assert all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in parameters.values())


WRONG: dict[str, Any] = {"permision_mode": "ask"}
NAMED = r"got an unexpected keyword argument 'permision_mode'"


@pytest.mark.parametrize("function", [SandboxAgent, SandboxAgent.connect, docker, podman, jail, local])
async def test_a_wrong_keyword_is_a_type_error_that_names_it(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=NAMED):
        function(**WRONG)


async def test_a_wrong_keyword_of_start_is_named_before_a_sandbox_is_made() -> None:
    with pytest.raises(TypeError, match=NAMED + ": it takes .*health_timeout"):
        SandboxAgent.start(sandbox=local(log="silent"), **WRONG)


async def test_a_wrong_keyword_of_a_session_is_named_before_a_request_is_sent() -> None:
    async with SandboxAgent.connect("http://127.0.0.1:9", skip_health_check=True) as sdk:
        for call in (
            sdk.create_session(agent="mock", **WRONG),
            sdk.resume_session("s", **WRONG),
            sdk.resume_or_create_session(id="s", agent="mock", **WRONG),
        ):
            with pytest.raises(TypeError, match=NAMED + ": it takes .*permission_policy"):
                await call
        for call in (
            sdk.create_session("s", agent="mock", **WRONG),
            sdk.sessions.create("s", agent="mock", **WRONG),
        ):
            with pytest.raises(TypeError, match=NAMED + ": it takes .*permission_rules"):
                await call


async def test_ids_of_both_kinds_of_sessions_are_refused() -> None:
    get: Any
    async with SandboxAgent.connect("http://127.0.0.1:9", skip_health_check=True) as sdk:
        create, get = sdk.create_session, sdk.get_events
        both: dict[str, Any] = {"id": "t"}
        with pytest.raises(TypeError, match="two ids"):
            await create("s", agent="mock", **both)
        for call in (
            get(),
            get("s", session_id="s"),
            get("s", cursor="c"),
            get(session_id="s", offset=3),
            get(session_id="s", include_raw=True),
        ):
            with pytest.raises(TypeError, match=r"takes session_id=, limit= and cursor= .* or the id as its"):
                await call
