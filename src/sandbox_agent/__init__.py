"""Run coding agents in sandboxes and never lose an event."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandbox_agent.client.agent import SandboxAgent
    from sandbox_agent.client.permissions import PermissionPolicy, PermissionRequest
    from sandbox_agent.client.server_api import build_inspector_url
    from sandbox_agent.client.session import Session
    from sandbox_agent.client.turn import Turn
    from sandbox_agent.engine.permissions import PermissionReply
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
        SessionNotFoundError,
        StreamError,
        TokenInvalidError,
        UnsupportedAgentError,
        UnsupportedMediaTypeError,
        UnsupportedPermissionReplyError,
        UnsupportedSessionCategoryError,
        UnsupportedSessionConfigOptionError,
        UnsupportedSessionValueError,
    )
    from sandbox_agent.persist.base import Capability, SessionPersistDriver
    from sandbox_agent.persist.memory import InMemorySessionPersistDriver
    from sandbox_agent.persist.sqlite import SQLiteSessionPersistDriver
    from sandbox_agent.providers.base import SandboxProvider
    from sandbox_agent.providers.local import LocalProvider, local
    from sandbox_agent.wire.acp import (
        AgentMessageChunk,
        AgentThoughtChunk,
        AvailableCommandsUpdate,
        CompactionSummaryChunk,
        CompactionUpdate,
        ConfigOptionUpdate,
        CurrentModeUpdate,
        Notice,
        Plan,
        PromptResponse,
        SessionInfoUpdate,
        SessionUpdate,
        TextContent,
        ToolCall,
        ToolCallUpdate,
        UnknownUpdate,
        UsageUpdate,
        UserMessageChunk,
    )
    from sandbox_agent.wire.records import ListPage, SessionEvent, SessionRecord, SessionRestored

_MODULES = {
    "client.agent": ("SandboxAgent",),
    "client.permissions": ("PermissionPolicy", "PermissionRequest"),
    "client.server_api": ("build_inspector_url",),
    "client.session": ("Session",),
    "client.turn": ("Turn",),
    "engine.permissions": ("PermissionReply",),
    "errors": (
        "AcpRpcError",
        "AgentNotInstalledError",
        "AgentProcessExitedError",
        "ConflictError",
        "ConnectionLostError",
        "GoneError",
        "HealthTimeoutError",
        "InstallFailedError",
        "InvalidRequestError",
        "ModeNotSupportedError",
        "NotAcceptableError",
        "NotFoundError",
        "PayloadTooLargeError",
        "PermissionDeniedError",
        "PersistError",
        "ProblemError",
        "RequestTimeoutError",
        "SandboxAgentError",
        "SandboxDestroyedError",
        "ServerSessionNotFoundError",
        "SessionAlreadyExistsError",
        "SessionNotFoundError",
        "StreamError",
        "TokenInvalidError",
        "UnsupportedAgentError",
        "UnsupportedMediaTypeError",
        "UnsupportedPermissionReplyError",
        "UnsupportedSessionCategoryError",
        "UnsupportedSessionConfigOptionError",
        "UnsupportedSessionValueError",
    ),
    "persist.base": ("Capability", "SessionPersistDriver"),
    "persist.memory": ("InMemorySessionPersistDriver",),
    "persist.sqlite": ("SQLiteSessionPersistDriver",),
    "providers.base": ("SandboxProvider",),
    "providers.local": ("LocalProvider", "local"),
    "wire.acp": (
        "AgentMessageChunk",
        "AgentThoughtChunk",
        "AvailableCommandsUpdate",
        "CompactionSummaryChunk",
        "CompactionUpdate",
        "ConfigOptionUpdate",
        "CurrentModeUpdate",
        "Notice",
        "Plan",
        "PromptResponse",
        "SessionInfoUpdate",
        "SessionUpdate",
        "TextContent",
        "ToolCall",
        "ToolCallUpdate",
        "UnknownUpdate",
        "UsageUpdate",
        "UserMessageChunk",
    ),
    "wire.records": ("ListPage", "SessionEvent", "SessionRecord", "SessionRestored"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AcpRpcError",
    "AgentMessageChunk",
    "AgentNotInstalledError",
    "AgentProcessExitedError",
    "AgentThoughtChunk",
    "AvailableCommandsUpdate",
    "Capability",
    "CompactionSummaryChunk",
    "CompactionUpdate",
    "ConfigOptionUpdate",
    "ConflictError",
    "ConnectionLostError",
    "CurrentModeUpdate",
    "GoneError",
    "HealthTimeoutError",
    "InMemorySessionPersistDriver",
    "InstallFailedError",
    "InvalidRequestError",
    "ListPage",
    "LocalProvider",
    "ModeNotSupportedError",
    "NotAcceptableError",
    "NotFoundError",
    "Notice",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "PermissionPolicy",
    "PermissionReply",
    "PermissionRequest",
    "PersistError",
    "Plan",
    "ProblemError",
    "PromptResponse",
    "RequestTimeoutError",
    "SQLiteSessionPersistDriver",
    "SandboxAgent",
    "SandboxAgentError",
    "SandboxDestroyedError",
    "SandboxProvider",
    "ServerSessionNotFoundError",
    "Session",
    "SessionAlreadyExistsError",
    "SessionEvent",
    "SessionInfoUpdate",
    "SessionNotFoundError",
    "SessionPersistDriver",
    "SessionRecord",
    "SessionRestored",
    "SessionUpdate",
    "StreamError",
    "TextContent",
    "TokenInvalidError",
    "ToolCall",
    "ToolCallUpdate",
    "Turn",
    "UnknownUpdate",
    "UnsupportedAgentError",
    "UnsupportedMediaTypeError",
    "UnsupportedPermissionReplyError",
    "UnsupportedSessionCategoryError",
    "UnsupportedSessionConfigOptionError",
    "UnsupportedSessionValueError",
    "UsageUpdate",
    "UserMessageChunk",
    "build_inspector_url",
    "local",
]


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
