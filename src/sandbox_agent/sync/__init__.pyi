"""The types of the SDK without async, written by scripts/sync_stub.py."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterable, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import IO, Any, Generic, Self, TypeVar, Unpack, overload

from sandbox_agent import AcpClientInfo as AcpClientInfo
from sandbox_agent import AcpObject as AcpObject
from sandbox_agent import AcpRpcError as AcpRpcError
from sandbox_agent import AcpServerInfo as AcpServerInfo
from sandbox_agent import AcpUsageInfo as AcpUsageInfo
from sandbox_agent import AgentCapabilities as AgentCapabilities
from sandbox_agent import AgentEvent as AgentEvent
from sandbox_agent import AgentId as AgentId
from sandbox_agent import AgentInfo as AgentInfo
from sandbox_agent import AgentMessageChunk as AgentMessageChunk
from sandbox_agent import AgentNotInstalledError as AgentNotInstalledError
from sandbox_agent import AgentProcessExitedError as AgentProcessExitedError
from sandbox_agent import AgentThoughtChunk as AgentThoughtChunk
from sandbox_agent import AgentUnparsedData as AgentUnparsedData
from sandbox_agent import Annotations as Annotations
from sandbox_agent import Answers as Answers
from sandbox_agent import AudioContent as AudioContent
from sandbox_agent import AuthMethodInfo as AuthMethodInfo
from sandbox_agent import AvailableCommand as AvailableCommand
from sandbox_agent import AvailableCommandsUpdate as AvailableCommandsUpdate
from sandbox_agent import Capability as Capability
from sandbox_agent import ClientOptions as ClientOptions
from sandbox_agent import CloudflareProvider as CloudflareProvider
from sandbox_agent import CompactionSummaryChunk as CompactionSummaryChunk
from sandbox_agent import CompactionUpdate as CompactionUpdate
from sandbox_agent import ComputeSDKProvider as ComputeSDKProvider
from sandbox_agent import ConfigOption as ConfigOption
from sandbox_agent import ConfigOptionUpdate as ConfigOptionUpdate
from sandbox_agent import ConfigOptionValue as ConfigOptionValue
from sandbox_agent import ConflictError as ConflictError
from sandbox_agent import ConnectionLostError as ConnectionLostError
from sandbox_agent import Content as Content
from sandbox_agent import ContentBlock as ContentBlock
from sandbox_agent import ContentPart as ContentPart
from sandbox_agent import Cost as Cost
from sandbox_agent import CreateSessionResponse as CreateSessionResponse
from sandbox_agent import CurrentModeUpdate as CurrentModeUpdate
from sandbox_agent import DaytonaProvider as DaytonaProvider
from sandbox_agent import Diff as Diff
from sandbox_agent import DockerProvider as DockerProvider
from sandbox_agent import E2BProvider as E2BProvider
from sandbox_agent import EmbeddedResource as EmbeddedResource
from sandbox_agent import EncryptedSessionPersistDriver as EncryptedSessionPersistDriver
from sandbox_agent import ErrorData as ErrorData
from sandbox_agent import EventData as EventData
from sandbox_agent import EventPage as EventPage
from sandbox_agent import EventSink as EventSink
from sandbox_agent import EventType as EventType
from sandbox_agent import FileRefPart as FileRefPart
from sandbox_agent import FsChange as FsChange
from sandbox_agent import FsDiff as FsDiff
from sandbox_agent import FsEntry as FsEntry
from sandbox_agent import FsStat as FsStat
from sandbox_agent import FsUploadBatchResponse as FsUploadBatchResponse
from sandbox_agent import GoneError as GoneError
from sandbox_agent import HandleOptions as HandleOptions
from sandbox_agent import HealthResponse as HealthResponse
from sandbox_agent import HealthTimeoutError as HealthTimeoutError
from sandbox_agent import ImageContent as ImageContent
from sandbox_agent import ImagePart as ImagePart
from sandbox_agent import InMemorySessionPersistDriver as InMemorySessionPersistDriver
from sandbox_agent import InstallFailedError as InstallFailedError
from sandbox_agent import InvalidRequestError as InvalidRequestError
from sandbox_agent import ItemDeltaData as ItemDeltaData
from sandbox_agent import ItemEventData as ItemEventData
from sandbox_agent import JailProvider as JailProvider
from sandbox_agent import JsonPart as JsonPart
from sandbox_agent import KubernetesProvider as KubernetesProvider
from sandbox_agent import Limits as Limits
from sandbox_agent import ListEventsRequest as ListEventsRequest
from sandbox_agent import ListPage as ListPage
from sandbox_agent import ListPageRequest as ListPageRequest
from sandbox_agent import LocalProvider as LocalProvider
from sandbox_agent import McpLocalServer as McpLocalServer
from sandbox_agent import McpOAuth as McpOAuth
from sandbox_agent import McpRemoteServer as McpRemoteServer
from sandbox_agent import MicrosandboxProvider as MicrosandboxProvider
from sandbox_agent import ModalProvider as ModalProvider
from sandbox_agent import ModeNotSupportedError as ModeNotSupportedError
from sandbox_agent import Mount as Mount
from sandbox_agent import NotAcceptableError as NotAcceptableError
from sandbox_agent import NotFoundError as NotFoundError
from sandbox_agent import Notice as Notice
from sandbox_agent import PayloadTooLargeError as PayloadTooLargeError
from sandbox_agent import PendingPermission as PendingPermission
from sandbox_agent import PermissionDeniedError as PermissionDeniedError
from sandbox_agent import PermissionEventData as PermissionEventData
from sandbox_agent import PermissionMode as PermissionMode
from sandbox_agent import PermissionOption as PermissionOption
from sandbox_agent import PermissionPolicy as PermissionPolicy
from sandbox_agent import PermissionReply as PermissionReply
from sandbox_agent import PermissionRequest as PermissionRequest
from sandbox_agent import PermissionRule as PermissionRule
from sandbox_agent import PermissionToolCall as PermissionToolCall
from sandbox_agent import PersistError as PersistError
from sandbox_agent import Plan as Plan
from sandbox_agent import PlanEntry as PlanEntry
from sandbox_agent import PodmanProvider as PodmanProvider
from sandbox_agent import PostgresSessionPersistDriver as PostgresSessionPersistDriver
from sandbox_agent import PostgresSink as PostgresSink
from sandbox_agent import ProblemError as ProblemError
from sandbox_agent import ProcessConfig as ProcessConfig
from sandbox_agent import ProcessInfo as ProcessInfo
from sandbox_agent import ProcessLogEntry as ProcessLogEntry
from sandbox_agent import ProcessLogGap as ProcessLogGap
from sandbox_agent import ProcessLogsResponse as ProcessLogsResponse
from sandbox_agent import ProcessRestartInfo as ProcessRestartInfo
from sandbox_agent import ProcessRestartRequest as ProcessRestartRequest
from sandbox_agent import ProcessRunResponse as ProcessRunResponse
from sandbox_agent import Prompt as Prompt
from sandbox_agent import PromptResponse as PromptResponse
from sandbox_agent import QuestionEventData as QuestionEventData
from sandbox_agent import QuestionField as QuestionField
from sandbox_agent import QuestionOption as QuestionOption
from sandbox_agent import QuestionPolicy as QuestionPolicy
from sandbox_agent import QuestionRequest as QuestionRequest
from sandbox_agent import ReasoningPart as ReasoningPart
from sandbox_agent import RedisSessionPersistDriver as RedisSessionPersistDriver
from sandbox_agent import RedisSink as RedisSink
from sandbox_agent import RequestTimeoutError as RequestTimeoutError
from sandbox_agent import ResourceContents as ResourceContents
from sandbox_agent import ResourceLink as ResourceLink
from sandbox_agent import ResumeOptions as ResumeOptions
from sandbox_agent import RivetSessionPersistDriver as RivetSessionPersistDriver
from sandbox_agent import SandboxAgentError as SandboxAgentError
from sandbox_agent import SandboxDestroyedError as SandboxDestroyedError
from sandbox_agent import SandboxProvider as SandboxProvider
from sandbox_agent import SearchHit as SearchHit
from sandbox_agent import SearchResponse as SearchResponse
from sandbox_agent import ServerSessionNotFoundError as ServerSessionNotFoundError
from sandbox_agent import ServerSessionOptions as ServerSessionOptions
from sandbox_agent import ServerStatusInfo as ServerStatusInfo
from sandbox_agent import SessionAlreadyExistsError as SessionAlreadyExistsError
from sandbox_agent import SessionBusyError as SessionBusyError
from sandbox_agent import SessionEndedData as SessionEndedData
from sandbox_agent import SessionEvent as SessionEvent
from sandbox_agent import SessionFencedError as SessionFencedError
from sandbox_agent import SessionInfo as SessionInfo
from sandbox_agent import SessionInfoUpdate as SessionInfoUpdate
from sandbox_agent import SessionMode as SessionMode
from sandbox_agent import SessionModes as SessionModes
from sandbox_agent import SessionNotFoundError as SessionNotFoundError
from sandbox_agent import SessionOptions as SessionOptions
from sandbox_agent import SessionPersistDriver as SessionPersistDriver
from sandbox_agent import SessionRecord as SessionRecord
from sandbox_agent import SessionRestored as SessionRestored
from sandbox_agent import SessionStartedData as SessionStartedData
from sandbox_agent import SessionUpdate as SessionUpdate
from sandbox_agent import SettingNotConfirmedError as SettingNotConfirmedError
from sandbox_agent import SkillSource as SkillSource
from sandbox_agent import SpritesProvider as SpritesProvider
from sandbox_agent import SQLiteSessionPersistDriver as SQLiteSessionPersistDriver
from sandbox_agent import SQLiteSink as SQLiteSink
from sandbox_agent import StateSessionPersistDriver as StateSessionPersistDriver
from sandbox_agent import StatusPart as StatusPart
from sandbox_agent import StderrOutput as StderrOutput
from sandbox_agent import StoreUnavailableError as StoreUnavailableError
from sandbox_agent import StreamError as StreamError
from sandbox_agent import Terminal as Terminal
from sandbox_agent import TextContent as TextContent
from sandbox_agent import TextPart as TextPart
from sandbox_agent import TokenInvalidError as TokenInvalidError
from sandbox_agent import ToolCall as ToolCall
from sandbox_agent import ToolCallContent as ToolCallContent
from sandbox_agent import ToolCallLocation as ToolCallLocation
from sandbox_agent import ToolCallPart as ToolCallPart
from sandbox_agent import ToolCallUpdate as ToolCallUpdate
from sandbox_agent import ToolResultPart as ToolResultPart
from sandbox_agent import Transcript as Transcript
from sandbox_agent import TurnEventData as TurnEventData
from sandbox_agent import TurnInfo as TurnInfo
from sandbox_agent import UniversalEvent as UniversalEvent
from sandbox_agent import UniversalItem as UniversalItem
from sandbox_agent import UnknownContent as UnknownContent
from sandbox_agent import UnknownUpdate as UnknownUpdate
from sandbox_agent import UnstructuredCommandInput as UnstructuredCommandInput
from sandbox_agent import UnsupportedAgentError as UnsupportedAgentError
from sandbox_agent import UnsupportedMediaTypeError as UnsupportedMediaTypeError
from sandbox_agent import UnsupportedPermissionReplyError as UnsupportedPermissionReplyError
from sandbox_agent import UnsupportedSessionCategoryError as UnsupportedSessionCategoryError
from sandbox_agent import UnsupportedSessionConfigOptionError as UnsupportedSessionConfigOptionError
from sandbox_agent import UnsupportedSessionValueError as UnsupportedSessionValueError
from sandbox_agent import UsageInfo as UsageInfo
from sandbox_agent import UsageUpdate as UsageUpdate
from sandbox_agent import UserMessageChunk as UserMessageChunk
from sandbox_agent import VercelProvider as VercelProvider
from sandbox_agent import Viewer as Viewer
from sandbox_agent import build_inspector_url as build_inspector_url
from sandbox_agent import cloudflare as cloudflare
from sandbox_agent import computesdk as computesdk
from sandbox_agent import daytona as daytona
from sandbox_agent import docker as docker
from sandbox_agent import e2b as e2b
from sandbox_agent import jail as jail
from sandbox_agent import kubernetes as kubernetes
from sandbox_agent import local as local
from sandbox_agent import microsandbox as microsandbox
from sandbox_agent import modal as modal
from sandbox_agent import open_driver as open_driver
from sandbox_agent import podman as podman
from sandbox_agent import sprites as sprites
from sandbox_agent import vercel as vercel
from sandbox_agent.client.files import Progress, RemotePath
from sandbox_agent.client.journal import EventListener
from sandbox_agent.client.permissions import PermissionListener
from sandbox_agent.client.questions import QuestionListener
from sandbox_agent.client.server_sessions.api import ExportFormat, Timestamp
from sandbox_agent.client.server_sessions.streams import Message
from sandbox_agent.client.session import OnBusy
from sandbox_agent.wire.configuration import McpServerConfig
from sandbox_agent.wire.processes import ProcessOwner, ProcessStream, RestartMode

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
    "EventIterator",
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
__version__: str

_T = TypeVar("_T")

class EventIterator(Iterator[_T], Generic[_T]):
    """Iterates over what an async iterator yields. Close it, or read it to its end."""

    def __next__(self) -> _T: ...
    def close(self) -> None:
        """End the iteration."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

