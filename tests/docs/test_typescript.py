"""What the TypeScript SDK's documentation shows has a Python program beside it, which test_snippets runs."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.docs.pages import ROOT, snippets

SNIPPETS = snippets(ROOT / "docs/typescript.md")
TYPESCRIPT = [snippet for snippet in SNIPPETS if snippet.language == "ts"]
# By topic: the words of that documentation, and those that stand for them.
WORDS = {
    "SandboxAgent.connect": "SandboxAgent.connect",
    "baseUrl": "http://127.0.0.1:2468",
    "persist": "persist=",
    "replayMaxEvents": "replay_max_events",
    "replayMaxChars": "replay_max_chars",
    "dispose": "dispose",
    "createSession({": "create_session(agent=",
    'createSession("my-session",': 'create_session("my-session",',
    "agentSessionId": "agent_session_id",
    "thoughtLevel": "thought_level",
    "session.prompt([": "session.prompt([",
    "stopReason": "stop_reason",
    "onEvent": "on_event",
    "unsubscribe()": "unsubscribe()",
    "eventIndex": "event_index",
    "getEvents({": "get_events(session_id=",
    'getEvents("my-session", {': 'get_events("my-session", offset=',
    "listSessions": "list_sessions",
    "createdAt": "created_at",
    "resumeSession": "resume_session",
    "resumeOrCreateSession": "resume_or_create_session",
    "setModel": "set_model",
    "setMode(": "set_mode(",
    "setThoughtLevel": "set_thought_level",
    "getModes": "get_modes",
    "currentModeId": "current_mode_id",
    "availableModes": "available_modes",
    "getConfigOptions": "get_config_options",
    "setConfigOption(": "set_config_option(",
    "onPermissionRequest": "on_permission_request",
    "toolCall.title": "tool_call.title",
    "availableReplies": "available_replies",
    "respondPermission": "respond_permission",
    "destroySession": "destroy_session",
    "postMessage": "post_message",
    "streamEvents": "stream_events",
    "event.sequence": "event.sequence",
    "rpush": "rpush",
    "lrange": "lrange",
    "InMemorySessionPersistDriver": "InMemorySessionPersistDriver",
    "maxSessions": "max_sessions",
    "maxEventsPerSession": "max_events_per_session",
    "SQLiteSessionPersistDriver": "SQLiteSessionPersistDriver",
    "PostgresSessionPersistDriver": "PostgresSessionPersistDriver",
    "RivetSessionPersistDriver": "RivetSessionPersistDriver",
    "implements SessionPersistDriver": "persist=MyDriver()",
    "listEvents(request)": "list_events(self, request",
    "insertEvent(event)": "insert_event(self, event",
}


def test_every_program_in_typescript_is_followed_by_its_twin_in_python() -> None:
    followers = {first.line: second.language for first, second in pairwise(SNIPPETS)}
    assert TYPESCRIPT
    assert {snippet.line: followers.get(snippet.line) for snippet in TYPESCRIPT} == {
        snippet.line: "python" for snippet in TYPESCRIPT
    }


@pytest.mark.parametrize("word", WORDS)
def test_a_word_of_the_typescript_sdk_is_shown_with_the_one_in_python(word: str) -> None:
    twins = [(first.code, second.code) for first, second in pairwise(SNIPPETS) if first.language == "ts"]
    assert any(word in typescript and WORDS[word] in python for typescript, python in twins)
