"""The public classes show what users need and none of their internals."""

from __future__ import annotations

import pytest

from sandbox_agent import SandboxAgent

pytestmark = pytest.mark.anyio

SESSION_MEMBERS = [
    "agent",
    "agent_session_id",
    "ask",
    "cancel",
    "created_at",
    "created_time",
    "destroyed_at",
    "destroyed_time",
    "events",
    "get_config_options",
    "get_modes",
    "id",
    "last_connection_id",
    "on_event",
    "on_permission_request",
    "on_question",
    "pending_permissions",
    "pending_questions",
    "permission_mode",
    "permission_policy",
    "prompt",
    "raw_respond_permission",
    "raw_send",
    "record",
    "refresh",
    "respond_permission",
    "respond_question",
    "set_config_option",
    "set_mode",
    "set_model",
    "set_permission_mode",
    "set_thought_level",
    "show",
    "stream",
    "to_dict",
    "to_json",
    "turn",
]
SANDBOX_AGENT_MEMBERS = [
    "base_url",
    "config",
    "connect",
    "create_session",
    "delete_session",
    "destroy_sandbox",
    "destroy_session",
    "dispose",
    "files",
    "get_agent",
    "get_events",
    "get_health",
    "get_session",
    "inspector_url",
    "install_agent",
    "kill_sandbox",
    "list_acp_servers",
    "list_agents",
    "list_sessions",
    "on_request",
    "pause_sandbox",
    "persist",
    "post_message",
    "processes",
    "resume_or_create_session",
    "resume_session",
    "sandbox",
    "sandbox_id",
    "sessions",
    "start",
    "stream_events",
]


def public_members(instance: object) -> list[str]:
    return sorted(name for name in dir(instance) if not name.startswith("_"))


async def test_a_client_and_its_sessions_have_only_members_for_users(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    assert public_members(session) == SESSION_MEMBERS
    assert public_members(sdk) == SANDBOX_AGENT_MEMBERS