class Session:
    """One conversation with one agent, kept in the store; made by a SandboxAgent.

    A session outlives its connection. The first call after the server or the agent restarted restores it:
    with the agent's own session/load or session/resume, or with a new agent session and the recent history
    in front of the next prompt."""
    def to_dict(self) -> dict[str, Any]:
        """Return the record without what the session was created with, which may hold secrets."""

    @property
    def record(self) -> SessionRecord:
        """The session's record."""

    @property
    def id(self) -> str:
        """The local id; a restore does not change it."""

    @property
    def agent(self) -> str:
        """The agent's id; it changes when the session is handed over to another agent."""

    @property
    def agent_session_id(self) -> str:
        """The agent's own id for the session; it changes when a restore needs a new agent session."""

    @property
    def last_connection_id(self) -> str:
        """The connection that the session used last."""

    @property
    def created_at(self) -> int:
        """Milliseconds since the epoch."""

    @property
    def destroyed_at(self) -> int | None:
        """When the session was destroyed, in milliseconds since the epoch, or None."""

    @property
    def created_time(self) -> datetime:
        """When the session was created, in UTC."""

    @property
    def destroyed_time(self) -> datetime | None:
        """When the session was destroyed, in UTC, or None."""

    @property
    def permission_policy(self) -> PermissionPolicy | None:
        """How permission requests are answered when there is no listener; can be set.

        Raises:
            ValueError: the value is neither a known name nor a function."""

    @permission_policy.setter
    def permission_policy(self, policy: PermissionPolicy | None) -> None: ...
    @property
    def permission_mode(self) -> PermissionMode | None:
        """What the session may do: the chosen permission mode, else what the agent's own mode means.

        None if nothing was chosen and the meaning of the agent's mode is unknown."""

    def set_permission_mode(self, permission_mode: PermissionMode) -> None:
        """Choose what the session may do, and set the agent's mode that this stands for.

        Args:
            permission_mode: "ask", "accept_edits", "allow", "plan" or "read_only".

        Raises:
            ValueError: there is no such mode.
            UnsupportedSessionValueError: the agent refuses its own mode."""

    def prompt(self, prompt: Prompt, *, on_busy: OnBusy = "queue") -> PromptResponse:
        """Send a prompt; return when the turn has ended and all its events are in the store.

        Cancelling this call does not cancel the turn: ``cancel`` does.

        Args:
            prompt: text, or ACP content blocks.
            on_busy: while another turn runs: "queue" sends the prompt after it, "error" refuses the prompt.

        Raises:
            TypeError: the prompt is neither text nor a list of content blocks (nothing was sent), or a
                callback for permission requests returned a wrong value (the request was cancelled, and the
                turn has ended).
            ConflictError: another turn runs or waits, and ``on_busy`` is "error". Nothing was sent.
            ConnectionLostError: the server or the agent went away; the message says whether the prompt
                was sent. The next call restores the session.
            AgentProcessExitedError: the agent's process ended.
            AcpRpcError: the agent refused or failed.
            SettingNotConfirmedError: after a restore, the agent does not keep a setting that was chosen; the
                prompt was not sent.
            SessionFencedError: another process took the session over; ``resume_session`` claims it again.
                The prompt was not sent, or else the turn has ended and its events are not stored.
            PersistError: the turn has ended and the store failed; the events are sent to it again with the
                next append."""

    @property
    def turn(self) -> Turn | None:
        """The turn that runs, whichever process began it; None if none does.

        ``await turn`` returns its response as ``prompt`` does; iterating it yields its events from the prompt
        on."""

    def stream(self, prompt: Prompt, *, on_busy: OnBusy = "queue") -> Turn:
        """Send a prompt and iterate over the turn's events, each once it is stored, until the turn ends.

        The prompt is sent when the iteration begins. Leaving the loop early does not cancel the turn;
        ``turn.response`` is the response at the end. An error of the turn is raised after its events. With
        ``on_busy="error"``, a prompt that is not sent raises ConflictError when the iteration begins."""

    def ask(self, prompt: Prompt, *, on_busy: OnBusy = "queue") -> str:
        """Send a prompt and return what the agent says; raises as ``prompt``."""

    def show(self, prompt: Prompt, *, on_busy: OnBusy = "queue") -> PromptResponse:
        """Send a prompt and show the turn in the notebook while it runs; raises as ``prompt``.

        Raises:
            ImportError: IPython is not installed."""

    def events(self, *, after: int = 0) -> EventIterator[SessionEvent]:
        """Iterate over the events with an index above ``after``: stored ones, then live ones, each once.

        The iteration ends when the SandboxAgent is disposed."""

    def cancel(self) -> None:
        """Cancel the turn and the agent's open requests; the prompt's response reports it.

        Does nothing if no agent holds the session."""

    def raw_send(
        self, method: str, params: Mapping[str, Any] | None = None, *, notification: bool = False
    ) -> Any:
        """Send any method to the agent and return its result (None for a notification).

        ``sessionId`` is added to the params.

        Raises:
            SandboxAgentError: the method is session/cancel; use ``cancel``."""

    def on_event(self, listener: EventListener) -> Callable[[], None]:
        """Call the listener with every event once it is stored; return a function that unregisters it.

        A sync listener is called before the ``prompt`` that the event belongs to returns; an async listener
        is awaited event by event in its own task. Exceptions of listeners are logged. If the store fails,
        listeners receive an event with index 0 and the method ``_sandbox_agent/persist_failed``."""

    def on_permission_request(self, listener: PermissionListener) -> Callable[[], None]:
        """Call the listener with permission requests; answer them with ``respond_permission``."""

    def respond_permission(self, permission_id: str, reply: PermissionReply) -> None:
        """Answer a permission request with "once", "always" or "reject".

        The response is sent at once, even if the result is not awaited.

        Raises:
            UnsupportedPermissionReplyError: the request has no such option; it stays open.
            SandboxAgentError: no such request is open."""

    def raw_respond_permission(self, permission_id: str, response: Mapping[str, Any]) -> None:
        """Answer a permission request with an ACP result (``{"outcome": …}``)."""

    def pending_permissions(self) -> list[PermissionRequest]:
        """Return the permission requests that wait for an answer, oldest first."""

    def on_question(self, listener: QuestionListener) -> Callable[[], None]:
        """Call the listener with the agent's questions; answer them with ``respond_question``.

        Agents ask only if the session was created with a ``question_policy``. Questions that are already open
        are delivered at once. Returns a function that unregisters the listener."""

    def respond_question(self, question_id: str, answers: Answers | None) -> None:
        """Answer a question; None declines it.

        The response is sent at once, even if the result is not awaited.

        Args:
            question_id: the request's id.
            answers: one answer, a list with the answer of each field, or a dict by the fields' names. An
                answer is an option's label or value, or free text; several choices of one field are a list.

        Raises:
            InvalidRequestError: the answers do not match the question; it stays open.
            SandboxAgentError: no such question is open."""

    def pending_questions(self) -> list[QuestionRequest]:
        """Return the questions that wait for an answer, oldest first."""

    def set_model(self, model: str) -> None:
        """Set the model.

        Raises:
            UnsupportedSessionCategoryError: the agent has no such option.
            UnsupportedSessionValueError: the option does not accept the value."""

    def set_thought_level(self, thought_level: str) -> None:
        """Set how much the agent thinks; raises as ``set_model``."""

    def set_mode(self, mode: str) -> None:
        """Set the mode with session/set_mode, or with a config option if the agent lacks that method.

        Raises:
            UnsupportedSessionValueError: the agent has no such mode.
            ValueError: the mode contradicts the chosen permission mode; use ``set_permission_mode``."""

    def set_config_option(self, config_id: str, value: str | bool) -> None:
        """Set any option by its id. A boolean option takes True, False, "true" or "false".

        Raises:
            UnsupportedSessionConfigOptionError: the agent has no such option.
            UnsupportedSessionValueError: the option does not accept the value."""

    def get_config_options(self) -> list[ConfigOption]:
        """Return the options in ACP's shape; fetched from the server if session/new returned none."""

    def get_modes(self) -> SessionModes | None:
        """Return ``current_mode_id`` and ``available_modes``, or None if the agent has no modes."""

    def refresh(self) -> Session:
        """Read the record again, as another process may have changed it.

        Raises:
            SessionNotFoundError: the session was deleted."""

    def to_json(self) -> str:
        """Return the object as JSON."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

class Turn:
    """Iterates over a turn's events from the prompt to its response; ``await`` waits for the response.

    Leaving ``async with`` ends the iteration; the turn continues."""
    @property
    def response(self) -> PromptResponse:
        """The prompt's response, once the turn has ended.

        Raises:
            SandboxAgentError: the turn was not awaited, or not iterated to its end."""

    @property
    def text(self) -> str:
        """What the agent has said in the events that were read: all of it if the turn was only awaited."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> SessionEvent: ...
    def close(self) -> None:
        """Stop the iteration; the turn continues."""
    def wait(self) -> PromptResponse:
        """Wait for the end of the turn."""

