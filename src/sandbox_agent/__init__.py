"""Run coding agents in sandboxes and never lose an event."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    __version__: str
    from sandbox_agent.client.agent import SandboxAgent, SandboxAgentClient
    from sandbox_agent.client.configuration import FolderConfig
    from sandbox_agent.client.files import Files, FsDiff
    from sandbox_agent.client.options import (
        ClientOptions,
        HandleOptions,
        ResumeOptions,
        ServerSessionOptions,
        SessionOptions,
    )
    from sandbox_agent.client.permissions import PermissionPolicy
    from sandbox_agent.client.processes import Processes
    from sandbox_agent.client.prompts import Prompt
    from sandbox_agent.client.questions import QuestionPolicy
    from sandbox_agent.client.server_api import build_inspector_url
    from sandbox_agent.client.server_sessions.api import ServerSessions
    from sandbox_agent.client.server_sessions.cursor import EventPage
    from sandbox_agent.client.session import Session, Turn
    from sandbox_agent.client.sinks import EventSink
    from sandbox_agent.client.sinks.postgres import PostgresSink
    from sandbox_agent.client.sinks.redis import RedisSink
    from sandbox_agent.client.sinks.sqlite import SQLiteSink
    from sandbox_agent.client.terminal import ProcessTerminal
    from sandbox_agent.client.viewer import Viewer
    from sandbox_agent.engine.permissions import PermissionMode, PermissionReply
    from sandbox_agent.engine.questions import Answers
    from sandbox_agent.errors import (
        AcpRpcError,
        AgentNotInstalledError,
        AgentProcessExitedError,
        ConflictError,
        ConnectionLostError,
        GoneError,
        HealthTimeoutError,
        InstallFailedError,
        InvalidRequestError,
        ModeNotSupportedError,
        NotAcceptableError,
        NotFoundError,
        PayloadTooLargeError,
        PermissionDeniedError,
        PersistError,
        ProblemError,
        RequestTimeoutError,
        SandboxAgentError,
        SandboxDestroyedError,
        ServerSessionNotFoundError,
        SessionAlreadyExistsError,
        SessionBusyError,
        SessionFencedError,
        SessionNotFoundError,
        SettingNotConfirmedError,
        StoreUnavailableError,
        StreamError,
        TokenInvalidError,
        UnsupportedAgentError,
        UnsupportedMediaTypeError,
        UnsupportedPermissionReplyError,
        UnsupportedSessionCategoryError,
        UnsupportedSessionConfigOptionError,
        UnsupportedSessionValueError,
    )
    from sandbox_agent.persist.actor import RivetSessionPersistDriver, StateSessionPersistDriver
    from sandbox_agent.persist.base import Capability, SessionPersistDriver
    from sandbox_agent.persist.encrypted.driver import EncryptedSessionPersistDriver
    from sandbox_agent.persist.memory import InMemorySessionPersistDriver
    from sandbox_agent.persist.open import open_driver
    from sandbox_agent.persist.postgres.driver import PostgresSessionPersistDriver
    from sandbox_agent.persist.redis.driver import RedisSessionPersistDriver
    from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
    from sandbox_agent.providers.base import SandboxProvider
    from sandbox_agent.providers.cloudflare import CloudflareProvider, cloudflare
    from sandbox_agent.providers.computesdk import ComputeSDKProvider, computesdk
    from sandbox_agent.providers.daytona import DaytonaProvider, daytona
    from sandbox_agent.providers.e2b import E2BProvider, e2b
    from sandbox_agent.providers.engine.factories import DockerProvider, PodmanProvider, docker, podman
    from sandbox_agent.providers.jail import JailProvider, jail
    from sandbox_agent.providers.jail_limits import Limits
    from sandbox_agent.providers.kubernetes import KubernetesProvider, kubernetes
    from sandbox_agent.providers.local import LocalProvider, local
    from sandbox_agent.providers.microsandbox import MicrosandboxProvider, microsandbox
    from sandbox_agent.providers.modal import ModalProvider, modal
    from sandbox_agent.providers.mounts import Mount
    from sandbox_agent.providers.sprites import SpritesProvider, sprites
    from sandbox_agent.providers.vercel import VercelProvider, vercel
    from sandbox_agent.wire.acp import (
        AgentMessageChunk,
        AgentThoughtChunk,
        Annotations,
        AudioContent,
        AvailableCommand,
        AvailableCommandsUpdate,
        CompactionSummaryChunk,
        CompactionUpdate,
        ConfigOptionUpdate,
        Content,
        ContentBlock,
        Cost,
        CurrentModeUpdate,
        Diff,
        EmbeddedResource,
        ImageContent,
        Notice,
        Plan,
        PlanEntry,
        PromptResponse,
        ResourceContents,
        ResourceLink,
        SessionInfoUpdate,
        SessionUpdate,
        Terminal,
        TextContent,
        ToolCall,
        ToolCallContent,
        ToolCallLocation,
        ToolCallUpdate,
        UnknownContent,
        UnknownUpdate,
        UnstructuredCommandInput,
        UsageUpdate,
        UserMessageChunk,
    )
    from sandbox_agent.wire.api import (
        AcpClientInfo,
        AcpServerInfo,
        AcpUsageInfo,
        AgentCapabilities,
        AgentId,
        AgentInfo,
        AuthMethodInfo,
        HealthResponse,
        ServerStatusInfo,
    )
    from sandbox_agent.wire.configuration import McpLocalServer, McpOAuth, McpRemoteServer, SkillSource
    from sandbox_agent.wire.files import FsChange, FsEntry, FsStat, FsUploadBatchResponse
    from sandbox_agent.wire.objects import (
        AcpObject,
        ConfigOption,
        ConfigOptionValue,
        PermissionOption,
        PermissionToolCall,
        SessionMode,
        SessionModes,
    )
    from sandbox_agent.wire.processes import (
        ProcessConfig,
        ProcessInfo,
        ProcessLogEntry,
        ProcessLogGap,
        ProcessLogsResponse,
        ProcessRestartInfo,
        ProcessRestartRequest,
        ProcessRunResponse,
    )
    from sandbox_agent.wire.questions import QuestionField, QuestionOption
    from sandbox_agent.wire.records import (
        ListEventsRequest,
        ListPage,
        ListPageRequest,
        SessionEvent,
        SessionRecord,
        SessionRestored,
    )
    from sandbox_agent.wire.requests import PermissionRequest, QuestionRequest
    from sandbox_agent.wire.sessions import (
        CreateSessionResponse,
        PendingPermission,
        PermissionRule,
        SearchHit,
        SearchResponse,
        SessionInfo,
        TurnInfo,
        UsageInfo,
    )
    from sandbox_agent.wire.transcript import Transcript
    from sandbox_agent.wire.universal import (
        AgentEvent,
        AgentUnparsedData,
        ContentPart,
        ErrorData,
        EventData,
        EventType,
        FileRefPart,
        ImagePart,
        ItemDeltaData,
        ItemEventData,
        JsonPart,
        PermissionEventData,
        QuestionEventData,
        ReasoningPart,
        SessionEndedData,
        SessionStartedData,
        StatusPart,
        StderrOutput,
        TextPart,
        ToolCallPart,
        ToolResultPart,
        TurnEventData,
        UniversalEvent,
        UniversalItem,
    )

# The public names by their modules.
_MODULES = {
    "client.agent": "SandboxAgent SandboxAgentClient",
    "client.configuration": "FolderConfig",
    "client.files": "Files FsDiff",
    "client.options": "ClientOptions HandleOptions ResumeOptions ServerSessionOptions SessionOptions",
    "client.permissions": "PermissionPolicy",
    "client.processes": "Processes",
    "client.prompts": "Prompt",
    "client.questions": "QuestionPolicy",
    "client.server_api": "build_inspector_url",
    "client.server_sessions.api": "ServerSessions",
    "client.server_sessions.cursor": "EventPage",
    "client.session": "Session Turn",
    "client.sinks": "EventSink",
    "client.sinks.postgres": "PostgresSink",
    "client.sinks.redis": "RedisSink",
    "client.sinks.sqlite": "SQLiteSink",
    "client.terminal": "ProcessTerminal",
    "client.viewer": "Viewer",
    "engine.permissions": "PermissionMode PermissionReply",
    "engine.questions": "Answers",
    "errors": (
        "AcpRpcError AgentNotInstalledError AgentProcessExitedError ConflictError ConnectionLostError "
        "GoneError HealthTimeoutError InstallFailedError InvalidRequestError ModeNotSupportedError "
        "NotAcceptableError NotFoundError PayloadTooLargeError PermissionDeniedError PersistError "
        "ProblemError RequestTimeoutError SandboxAgentError SandboxDestroyedError "
        "ServerSessionNotFoundError SessionAlreadyExistsError SessionBusyError SessionFencedError "
        "SessionNotFoundError SettingNotConfirmedError StoreUnavailableError StreamError TokenInvalidError "
        "UnsupportedAgentError UnsupportedMediaTypeError UnsupportedPermissionReplyError "
        "UnsupportedSessionCategoryError UnsupportedSessionConfigOptionError UnsupportedSessionValueError"
    ),
    "persist.actor": "RivetSessionPersistDriver StateSessionPersistDriver",
    "persist.base": "Capability SessionPersistDriver",
    "persist.encrypted.driver": "EncryptedSessionPersistDriver",
    "persist.memory": "InMemorySessionPersistDriver",
    "persist.open": "open_driver",
    "persist.postgres.driver": "PostgresSessionPersistDriver",
    "persist.redis.driver": "RedisSessionPersistDriver",
    "persist.sqlite.driver": "SQLiteSessionPersistDriver",
    "providers.base": "SandboxProvider",
    "providers.cloudflare": "CloudflareProvider cloudflare",
    "providers.computesdk": "ComputeSDKProvider computesdk",
    "providers.daytona": "DaytonaProvider daytona",
    "providers.e2b": "E2BProvider e2b",
    "providers.engine.factories": "DockerProvider PodmanProvider docker podman",
    "providers.jail": "JailProvider jail",
    "providers.jail_limits": "Limits",
    "providers.kubernetes": "KubernetesProvider kubernetes",
    "providers.local": "LocalProvider local",
    "providers.microsandbox": "MicrosandboxProvider microsandbox",
    "providers.modal": "ModalProvider modal",
    "providers.mounts": "Mount",
    "providers.sprites": "SpritesProvider sprites",
    "providers.vercel": "VercelProvider vercel",
    "wire.acp": (
        "AgentMessageChunk AgentThoughtChunk Annotations AudioContent AvailableCommand "
        "AvailableCommandsUpdate CompactionSummaryChunk CompactionUpdate ConfigOptionUpdate Content "
        "ContentBlock Cost CurrentModeUpdate Diff EmbeddedResource ImageContent Notice Plan PlanEntry "
        "PromptResponse ResourceContents ResourceLink SessionInfoUpdate SessionUpdate Terminal TextContent "
        "ToolCall ToolCallContent ToolCallLocation ToolCallUpdate UnknownContent UnknownUpdate "
        "UnstructuredCommandInput UsageUpdate UserMessageChunk"
    ),
    "wire.api": (
        "AcpClientInfo AcpServerInfo AcpUsageInfo AgentCapabilities AgentId AgentInfo AuthMethodInfo "
        "HealthResponse ServerStatusInfo"
    ),
    "wire.configuration": "McpLocalServer McpOAuth McpRemoteServer SkillSource",
    "wire.files": "FsChange FsEntry FsStat FsUploadBatchResponse",
    "wire.objects": (
        "AcpObject ConfigOption ConfigOptionValue PermissionOption PermissionToolCall SessionMode "
        "SessionModes"
    ),
    "wire.processes": (
        "ProcessConfig ProcessInfo ProcessLogEntry ProcessLogGap ProcessLogsResponse ProcessRestartInfo "
        "ProcessRestartRequest ProcessRunResponse"
    ),
    "wire.questions": "QuestionField QuestionOption",
    "wire.records": "ListEventsRequest ListPage ListPageRequest SessionEvent SessionRecord SessionRestored",
    "wire.requests": "PermissionRequest QuestionRequest",
    "wire.sessions": (
        "CreateSessionResponse PendingPermission PermissionRule SearchHit SearchResponse SessionInfo "
        "TurnInfo UsageInfo"
    ),
    "wire.transcript": "Transcript",
    "wire.universal": (
        "AgentEvent AgentUnparsedData ContentPart ErrorData EventData EventType FileRefPart ImagePart "
        "ItemDeltaData ItemEventData JsonPart PermissionEventData QuestionEventData ReasoningPart "
        "SessionEndedData SessionStartedData StatusPart StderrOutput TextPart ToolCallPart "
        "ToolResultPart TurnEventData UniversalEvent UniversalItem"
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [
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


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("importlib.metadata").version("sandbox-agent-py")
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
