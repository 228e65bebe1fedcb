"""The public API: one page, sorted, lazy, typed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sandbox_agent

PUBLIC = [
    "AcpClientInfo",
    "AcpObject",
    "AcpRpcError",
    "AcpServerInfo",
    "AcpUsageInfo",
    "AgentCapabilities",
    "AgentEvent",
    "AgentId",
    "AgentInfo",
    "AgentMessageChunk",
    "AgentNotInstalledError",
    "AgentProcessExitedError",
    "AgentThoughtChunk",
    "AgentUnparsedData",
    "Annotations",
    "Answers",
    "AudioContent",
    "AuthMethodInfo",
    "AvailableCommand",
    "AvailableCommandsUpdate",
    "Capability",
    "ClientOptions",
    "CloudflareProvider",
    "CompactionSummaryChunk",
    "CompactionUpdate",
    "ComputeSDKProvider",
    "ConfigOption",
    "ConfigOptionUpdate",
    "ConfigOptionValue",
    "ConflictError",
    "ConnectionLostError",
    "Content",
    "ContentBlock",
    "ContentPart",
    "Cost",
    "CreateSessionResponse",
    "CurrentModeUpdate",
    "DaytonaProvider",
    "Diff",
    "DockerProvider",
    "E2BProvider",
    "EmbeddedResource",
    "EncryptedSessionPersistDriver",
    "ErrorData",
    "EventData",
    "EventPage",
    "EventSink",
    "EventType",
    "FileRefPart",
    "Files",
    "FolderConfig",
    "FsChange",
    "FsDiff",
    "FsEntry",
    "FsStat",
    "FsUploadBatchResponse",
    "GoneError",
    "HandleOptions",
    "HealthResponse",
    "HealthTimeoutError",
    "ImageContent",
    "ImagePart",
    "InMemorySessionPersistDriver",
    "InstallFailedError",
    "InvalidRequestError",
    "ItemDeltaData",
    "ItemEventData",
    "JailProvider",
    "JsonPart",
    "KubernetesProvider",
    "Limits",
    "ListEventsRequest",
    "ListPage",
    "ListPageRequest",
    "LocalProvider",
    "McpLocalServer",
    "McpOAuth",
    "McpRemoteServer",
    "MicrosandboxProvider",
    "ModalProvider",
    "ModeNotSupportedError",
    "Mount",
    "NotAcceptableError",
    "NotFoundError",
    "Notice",
    "PayloadTooLargeError",
    "PendingPermission",
    "PermissionDeniedError",
    "PermissionEventData",
    "PermissionMode",
    "PermissionOption",
    "PermissionPolicy",
    "PermissionReply",
    "PermissionRequest",
    "PermissionRule",
    "PermissionToolCall",
    "PersistError",
    "Plan",
    "PlanEntry",
    "PodmanProvider",
    "PostgresSessionPersistDriver",
    "PostgresSink",
    "ProblemError",
    "ProcessConfig",
    "ProcessInfo",
    "ProcessLogEntry",
    "ProcessLogGap",
    "ProcessLogsResponse",
    "ProcessRestartInfo",
    "ProcessRestartRequest",
    "ProcessRunResponse",
    "ProcessTerminal",
    "Processes",
    "Prompt",
    "PromptResponse",
    "QuestionEventData",
    "QuestionField",
    "QuestionOption",
    "QuestionPolicy",
    "QuestionRequest",
    "ReasoningPart",
    "RedisSessionPersistDriver",
    "RedisSink",
    "RequestTimeoutError",
    "ResourceContents",
    "ResourceLink",
    "ResumeOptions",
    "RivetSessionPersistDriver",
    "SQLiteSessionPersistDriver",
    "SQLiteSink",
    "SandboxAgent",
    "SandboxAgentClient",
    "SandboxAgentError",
    "SandboxDestroyedError",
    "SandboxProvider",
    "SearchHit",
    "SearchResponse",
    "ServerSessionNotFoundError",
    "ServerSessionOptions",
    "ServerSessions",
    "ServerStatusInfo",
    "Session",
    "SessionAlreadyExistsError",
    "SessionBusyError",
    "SessionEndedData",
    "SessionEvent",
    "SessionFencedError",
    "SessionInfo",
    "SessionInfoUpdate",
    "SessionMode",
    "SessionModes",
    "SessionNotFoundError",
    "SessionOptions",
    "SessionPersistDriver",
    "SessionRecord",
    "SessionRestored",
    "SessionStartedData",
    "SessionUpdate",
    "SettingNotConfirmedError",
    "SkillSource",
    "SpritesProvider",
    "StateSessionPersistDriver",
    "StatusPart",
    "StderrOutput",
    "StoreUnavailableError",
    "StreamError",
    "Terminal",
    "TextContent",
    "TextPart",
    "TokenInvalidError",
    "ToolCall",
    "ToolCallContent",
    "ToolCallLocation",
    "ToolCallPart",
    "ToolCallUpdate",
    "ToolResultPart",
    "Transcript",
    "Turn",
    "TurnEventData",
    "TurnInfo",
    "UniversalEvent",
    "UniversalItem",
    "UnknownContent",
    "UnknownUpdate",
    "UnstructuredCommandInput",
    "UnsupportedAgentError",
    "UnsupportedMediaTypeError",
    "UnsupportedPermissionReplyError",
    "UnsupportedSessionCategoryError",
    "UnsupportedSessionConfigOptionError",
    "UnsupportedSessionValueError",
    "UsageInfo",
    "UsageUpdate",
    "UserMessageChunk",
    "VercelProvider",
    "Viewer",
    "build_inspector_url",
    "cloudflare",
    "computesdk",
    "daytona",
    "docker",
    "e2b",
    "jail",
    "kubernetes",
    "local",
    "microsandbox",
    "modal",
    "open_driver",
    "podman",
    "sprites",
    "vercel",
]


def test_the_api_is_this_page() -> None:
    assert sorted(sandbox_agent.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_there(name: str) -> None:
    assert getattr(sandbox_agent, name) is not None
    assert name in dir(sandbox_agent)


def test_what_is_not_there_is_said_not_to_be() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(sandbox_agent, "nothing")  # noqa: B009 - pyright knows better


def test_type_checkers_see_what_is_there() -> None:
    assert sandbox_agent.__file__ is not None
    tree = ast.parse(Path(sandbox_agent.__file__).read_text())
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sandbox_agent.")
        for alias in node.names
    }
    assert sorted(seen) == sorted(PUBLIC)
    for name, module in seen.items():
        assert module is not None
        __import__(module)
        assert getattr(sys.modules[module], name) is getattr(sandbox_agent, name), name


def test_importing_the_package_imports_nothing_else() -> None:
    script = "import sys, sandbox_agent; print([n for n in sys.modules if n.startswith('sandbox_agent.')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("base_url", "token", "expected"),
    [
        ("http://127.0.0.1:2468", None, "http://127.0.0.1:2468/ui/"),
        ("http://127.0.0.1:2468/", None, "http://127.0.0.1:2468/ui/"),
        ("https://x.dev/box", "a b&c", "https://x.dev/box/ui/?token=a%20b%26c"),
    ],
)
def test_the_inspectors_address_is_built(base_url: str, token: str | None, expected: str) -> None:
    assert sandbox_agent.build_inspector_url(base_url, token) == expected