class ServerSessions:
    """The server's sessions: they live on the server and outlive every client; reached as ``sdk.sessions``.

    Calls are retried while the server is away, and take effect once. Only ``cancel`` is not: it raises
    ConnectionLostError if no response was received; whether it took effect is then unknown.
    All calls raise TokenInvalidError and, if the session does not exist, ServerSessionNotFoundError."""
    def create(
        self, id: str, *, agent: AgentId, **options: Unpack[ServerSessionOptions]
    ) -> CreateSessionResponse:
        """Create a session; the same arguments again return the session that exists.

        If the caller is cancelled, the creation is cancelled on the server, too.

        Args:
            id: the session's id, chosen by the caller.
            agent: the agent's id ("claude", "codex", …).
            **options: see ``ServerSessionOptions``.

        Returns:
            The agent's own id of the session; ``healthy`` is true: a failure raises and creates no session.

        Raises:
            SessionAlreadyExistsError: a session of that id exists, with other arguments or terminated.
            UnsupportedAgentError: the server does not know the agent.
            ModeNotSupportedError: the agent has no such mode.
            InvalidRequestError: a value is invalid.
            ValueError: an MCP server is invalid."""

    def close(self) -> None:
        """Wait until creations that were cancelled are cancelled on the server, at most CLOSE_TIMEOUT."""

    def get(self, id: str) -> SessionInfo:
        """Return one session, with its newest turns and their usage."""

    def list(self, *, limit: int | None = None, cursor: str | None = None) -> ListPage[SessionInfo]:
        """Return a page of the sessions, newest first; those that an SDK drives are ``managed=False``.

        Raises:
            InvalidRequestError: the cursor is invalid."""

    def iterate(self) -> EventIterator[SessionInfo]:
        """Iterate over all sessions, newest first."""

    def post_message(self, id: str, message: Message, *, idempotency_key: str | None = None) -> str:
        """Send a message and return the id of its turn, once the server has stored it.

        The turn runs when earlier turns have ended: ``turn.*`` events and ``get(id).turns`` name it.

        Args:
            id: the session.
            message: text, or ACP content blocks.
            idempotency_key: a message is sent once per key, also across restarts; None generates one.

        Raises:
            ConflictError: the queue is full, the session has ended, or the key was used for another
                message."""

    def stream_turn(
        self, id: str, message: Message, *, include_raw: bool = False, idempotency_key: str | None = None
    ) -> EventIterator[AgentEvent]:
        """Send a message and iterate over the events of its turn, each once, until the turn ends.

        A lost connection is opened again, and the message is sent once. A turn that was running when the
        server died ends as interrupted. Leaving the loop does not cancel the turn.

        Args:
            id: the session.
            message: text, or ACP content blocks.
            include_raw: include the ACP envelope that each event was made from.
            idempotency_key: the key of a message that was sent before, to read its turn.

        Raises:
            ConflictError: as ``post_message``.
            ConnectionLostError: the server is gone."""

    def stream_events(
        self, id: str, *, offset: int = 0, include_raw: bool = False, allow_gaps: bool = False
    ) -> EventIterator[AgentEvent]:
        """Iterate over the events with a sequence above ``offset``: stored ones, then live ones, each once.

        The iteration survives lost connections and restarts of the server; it ends after ``session.ended``.

        Args:
            id: the session.
            offset: the sequence of the last event that you have.
            include_raw: include the ACP envelope that each event was made from.
            allow_gaps: skip events that retention has erased, instead of raising.

        Raises:
            GoneError: the next events are erased (``extensions``: missingFrom, missingTo), or the session
                has fewer events than ``offset``: it is another session of that id.
            ConnectionLostError: the server is gone."""

    def get_events(
        self, id: str, *, offset: int | None = 0, limit: int | None = None, include_raw: bool = False
    ) -> EventPage:
        """Return events with a sequence above ``offset``; None starts with the oldest stored event.

        Raises:
            GoneError: as ``stream_events``."""

    def reply_permission(
        self, id: str, permission_id: str, reply: PermissionReply, *, by: str | None = None
    ) -> None:
        """Answer a permission request; the first answer counts.

        Args:
            id: the session.
            permission_id: the id in ``permission.requested`` or ``permissions()``.
            reply: "once", "always" or "reject".
            by: a name for the log.

        Raises:
            ConflictError: the request is already answered; without ``by``, perhaps by this call, whose first
                response was lost.
            NotFoundError: there is no such request."""

    def reply_question(
        self, id: str, question_id: str, answers: Sequence[Sequence[str]], *, by: str | None = None
    ) -> None:
        """Answer a question with the options chosen for each of its parts; raises as ``reply_permission``."""

    def reject_question(self, id: str, question_id: str, *, by: str | None = None) -> None:
        """Reject a question; raises as ``reply_permission``."""

    def cancel(self, id: str) -> None:
        """Cancel the running turn; the session stays."""

    def terminate(self, id: str) -> None:
        """End the session and its agent; its history stays."""

    def delete(self, id: str) -> None:
        """Erase the session with its history."""

    def export(self, id: str, *, format: ExportFormat = "jsonl") -> bytes:
        """Return the whole session as a document: one event per line, Markdown, or one HTML page."""

    def search(
        self,
        q: str,
        *,
        agent: str | None = None,
        session_id: str | None = None,
        since: Timestamp | None = None,
        until: Timestamp | None = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> SearchResponse:
        """Search the text, tool titles and tool output of all sessions.

        Args:
            q: words, all of which must match, and "phrases".
            agent: search only this agent's sessions.
            session_id: search only this session.
            since: the earliest time (a datetime, or milliseconds since the epoch).
            until: the latest time, exclusive.
            limit: the maximum number of hits, 100 or fewer.
            offset: the number of best hits to skip.

        Returns:
            The hits, best first, and whether there are more."""

    def permissions(self) -> list[PendingPermission]:
        """Return the open permission requests and questions of all sessions, oldest first."""

    def mirror(self, id: str, *, into: EventSink, include_raw: bool = False, allow_gaps: bool = False) -> int:
        """Copy a session's events into a sink, each once and in order, until the session has ended.

        Copying continues from the sink's last event and survives lost connections and restarts of the
        server; after a restart of your program call this method again. Cancel the call to stop earlier.

        Args:
            id: the session.
            into: the sink.
            include_raw: include the ACP envelope that each event was made from.
            allow_gaps: as in ``stream_events``; the sink must allow gaps, too.

        Returns:
            The sequence of the last event in the sink.

        Raises:
            PersistError: a built-in sink failed; custom sinks may raise other errors.
            GoneError: as ``stream_events``, like ConnectionLostError."""

class Files:
    """Reads and writes files in the sandbox; see ``SandboxAgent.files``.

    Every method waits until the server is healthy, and raises:

    * ``NotFoundError``: there is no such file or folder.
    * ``PermissionDeniedError``: the server's user may not do that, or ``--fs-root`` excludes the path.
    * ``InvalidRequestError``: the path is invalid, or a folder is where a file should be.
    * ``ConnectionLostError``: the server can't be reached."""
    def list(self, path: RemotePath = "") -> Sequence[FsEntry]:
        """Return what is in a folder, by name. Links are not followed, and count as files.

        Args:
            path: the folder; empty for the home of the server's user."""

    def stat(self, path: RemotePath) -> FsStat:
        """Return the type, size and time of a file or folder. Links are followed."""

    def read(self, path: RemotePath, *, start: int = 0, size: int | None = None) -> bytes:
        """Return the content of a file.

        Args:
            path: the file.
            start: the first byte.
            size: how many bytes at most; None for all."""

    def read_text(self, path: RemotePath, encoding: str = "utf-8") -> str:
        """Return the content of a text file."""

    def stream(self, path: RemotePath) -> EventIterator[bytes]:
        """Iterate over the content of a file, which is not held in memory."""

    def write(
        self,
        path: RemotePath,
        content: bytes | str | AsyncIterable[bytes],
        *,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> str:
        """Write a file, with the folders on the way to it. It appears when all of it has arrived.

        Args:
            path: the file.
            content: bytes, a text in UTF-8, or pieces of bytes.
            if_match: write only if the file has this version; "*" if it exists.
            if_absent: write only if the file does not exist.

        Returns:
            The file's version; empty from the published server, which has none.

        Raises:
            SandboxAgentError: with status 412, it has another version, or exists already."""

    def mkdir(self, path: RemotePath) -> str:
        """Make a folder, and those on the way to it; return its absolute path."""

    def move(self, source: RemotePath, target: RemotePath, *, overwrite: bool = False) -> str:
        """Move a file, link or folder; return its new absolute path.

        Raises:
            ConflictError: the target exists, and ``overwrite`` is False."""

    def delete(self, path: RemotePath, *, recursive: bool = False) -> None:
        """Delete a file, link or folder.

        Raises:
            ConflictError: the folder is not empty, and ``recursive`` is False."""

    def upload_batch(self, archive: bytes | IO[bytes], path: RemotePath = "") -> FsUploadBatchResponse:
        """Unpack a tar archive in a folder, which is made if necessary.

        Args:
            archive: the archive, without compression, or a file that has it.
            path: the folder; empty for the home of the server's user.

        Raises:
            InvalidRequestError: an entry leads out of the folder; nothing was written.
            PayloadTooLargeError: the archive is larger than the server's ``--max-upload-bytes``."""

    def upload_dir(
        self,
        source: str | os.PathLike[str],
        target: RemotePath,
        *,
        gitignore: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Upload what is in a folder of this machine. What is in the target besides stays.

        Args:
            source: the folder of this machine.
            target: the folder in the sandbox, which is made if necessary.
            gitignore: leave out what Git ignores, and ``.git``. Needs Git, and a folder in a repository.
            progress: called with the bytes that were sent, and of how many.

        Raises:
            InvalidRequestError: the source is not a folder, or Git does not know it."""

    def download_dir(
        self, source: RemotePath, target: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> Sequence[str]:
        """Download what is in a folder of the sandbox. What is in the target besides stays.

        Nothing is written outside of the target: links that lead out of it are left out.

        Args:
            source: the folder in the sandbox.
            target: the folder of this machine, which is made if necessary.
            progress: called with the bytes that were received, and None.

        Returns:
            The entries that were left out."""

    def diff(self, session: Session | str) -> FsDiff:
        """Return what has changed in a session's workspace since the session was created.

        A session of ``create_session`` is compared with the state when its agent created it: after a
        restore, that may be the time of the restore. Files that are not committed are included, unless Git
        ignores them.

        Args:
            session: a session, or the id of one of the server's.

        Raises:
            ServerSessionNotFoundError: the server has no such session.
            ConflictError: the workspace is not in a Git repository, its state at the start was not recorded,
                or Git is not installed in the sandbox."""

    @contextlib.contextmanager
    def watch(
        self, path: RemotePath = "", *, recursive: bool = True
    ) -> Generator[EventIterator[Sequence[FsChange]]]:
        """Watch a folder: every change after the context was entered is found. Links are not followed.

        ``async with sdk.files.watch("work") as batches: async for changes in batches: ...``. After a lost
        connection the server is asked for what was missed; if it does not know, or changes came faster than
        the system reports them, there is a change of the type "gap".

        Args:
            path: the folder; empty for the home of the server's user.
            recursive: whether to watch the folders in it, too.

        Raises:
            NotFoundError: there is no such folder; while iterating, it was deleted or moved.
            StreamError: the folder can't be watched, or not any more: too much is watched.
            ConnectionLostError: the server is gone."""

class FolderConfig:
    """Configures MCP servers and skills for the sessions in a folder; see ``SandboxAgent.config``.

    Sessions get what is configured for their working directory when they are opened. A folder is an absolute
    path in the sandbox, or one below the home of the server's user. Every method waits until the server is
    healthy, is repeated while the network fails, and raises:

    * ``InvalidRequestError``: a value is invalid, or the folder's file is damaged.
    * ``PermissionDeniedError``: the server's user may not do that, or ``--fs-root`` excludes the folder.
    * ``ConnectionLostError``: the server can't be reached."""
    def get_mcp(self, directory: RemotePath, name: str) -> McpServerConfig:
        """Return an MCP server of a folder.

        Raises:
            NotFoundError: the folder has no MCP server of that name."""

    def set_mcp(self, directory: RemotePath, name: str, server: McpServerConfig) -> None:
        """Configure an MCP server for the sessions in a folder, which is made if necessary.

        Args:
            directory: the folder.
            name: the server's name. One that the client passes to a session under this name takes its place.
            server: how it is started or reached."""

    def delete_mcp(self, directory: RemotePath, name: str) -> None:
        """Remove an MCP server from a folder's configuration. If it is not there, this has no effect."""

    def get_skills(self, directory: RemotePath, name: str) -> Sequence[SkillSource]:
        """Return the sources of skills of a folder.

        Raises:
            NotFoundError: the folder has no skills of that name."""

    def set_skills(self, directory: RemotePath, name: str, sources: Sequence[SkillSource]) -> None:
        """Configure skills for the sessions in a folder, which is made if necessary.

        Args:
            directory: the folder.
            name: a name for these sources; the skills have names of their own.
            sources: where the skills come from."""

    def delete_skills(self, directory: RemotePath, name: str) -> None:
        """Remove skills from a folder's configuration. If they are not there, this has no effect."""

class ProcessTerminal:
    """A viewer of a process's terminal; ``sdk.processes.terminal(id)`` makes one for ``async with``.

    Iterate over it for the terminal's output. It begins with output that draws what is on the screen, unless
    this is the first viewer. The iteration ends when the process has ended, and raises ConnectionLostError if
    the connection ends before. Output is not dropped: what is not read lets the process wait, and the server
    closes the connection of a viewer that reads nothing for 10 s.

    Listeners may be functions or coroutine functions. Registering one returns a function that unregisters it.

    Attributes:
        process_id: the process's id.
        exited: whether the process has ended.
        exit_code: its exit code; None while it runs, and if a signal has ended it."""
    @property
    def exited(self) -> bool: ...
    @property
    def exit_code(self) -> int | None: ...
    def on_ready(self, listener: Callable[[str], object]) -> Callable[[], None]:
        """Call a listener with the process's id, as the terminal is connected."""

    def on_data(self, listener: Callable[[bytes], object]) -> Callable[[], None]:
        """Call a listener with all output from now on. An iteration then receives none."""

    def on_exit(self, listener: Callable[[int | None], object]) -> Callable[[], None]:
        """Call a listener with the exit code when the process has ended; None if a signal has ended it."""

    def on_error(self, listener: Callable[[str], object]) -> Callable[[], None]:
        """Call a listener with what the server refuses, such as input that is too large."""

    def on_close(self, listener: Callable[[int], object]) -> Callable[[], None]:
        """Call a listener with the WebSocket's close code when the connection has ended."""

    def wait(self) -> int | None:
        """Wait until the process has ended, and return its exit code; None if a signal has ended it.

        Output that nothing else reads is dropped meanwhile.

        Raises:
            ConnectionLostError: the connection has ended before."""

    def send_input(self, data: str | bytes) -> None:
        """Send input to the process, as it is typed: Enter is a carriage return, Ctrl+C is the byte 3.

        Raises:
            ConnectionLostError: the connection has ended."""

    def resize(self, cols: int, rows: int) -> None:
        """Change the size of the terminal, for the process and all viewers.

        Args:
            cols: the width in characters.
            rows: the height.

        Raises:
            ConnectionLostError: the connection has ended."""

    def close(self) -> None:
        """Disconnect. The process continues."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def __iter__(self) -> EventIterator[bytes]: ...

class Processes:
    """Runs commands in the sandbox; see ``SandboxAgent.processes``.

    Every method waits until the server is healthy, and raises:

    * ``NotFoundError``: there is no process with that id.
    * ``InvalidRequestError``: an argument is invalid.
    * ``ConnectionLostError``: the server can't be reached."""
    def create(
        self,
        command: str,
        args: Sequence[str] = (),
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        tty: bool = False,
        cols: int | None = None,
        rows: int | None = None,
        interactive: bool = False,
        restart: ProcessRestartRequest | RestartMode | None = None,
    ) -> ProcessInfo:
        """Start a process, which continues when this client is gone. With it, all that it has started ends.

        Args:
            command: the program: a path, or a name that is searched for on ``PATH``.
            args: its arguments.
            cwd: its working directory in the sandbox. Default: that of the server.
            env: variables besides those that it inherits.
            tty: whether it gets a terminal instead of pipes.
            cols: the width of the terminal in characters. Default: 80. The published server ignores it.
            rows: its height. Default: 24. The published server ignores it.
            interactive: whether a person types its input.
            restart: when it is started again after it has ended: "never", "on_failure", "always", or a policy
                with its delays. The published server ignores it.

        Raises:
            InvalidRequestError: it can't be started.
            ConflictError: too many processes run.
            StreamError: the server can't start anything; the published server also if the command is wrong."""

    def run(
        self,
        command: str,
        args: Sequence[str] = (),
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        max_output_bytes: int | None = None,
    ) -> ProcessRunResponse:
        """Run a command to its end and return its output. It has no input.

        Args:
            command: the program: a path, or a name that is searched for on ``PATH``.
            args: its arguments.
            cwd: its working directory in the sandbox. Default: that of the server.
            env: variables besides those that it inherits.
            timeout: seconds after which it is killed, with all that it has started. Default: 30, and at most
                300, unless the server's limits were changed.
            max_output_bytes: how much of each output is returned. Default: as much as the server's limits
                allow.

        Raises:
            InvalidRequestError: it can't be started.
            StreamError: the server can't start anything; the published server also if the command is wrong."""

    def list(self, *, owner: ProcessOwner | None = None) -> Sequence[ProcessInfo]:
        """Return the processes, oldest first; the latest that have ended, too.

        Args:
            owner: whose processes: "user" for those that clients create; None for all."""

    def get(self, process_id: str) -> ProcessInfo:
        """Return a process."""

    def stop(self, process_id: str, *, wait: float | None = None) -> ProcessInfo:
        """Send SIGTERM to a process and to all that it has started. It is not restarted.

        Args:
            process_id: the process.
            wait: how many seconds to wait until it has ended. Default: 2.

        Returns:
            The process, which runs if it has not ended in that time."""

    def kill(self, process_id: str, *, wait: float | None = None) -> ProcessInfo:
        """Send SIGKILL to a process and to all that it has started. It is not restarted.

        Args:
            process_id: the process.
            wait: how many seconds to wait until it has ended. Default: 1."""

    def delete(self, process_id: str) -> None:
        """Delete a process that has ended, and its output.

        Raises:
            ConflictError: it runs, or waits to be restarted."""

    def send_input(self, process_id: str, data: bytes | str, *, eof: bool = False) -> int:
        """Write to the input of a process; return how many bytes were written.

        Args:
            process_id: the process.
            data: bytes, or a text in UTF-8.
            eof: whether its input ends with this. The published server ignores it.

        Raises:
            ConflictError: it does not run, or has closed its input.
            PayloadTooLargeError: the data is more than ``max_input_bytes_per_request``."""

    def terminal(self, process_id: str) -> ProcessTerminal:
        """Return the terminal of a process, for ``async with``. Any number of clients can have it open.

        Args:
            process_id: a process that was created with ``tty=True``.

        Raises:
            MissingExtraError: the extra ``terminal`` is not installed."""

    def resize_terminal(self, process_id: str, cols: int, rows: int) -> None:
        """Change the size of a terminal, for the process and all viewers.

        Args:
            process_id: the process.
            cols: the width in characters.
            rows: the height.

        Raises:
            ConflictError: it has no terminal, or has ended."""

    def logs(
        self,
        process_id: str,
        *,
        stream: ProcessStream = "combined",
        since: int | None = None,
        tail: int | None = None,
    ) -> ProcessLogsResponse:
        """Return the output of a process that is kept. ``gap`` has the range of what is dropped, if any is.

        Args:
            process_id: the process.
            stream: which output: "stdout", "stderr", "pty" of a terminal, or "combined" for all.
            since: the sequence of the last entry that the caller has; None for all.
            tail: only so many of the last entries."""

    def follow_logs(
        self,
        process_id: str,
        *,
        stream: ProcessStream = "combined",
        since: int | None = None,
        tail: int | None = None,
        allow_gaps: bool = False,
    ) -> EventIterator[ProcessLogEntry]:
        """Iterate over the output of a process until it has ended and is not restarted.

        Reconnects by itself; each entry is returned once.

        Args:
            process_id: the process.
            stream: which output: "stdout", "stderr", "pty" of a terminal, or "combined" for all.
            since: the sequence of the last entry that the caller has; None begins with the oldest that is
                kept.
            tail: begin with so many of the last entries.
            allow_gaps: skip entries that the server has dropped before they were received: the ``sequence``
                of the next one then is not the next number.

        Raises:
            GoneError: the next entries are dropped (``missingFrom`` and ``missingTo`` in its ``extensions``),
                or the server was restarted, and the process is gone.
            ConnectionLostError: the server is gone."""

    def get_config(self) -> ProcessConfig:
        """Return the limits for processes."""

    def set_config(self, config: ProcessConfig) -> ProcessConfig:
        """Replace the limits for processes, until the server ends; return those that count now."""

class SandboxAgent:
    """The SDK's entry point; made by ``connect`` or ``start``, closed by ``dispose`` or ``async with``.

    Attributes:
        persist: the driver that stores sessions and events."""
    @property
    def persist(self) -> SessionPersistDriver: ...
    @classmethod
    def connect(cls, base_url: str | None = None, **options: Unpack[ClientOptions]) -> Self:
        """Use a server that is running; await the result or enter it with ``async with``.

        Returns at once: the first request waits until the server is healthy.

        Args:
            base_url: the server's URL; required unless ``transport`` is given.
            **options: see ``ClientOptions``.

        Raises:
            ValueError: the URL is missing or invalid, or the token cannot be sent in a header."""

    @classmethod
    def start(
        cls, *, sandbox: SandboxProvider, sandbox_id: str | None = None, **options: Unpack[ClientOptions]
    ) -> Self:
        """Create a sandbox, or reconnect to one, and use its server; await the result or enter it.

        Leaving ``async with`` disposes the client and keeps the sandbox: ``destroy_sandbox`` removes it.

        Args:
            sandbox: the provider.
            sandbox_id: an earlier ``sdk.sandbox_id``; None creates a sandbox.
            **options: see ``ClientOptions``.

        Raises:
            SandboxDestroyedError: the sandbox of that id no longer exists.
            HealthTimeoutError: the server was not healthy in time; a new sandbox is destroyed."""

    @property
    def sandbox_id(self) -> str | None:
        """``<provider>/<id>``, or None for a client that was connected, not started."""

    @property
    def sandbox(self) -> SandboxProvider | None:
        """The provider."""

    @property
    def base_url(self) -> str:
        """The server's URL. It changes if the provider restarts the sandbox elsewhere."""

    @property
    def inspector_url(self) -> str:
        """The URL of the server's web inspector, without the token."""

    def dispose(self) -> None:
        """Close the connections and store all events; the sandbox is kept. Safe to call twice.

        Async listeners have 5 s to receive the remaining events.

        Raises:
            PersistError: some events could not be stored.
            SandboxAgentError: the client belongs to another event loop, which is still running."""

    def destroy_sandbox(self) -> None:
        """Dispose the client and destroy the sandbox."""

    def pause_sandbox(self) -> None:
        """Dispose the client and pause the sandbox, or destroy it if the provider cannot pause."""

    def kill_sandbox(self) -> None:
        """Dispose the client and destroy the sandbox without a graceful shutdown."""

    @overload
    def create_session(
        self, /, *, agent: AgentId, id: str | None = None, **options: Unpack[SessionOptions]
    ) -> Session:
        """Create a session; the same id and arguments again resume the session that exists.

        With the id as its first argument, this is ``sessions.create``: the server drives the session.

        Args:
            session_id: the id of a session of the server; options are then those of ServerSessionOptions.
            agent: the agent's id ("claude", "codex", …).
            id: the local id; None generates one.
            **options: see ``SessionOptions``.

        Raises:
            SessionAlreadyExistsError: the store has a session of that id, which was created with other
                arguments or destroyed.
            UnsupportedAgentError: the server does not know the agent.
            AgentNotInstalledError: the agent is not installed.
            AgentProcessExitedError: the agent exited at its start.
            HealthTimeoutError: the server was not healthy in time.
            TokenInvalidError: the server refuses the token.
            ValueError: the agent is empty, the permission mode or policy or an MCP server is invalid, or the
                mode contradicts the permission mode.
            UnsupportedSessionCategoryError: the agent lacks a setting; the session is destroyed.
            UnsupportedSessionValueError: the agent does not accept a value; the session is destroyed.
            SettingNotConfirmedError: the agent does not keep a value; the session is destroyed."""

    @overload
    def create_session(
        self, session_id: str, /, *, agent: AgentId, **options: Unpack[ServerSessionOptions]
    ) -> CreateSessionResponse:
        """Create a session; the same id and arguments again resume the session that exists.

        With the id as its first argument, this is ``sessions.create``: the server drives the session.

        Args:
            session_id: the id of a session of the server; options are then those of ServerSessionOptions.
            agent: the agent's id ("claude", "codex", …).
            id: the local id; None generates one.
            **options: see ``SessionOptions``.

        Raises:
            SessionAlreadyExistsError: the store has a session of that id, which was created with other
                arguments or destroyed.
            UnsupportedAgentError: the server does not know the agent.
            AgentNotInstalledError: the agent is not installed.
            AgentProcessExitedError: the agent exited at its start.
            HealthTimeoutError: the server was not healthy in time.
            TokenInvalidError: the server refuses the token.
            ValueError: the agent is empty, the permission mode or policy or an MCP server is invalid, or the
                mode contradicts the permission mode.
            UnsupportedSessionCategoryError: the agent lacks a setting; the session is destroyed.
            UnsupportedSessionValueError: the agent does not accept a value; the session is destroyed.
            SettingNotConfirmedError: the agent does not keep a value; the session is destroyed."""

    def resume_session(self, id: str, **options: Unpack[ResumeOptions]) -> Session:
        """Resume a stored session, whatever has happened to the process that drove it.

        If the agent still runs, this client takes the lost one's place: what the agent did meanwhile is
        stored, its open permission requests are delivered, and ``session.turn`` is the turn that runs. If the
        agent is gone, the session is restored. A process that only lost its connection keeps its place for
        10 s; this call waits for that, unless the process ran on this machine and has ended.

        Args:
            id: the session's id.
            **options: see ``ResumeOptions``.

        Raises:
            SessionNotFoundError: the store has no session of that id.
            SessionBusyError: another process drives the session.
            SessionFencedError: another client claimed the session meanwhile.
            UnsupportedAgentError: the server does not know the agent (any more); other errors as in
                ``create_session``. The session keeps its previous agent."""

    def resume_or_create_session(
        self, *, id: str, agent: AgentId, take_over: bool = False, **options: Unpack[SessionOptions]
    ) -> Session:
        """Resume the session of that id, or create it; arguments as in ``create_session``.

        An existing session keeps its agent, whatever ``agent`` says: ``resume_session`` hands it over."""

    def get_session(self, id: str) -> Session | None:
        """Return a stored session, or None; sends nothing to the server."""

    def list_sessions(self, *, limit: int | None = None, cursor: str | None = None) -> ListPage[Session]:
        """Return a page of the stored sessions, oldest first."""

    @overload
    def get_events(
        self, /, *, session_id: str, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        """Return a page of a session's stored events, oldest first.

        With the id as its first argument, this is ``sessions.get_events``: the events of a session of the
        server, with a sequence above ``offset``.

        Raises:
            SessionNotFoundError: the store has no session of that id.
            TypeError: there is no id, or both."""

    @overload
    def get_events(
        self, id: str, /, *, offset: int | None = 0, limit: int | None = None, include_raw: bool = False
    ) -> EventPage:
        """Return a page of a session's stored events, oldest first.

        With the id as its first argument, this is ``sessions.get_events``: the events of a session of the
        server, with a sequence above ``offset``.

        Raises:
            SessionNotFoundError: the store has no session of that id.
            TypeError: there is no id, or both."""

    def destroy_session(self, id: str) -> Session:
        """Cancel the session's turn and mark it as destroyed; its history stays and it can be resumed.

        Raises:
            SessionNotFoundError: the store has no session of that id."""

    def delete_session(self, id: str) -> None:
        """Cancel the session's turn and erase the session with its history.

        Raises:
            NotImplementedError: the driver cannot delete."""

    def on_request(self, method: str, handler: Callable[[Any], Awaitable[object] | object]) -> None:
        """Register a handler for an agent request method: its result of the params is the response.

        Requests without a handler are answered with "method not found", but for permission requests and
        questions, which go to their session. A handler of ``elicitation/create`` lets all agents that are
        started later ask questions, and answers them instead of the sessions."""

    @property
    def sessions(self) -> ServerSessions:
        """The sessions that the server itself stores and drives."""

    @property
    def files(self) -> Files:
        """The files of the sandbox."""

    @property
    def processes(self) -> Processes:
        """The processes of the sandbox."""

    @property
    def config(self) -> FolderConfig:
        """The MCP servers and skills that are configured for folders of the sandbox."""

    def post_message(self, id: str, message: Message, *, idempotency_key: str | None = None) -> str:
        """Send a message to a session of the server; this is ``sessions.post_message``."""

    def stream_events(
        self, id: str, *, offset: int = 0, include_raw: bool = False, allow_gaps: bool = False
    ) -> EventIterator[AgentEvent]:
        """Iterate over the events of a session of the server; this is ``sessions.stream_events``."""

    def get_health(self) -> HealthResponse:
        """Return the server's health document, without waiting for a healthy server."""

    def list_agents(self, *, config: bool = False, no_cache: bool = False) -> list[AgentInfo]:
        """Return the agents that the server knows.

        Args:
            config: include their config options.
            no_cache: query the agents again instead of using the server's cache."""

    def get_agent(self, agent: AgentId, *, config: bool = False, no_cache: bool = False) -> AgentInfo:
        """Return one agent.

        Raises:
            UnsupportedAgentError: the server does not know the agent."""

    def install_agent(self, agent: AgentId, *, reinstall: bool = False, **options: Any) -> dict[str, Any]:
        """Install an agent on the server and return what was installed.

        Args:
            agent: the agent's id.
            reinstall: install the agent even if it is installed already.
            **options: other members of the request body (``agentVersion``, ``agentProcessVersion``).

        Raises:
            InstallFailedError: the installation failed."""

    def list_acp_servers(self, *, usage: bool = False) -> list[AcpServerInfo]:
        """Return the server's live connections.

        Args:
            usage: include the memory and processor time of each agent's processes."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

SandboxAgentClient = SandboxAgent
