"""A session: prompts and their events, permissions, settings."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from sandbox_agent.client.connection import Connection
from sandbox_agent.client.envelopes import Envelope
from sandbox_agent.client.journal import EventListener, Journal
from sandbox_agent.client.outgoing import NotSentError, Outgoing
from sandbox_agent.client.permissions import PermissionDesk, PermissionListener, PermissionPolicy
from sandbox_agent.client.settings import Settings
from sandbox_agent.client.turn import Turn
from sandbox_agent.client.viewer import Viewer
from sandbox_agent.engine import config_options as config
from sandbox_agent.engine.permissions import PermissionReply
from sandbox_agent.errors import AcpRpcError, PersistError, SandboxAgentError, SessionNotFoundError
from sandbox_agent.wire.acp import PromptResponse, parse_prompt_response
from sandbox_agent.wire.records import SessionEvent, SessionRecord

if TYPE_CHECKING:
    from sandbox_agent.client.session_registry import SessionBook

__all__ = ["Prompt", "Session"]

# A request that did not reach the agent is sent again for this long, so often.
RESEND_FOR = 10.0
RESEND_DELAY = 0.1

Prompt = str | Sequence[Mapping[str, Any] | object]


class Session:
    """One conversation with one agent, kept in the store; made by a SandboxAgent.

    It outlives its connection: a call after the server or the agent restarted restores it first, by the
    agent's own means, or by a new agent session and the recent history in front of the next prompt.

    Attributes:
        journal: its events on their way to the store (not for users).
        unopenable: an agent session in whose opening an agent was lost (not for users).
    """

    def __init__(self, book: SessionBook, journal: Journal, desk: PermissionDesk) -> None:
        self.journal = journal
        self._book = book
        self._desk = desk
        self._settings = Settings(journal, book.agent_options)
        self._binding = asyncio.Lock()
        self._replay: str | None = None
        self.unopenable: str = ""

    def __repr__(self) -> str:
        return f"<Session {self.id!r} agent={self.agent!r}>"

    @property
    def record(self) -> SessionRecord:
        """The session's record."""
        return self.journal.record

    @property
    def id(self) -> str:
        """The local id: it stays the same when the session is restored."""
        return self.record.id

    @property
    def agent(self) -> str:
        """Which agent it talks to; another one after it was handed over."""
        return self.record.agent

    @property
    def agent_session_id(self) -> str:
        """The agent's own id of it; another one after a restore that the agent had no part in."""
        return self.record.agent_session_id

    @property
    def last_connection_id(self) -> str:
        """The connection that carried it last."""
        return self.record.last_connection_id

    @property
    def created_at(self) -> int:
        """Milliseconds since the epoch."""
        return self.record.created_at

    @property
    def destroyed_at(self) -> int | None:
        """When it was destroyed, milliseconds since the epoch, or None."""
        return self.record.destroyed_at

    @property
    def permission_policy(self) -> PermissionPolicy | None:
        """How requests are answered when there is no listener; may be set.

        Raises:
            ValueError: it is neither a known name nor a function.
        """
        return self._desk.policy

    @permission_policy.setter
    def permission_policy(self, policy: PermissionPolicy | None) -> None:
        self._desk.policy = policy

    # prompts

    async def prompt(self, prompt: Prompt) -> PromptResponse:
        """Say something and return when the turn is over and all its events are in the store.

        Cancelling this call does not cancel the turn: ``cancel`` does.

        Args:
            prompt: text, or ACP content blocks.

        Raises:
            ConnectionLostError: the server or the agent went away; the message says whether the prompt
                was sent. The next call restores the session.
            AgentProcessExitedError: the agent's process ended.
            AcpRpcError: the agent refused or failed.
            SessionFencedError: another process has taken the session over: ``resume_session`` takes it
                back. The prompt was not sent, or else the turn is over and its events are not stored.
            PersistError: the turn is over and the store failed; its events go again with the next append.
        """
        return await self._prompt(prompt, Outgoing(self._book.next_request_id()))

    async def _prompt(self, prompt: Prompt, outgoing: Outgoing) -> PromptResponse:
        result = await self._call("session/prompt", {"prompt": _blocks(prompt)}, outgoing)
        return parse_prompt_response(cast("dict[str, Any]", result) if isinstance(result, dict) else {})

    def stream(self, prompt: Prompt) -> Turn:
        """Say something and iterate over the turn's events, each once it is stored, until its end.

        The prompt is sent when the iteration begins. Leaving the loop early does not cancel the turn;
        ``turn.response`` has the answer at the end. An error of the turn is raised after its events.
        """
        return Turn(self, lambda outgoing: self._prompt(prompt, outgoing), self._book)

    def events(self, *, after: int = 0) -> Viewer:
        """Iterate over the events with a higher index: those stored, then live ones, each once.

        Ends when the SandboxAgent is disposed.
        """
        return self.journal.view(after)

    async def cancel(self) -> None:
        """Stop the turn; open permission requests are cancelled. The prompt's answer says so.

        Nothing happens where no agent holds the session.
        """
        connection = self._book.live_connection(self)
        if connection is not None:
            await self.cancel_on(connection)

    async def cancel_on(self, connection: Connection) -> None:
        """Send the cancellation over a connection, then answer what is open: in that order, says ACP."""
        try:
            await connection.notify("session/cancel", {"sessionId": self.agent_session_id}, session=self)
        finally:
            await self._desk.cancel_all()

    async def raw_send(
        self, method: str, params: Mapping[str, Any] | None = None, *, notification: bool = False
    ) -> Any:
        """Send any method of the agent's and return its result (None for a notification).

        ``sessionId`` is added to the params.

        Raises:
            SandboxAgentError: the method is session/cancel; use ``cancel``.
        """
        if method == "session/cancel":
            raise SandboxAgentError("session/cancel can't be sent by hand: use session.cancel()")
        fields = dict(params or {})
        if not notification:
            result = await self._call(method, fields)
            self._settings.apply_result(method, fields, result)
            await self.journal.flush()
            return result
        connection = await self._book.bound_connection(self)
        await connection.notify(method, {**fields, "sessionId": self.agent_session_id}, session=self)
        return None

    async def _call(self, method: str, params: dict[str, Any], outgoing: Outgoing | None = None) -> Any:
        sent = outgoing or Outgoing(self._book.next_request_id())
        try:
            result = await self._try_call(method, params, sent)
        except (AcpRpcError, NotSentError):
            await self._flush_quietly()
            raise
        await self.journal.flush()
        return result

    async def _flush_quietly(self) -> None:
        # The error at hand comes first; the journal tells its listeners.
        with contextlib.suppress(PersistError):
            await self.journal.flush()

    async def _try_call(self, method: str, params: dict[str, Any], sent: Outgoing) -> Any:
        deadline = time.monotonic() + RESEND_FOR
        while True:
            try:
                return await self._call_once(method, params, sent)
            except NotSentError:
                # The agent saw nothing, so it may go again: over the same connection when its server is
                # back, or over a new one, for which the book waits.
                if not self._book.is_reachable or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(RESEND_DELAY)

    async def _call_once(self, method: str, params: dict[str, Any], sent: Outgoing) -> Any:
        connection = await self._book.bound_connection(self)
        stored = {**params, "sessionId": self.agent_session_id}
        if method == "session/prompt" and self._book.is_fenced:
            # Who was replaced is told now, not when the agent has done the work.
            await self.journal.confirm()
        if method != "session/prompt" or self._replay is None:
            return await connection.request(method, stored, session=self, outgoing=sent)
        replay, self._replay = self._replay, None
        with_replay = {**stored, "prompt": [{"type": "text", "text": replay}, *stored.get("prompt", [])]}
        try:
            return await connection.request(
                method, with_replay, session=self, stored_params=stored, outgoing=sent
            )
        except (NotSentError, AcpRpcError):
            # Not heard, or refused: the agent still doesn't know the history.
            self._replay = self._replay or replay
            raise

    def set_replay(self, text: str | None) -> None:
        """Put a text in front of the next prompt, or none (used by restore)."""
        self._replay = text

    # listeners

    def on_event(self, listener: EventListener) -> Callable[[], None]:
        """Call it with every event once it is stored; returns what ends that.

        A function is called before the ``prompt`` that the event belongs to returns; a coroutine
        function is awaited in order, in a task of its own. What it raises is logged. When the store
        fails it gets an event with index 0 and the method ``_sandbox_agent/persist_failed``.
        """
        return self.journal.listen(listener)

    def on_permission_request(self, listener: PermissionListener) -> Callable[[], None]:
        """Ask it whether the agent may use a tool; answer with ``respond_permission``."""
        return self._desk.listen(listener)

    def respond_permission(self, permission_id: str, reply: PermissionReply) -> Awaitable[None]:
        """Answer a request with "once", "always" or "reject".

        It is sent at once, even if the result is not awaited.

        Raises:
            UnsupportedPermissionReplyError: no option stands for it; the request stays open.
            SandboxAgentError: no such request is open.
        """
        return self._desk.respond(permission_id, reply)

    def raw_respond_permission(self, permission_id: str, response: Mapping[str, Any]) -> Awaitable[None]:
        """Answer a request with a result as ACP has it (``{"outcome": …}``)."""
        return self._desk.respond_raw(permission_id, response)

    # settings

    async def set_model(self, model: str) -> None:
        """Choose the model.

        Raises:
            UnsupportedSessionCategoryError: the agent has no such option.
            UnsupportedSessionValueError: it does not take that value.
        """
        await self._set_category("model", model)

    async def set_thought_level(self, thought_level: str) -> None:
        """Choose how much the agent thinks; raises as ``set_model``."""
        await self._set_category("thought_level", thought_level)

    async def set_mode(self, mode: str) -> None:
        """Choose the mode, by session/set_mode or, where the agent lacks that, its config option.

        Raises:
            UnsupportedSessionValueError: there is no such mode.
        """
        await self._settings.set_mode(mode, self._call)
        await self.journal.flush()

    async def set_config_option(self, config_id: str, value: str) -> None:
        """Set any option by its id.

        Raises:
            UnsupportedSessionConfigOptionError: there is no such option.
            UnsupportedSessionValueError: it does not take that value.
        """
        await self._settings.set_option(config_id, value, self._call)
        await self.journal.flush()

    async def _set_category(self, category: str, value: str) -> None:
        await self._settings.set_category(category, value, self._call)
        await self.journal.flush()

    async def get_config_options(self) -> list[dict[str, Any]]:
        """Return the options as ACP gives them, asked from the server where session/new gave none."""
        options = await self._settings.options()
        await self.journal.flush()
        return options

    async def get_modes(self) -> dict[str, Any] | None:
        """Return ``currentModeId`` and ``availableModes``, or None where the agent has no modes."""
        modes = await self._settings.modes()
        await self.journal.flush()
        return modes

    async def refresh(self) -> Session:
        """Read the record again, as another process may have changed it.

        Raises:
            SessionNotFoundError: it was deleted.
        """
        await self.journal.flush()
        if await self._book.load(self.id) is None:
            raise SessionNotFoundError(self.id)
        return self

    # what the connection tells

    def bound(self, connection: Connection, result: Mapping[str, Any]) -> None:
        """Take the agent session into the record: a new one, or the same in another connection."""
        options = config.valid_options(result.get("configOptions"))
        given: object = result.get("modes")
        modes = cast("dict[str, Any]", given) if isinstance(given, dict) else None
        modes = modes or config.modes_from_options(options)
        if result["sessionId"] == self.agent_session_id and connection.agent == self.agent:
            # What the agent says nothing of is as it was.
            options = self.record.config_options if options is None else options
            modes = modes or self.record.modes
        self.journal.change(
            agent=connection.agent,
            agent_session_id=result["sessionId"],
            last_connection_id=connection.connection_id,
            destroyed_at=None,
            config_options=options,
            modes=modes,
        )

    def observe_update(self, line: bytes) -> None:
        """Take a config_option_update or current_mode_update into the record."""
        self._settings.apply_update(line)

    def on_agent_request(self, connection: Connection, head: Envelope, event: SessionEvent) -> None:
        """Take a permission request, after what came before it was told."""

        async def respond(raw_id: Any, result: object) -> None:
            await connection.respond(raw_id, self, result=result)

        async def take() -> None:
            await self._flush_quietly()
            params: object = event.payload.get("params")
            fields = cast("dict[str, Any]", params) if isinstance(params, dict) else {}
            await self._desk.open(head.id, fields, respond)

        self._book.spawn(take(), name=f"permission for {self.id}")

    def unbound(self, connection: Connection) -> None:
        """Forget what the lost connection's agent asked."""
        if self.journal.dirty:
            self._book.keep(self)
        if self.last_connection_id == connection.connection_id:
            self._desk.forget_all()

    @property
    def desk(self) -> PermissionDesk:
        """Its permission requests (not for users)."""
        return self._desk

    @property
    def settings(self) -> Settings:
        """What it is set to (not for users)."""
        return self._settings

    @property
    def binding(self) -> asyncio.Lock:
        """Held while it is bound to a connection (not for users)."""
        return self._binding


def _blocks(prompt: Prompt) -> list[object]:
    given = cast("object", prompt)
    if isinstance(given, str):
        return [{"type": "text", "text": given}]
    if isinstance(given, bytes) or not isinstance(given, Sequence):
        raise TypeError(f"a prompt is a str or a list of content blocks, not {type(given).__name__}")
    return list(cast("Sequence[object]", given))
