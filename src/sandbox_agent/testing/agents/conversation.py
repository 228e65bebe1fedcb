"""A session of the agent, driven by the SDK or by the server, with the same methods for both."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypedDict

import anyio
from anyio.abc import TaskGroup

from sandbox_agent.client.agent import SandboxAgent
from sandbox_agent.client.permissions import PermissionRequest
from sandbox_agent.client.session import Session
from sandbox_agent.engine.config_options import valid_options
from sandbox_agent.engine.permissions import PermissionMode, PermissionReply
from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.testing.agents.bed import AgentBed
from sandbox_agent.wire.acp import AgentMessageChunk, AgentThoughtChunk
from sandbox_agent.wire.jsonrpc import members
from sandbox_agent.wire.records import SessionEvent
from sandbox_agent.wire.universal import (
    ItemDeltaData,
    ItemEventData,
    PermissionEventData,
    ReasoningPart,
    TurnEventData,
    UniversalEvent,
)

Route: TypeAlias = Literal["sdk", "sessions"]
ROUTES: tuple[Route, ...] = ("sdk", "sessions")
Setting: TypeAlias = Literal["model", "mode", "thought_level"]
SETTINGS: tuple[Setting, ...] = ("model", "mode", "thought_level")
Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]

# Seconds that an agent may take to start, and for a turn in which the model answers at once.
TURN_SECONDS = 60.0


class Settings(TypedDict, total=False):
    """How a session is created; see ``SessionOptions``. ``options`` are set by their ids."""

    permission_mode: PermissionMode | None
    model: str | None
    mode: str | None
    thought_level: str | None
    mcp_servers: Sequence[Mapping[str, Any]] | None
    options: Mapping[str, str | bool]


@dataclass(slots=True)
class Turn:
    """A turn, as far as it is.

    Attributes:
        text: What the agent has said.
        thoughts: What it has thought.
        asked: The number of permission requests.
        stop_reason: Why it ended.
        cancelled: Whether it ended because it was cancelled.
        error: The text of the error with which it ended, or None.
        ended: Whether it has ended.
    """

    text: str = ""
    thoughts: str = ""
    asked: int = 0
    stop_reason: str | None = None
    cancelled: bool = False
    error: str | None = None
    ended: bool = False
    _changed: anyio.Event = field(default_factory=anyio.Event)

    def changed(self) -> None:
        """Check again what ``until`` waits for."""
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, condition: Callable[[Turn], bool], seconds: float = TURN_SECONDS) -> bool:
        """Wait until the condition holds or the turn has ended; return whether the condition holds."""
        with anyio.move_on_after(seconds):
            while not condition(self) and not self.ended:
                await self._changed.wait()
        return condition(self)

    async def end(self, seconds: float = TURN_SECONDS) -> bool:
        """Wait for the end of the turn; return whether it has ended in time."""
        return await self.until(lambda turn: turn.ended, seconds)


class Conversation(ABC):
    """A session of the agent.

    Attributes:
        reply: How permission requests are answered; None leaves them open.
        on_request: Called with each permission request before it is answered.
    """

    def __init__(self) -> None:
        self.reply: PermissionReply | None = None
        self.on_request: Callable[[], None] = lambda: None
        self._turn = Turn(ended=True)

    async def prompt(self, prompt: Prompt, seconds: float = TURN_SECONDS) -> Turn:
        """Send a prompt and wait for the end of its turn.

        Raises:
            AssertionError: The turn does not end, or ends with an error.
        """
        turn = await self.start(prompt)
        ended = await turn.end(seconds)
        assert ended, f"the turn did not end within {seconds:g} s"
        assert turn.error is None, f"the turn ended with an error: {turn.error}"
        return turn

    @abstractmethod
    async def start(self, prompt: Prompt) -> Turn:
        """Send a prompt."""

    @abstractmethod
    async def cancel(self) -> None:
        """Cancel the turn."""

    @abstractmethod
    async def settings(self) -> dict[str, str]:
        """Return the current model, mode and thought_level, as far as they are known."""

    @abstractmethod
    async def other_options(self) -> dict[str, str | bool]:
        """Return the values of the options that are neither model, mode nor thought level, by id."""

    @abstractmethod
    async def close(self) -> None:
        """End the session."""


class SdkConversation(Conversation):
    """A session that the SDK drives over ``/v1/acp``."""

    def __init__(self, sdk: SandboxAgent, session: Session, tasks: TaskGroup) -> None:
        super().__init__()
        self._sdk = sdk
        self.session = session
        self._tasks = tasks
        session.on_event(self._on_event)
        session.on_permission_request(self._on_permission)

    def _on_event(self, event: SessionEvent) -> None:
        update = event.update
        if isinstance(update, AgentMessageChunk):
            self._turn.text += update.text
        elif isinstance(update, AgentThoughtChunk):
            self._turn.thoughts += update.text
        self._turn.changed()

    async def _on_permission(self, request: PermissionRequest) -> None:
        self.on_request()
        self._turn.asked += 1
        self._turn.changed()
        if self.reply is not None:
            await self.session.respond_permission(request.id, self.reply)

    async def start(self, prompt: Prompt) -> Turn:
        turn = self._turn = Turn()
        self._tasks.start_soon(self._run, turn, prompt)
        return turn

    async def _run(self, turn: Turn, prompt: Prompt) -> None:
        try:
            response = await self.session.prompt(prompt)
            turn.stop_reason, turn.cancelled = response.stop_reason, response.cancelled
        except SandboxAgentError as error:
            turn.error = str(error) or type(error).__name__
        turn.ended = True
        turn.changed()

    async def cancel(self) -> None:
        await self.session.cancel()

    async def settings(self) -> dict[str, str]:
        options = await self.session.get_config_options()
        found = {str(option.get("category")): str(option.get("currentValue")) for option in options}
        if (modes := await self.session.get_modes()) is not None:
            found["mode"] = str(modes.get("currentModeId"))
        return {name: found[name] for name in SETTINGS if name in found}

    async def other_options(self) -> dict[str, str | bool]:
        return _others(await self.session.get_config_options())

    async def close(self) -> None:
        await self._sdk.destroy_session(self.session.id)


class ServerConversation(Conversation):
    """A session that the server drives: ``/v1/sessions``."""

    def __init__(self, bed: AgentBed, session_id: str, tasks: TaskGroup) -> None:
        super().__init__()
        self.id = session_id
        self._bed = bed
        self._sessions = bed.sdk.sessions
        self._thoughts: set[str] = set()
        self._texts: set[str] = set()
        tasks.start_soon(self._follow)

    async def _follow(self) -> None:
        try:
            async for event in self._sessions.stream_events(self.id):
                await self._on_event(event)
        except SandboxAgentError as error:
            self._turn.error, self._turn.ended = f"the events ended: {error}", True
            self._turn.changed()

    async def _on_event(self, event: UniversalEvent) -> None:
        turn, data = self._turn, event.data
        if isinstance(data, ItemEventData) and event.type == "item.started" and data.item.role == "assistant":
            is_thought = any(isinstance(part, ReasoningPart) for part in data.item.content)
            (self._thoughts if is_thought else self._texts).add(data.item.item_id)
        elif isinstance(data, ItemDeltaData):
            turn.text += data.delta if data.item_id in self._texts else ""
            turn.thoughts += data.delta if data.item_id in self._thoughts else ""
        elif isinstance(data, PermissionEventData) and event.type == "permission.requested":
            self.on_request()
            turn.asked += 1
            if self.reply is not None:
                with suppress(SandboxAgentError):  # its turn was cancelled
                    await self._sessions.reply_permission(self.id, data.permission_id, self.reply)
        elif isinstance(data, TurnEventData) and event.type == "turn.ended":
            ending = members(data.metadata)
            turn.stop_reason = ending.get("stop_reason")
            turn.cancelled = bool(ending.get("cancelled"))
            if turn.stop_reason in ("error", "interrupted") and not turn.cancelled:
                turn.error = str(ending.get("error") or ending.get("reason"))
            turn.ended = True
        turn.changed()

    async def start(self, prompt: Prompt) -> Turn:
        turn = self._turn = Turn()
        try:
            await self._sessions.post_message(
                self.id, prompt if isinstance(prompt, str) else [dict(block) for block in prompt]
            )
        except SandboxAgentError as error:
            turn.error, turn.ended = str(error), True
        return turn

    async def cancel(self) -> None:
        await self._sessions.cancel(self.id)

    async def settings(self) -> dict[str, str]:
        info = await self._sessions.get(self.id)
        found = {"model": info.model, "mode": info.agent_mode, "thought_level": info.variant}
        return {name: value for name, value in found.items() if value}

    async def other_options(self) -> dict[str, str | bool]:
        options: list[dict[str, Any]] = []
        for envelope in await self._bed.recorded(self.id):
            update = members(members(envelope.get("params")).get("update"))
            options = valid_options(members(envelope.get("result")).get("configOptions")) or options
            options = valid_options(update.get("configOptions")) or options
        return _others(options)

    async def close(self) -> None:
        await self._sessions.terminate(self.id)


def _others(options: Sequence[Mapping[str, Any]]) -> dict[str, str | bool]:
    return {
        str(option["id"]): option["currentValue"]
        for option in options
        if option.get("category") not in SETTINGS
    }


async def open_conversation(
    bed: AgentBed,
    route: Route,
    tasks: TaskGroup,
    settings: Settings,
) -> Conversation:
    """Create a session.

    Args:
        bed: The server.
        route: What drives it.
        tasks: Runs its turns.
        settings: How it is created.
    """
    with anyio.fail_after(TURN_SECONDS):
        if route == "sdk":
            session = await bed.sdk.create_session(
                agent=bed.agent,
                cwd=bed.work,
                mode=settings.get("mode"),
                model=settings.get("model"),
                thought_level=settings.get("thought_level"),
                permission_mode=settings.get("permission_mode"),
                mcp_servers=settings.get("mcp_servers"),
            )
            for config_id, value in settings.get("options", {}).items():
                await session.set_config_option(config_id, value)
            return SdkConversation(bed.sdk, session, tasks)
        session_id = f"check-{uuid.uuid4().hex[:12]}"
        await bed.sdk.sessions.create(
            session_id,
            agent=bed.agent,
            directory=str(bed.work),
            agent_mode=settings.get("mode"),
            model=settings.get("model"),
            variant=settings.get("thought_level"),
            permission_mode=settings.get("permission_mode"),
            mcp_servers=settings.get("mcp_servers"),
            config_options=settings.get("options"),
        )
        return ServerConversation(bed, session_id, tasks)
