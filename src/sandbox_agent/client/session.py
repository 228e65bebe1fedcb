"""The public handle of a session: prompts and their events, permissions, settings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from datetime import datetime
from typing import Any, Literal
from weakref import WeakKeyDictionary, ref

import msgspec

from sandbox_agent.client.journal import EventListener
from sandbox_agent.client.live import show_events
from sandbox_agent.client.outgoing import Outgoing
from sandbox_agent.client.permissions import PermissionListener, PermissionPolicy, PermissionRequest
from sandbox_agent.client.prompts import Prompt, prompt_blocks
from sandbox_agent.client.questions import QuestionListener, QuestionRequest
from sandbox_agent.client.session_core import SessionCore
from sandbox_agent.client.trace import current_trace
from sandbox_agent.client.viewer import Viewer
from sandbox_agent.engine import config_options as config
from sandbox_agent.engine.permissions import PermissionMode, PermissionReply, permission_mode_of
from sandbox_agent.engine.questions import Answers
from sandbox_agent.errors import ConflictError, SandboxAgentError
from sandbox_agent.wire.acp import AgentMessageChunk, PromptResponse, parse_prompt_response
from sandbox_agent.wire.jsonrpc import members
from sandbox_agent.wire.objects import ConfigOption, SessionModes
from sandbox_agent.wire.records import SessionEvent, SessionRecord
from sandbox_agent.wire.serial import Serializable
from sandbox_agent.wire.transcript import message_html, message_markdown


class Turn:
    """Iterates over a turn's events from the prompt to its response; ``await`` waits for the response.

    Leaving ``async with`` ends the iteration; the turn continues.
    """

    def __init__(
        self,
        core: SessionCore,
        send: Callable[[Outgoing], Coroutine[Any, Any, PromptResponse]],
        running: Outgoing | None = None,
    ) -> None:
        self._response: PromptResponse | None = None
        self._texts: list[str] = []
        self._core = core
        self._send = send
        self._outgoing: Outgoing | None = running
        self._viewer: Viewer | None = None
        self._sent: asyncio.Future[PromptResponse] | None = None
        self._answered = False
        self._ended = False

    def __aiter__(self) -> Turn:
        return self

    def __repr__(self) -> str:
        """Return the session and how the turn has ended."""
        state = "running" if self._response is None else self._response.stop_reason or "ended"
        return f"<Turn of session {self._core.id!r}: {state}>"

    async def __aenter__(self) -> Turn:
        """Return the turn."""
        return self

    async def __aexit__(self, *_error: object) -> None:
        """End the iteration, as ``aclose`` does."""
        await self.aclose()

    def _repr_html_(self) -> str:
        """Return what a notebook shows: what the agent has said."""
        return message_html("Agent", self.text)

    def _repr_markdown_(self) -> str:
        """Return the same as Markdown."""
        return message_markdown("Agent", self.text)

    @property
    def response(self) -> PromptResponse:
        """The prompt's response, once the turn has ended.

        Raises:
            SandboxAgentError: the turn was not awaited, or not iterated to its end.
        """
        if self._response is None:
            raise SandboxAgentError(
                f"the turn of session '{self._core.id}' has no response yet: await it, or iterate to its end"
            )
        return self._response

    @property
    def text(self) -> str:
        """What the agent has said in the events that were read: all of it if the turn was only awaited."""
        return "".join(self._texts)

    def __await__(self) -> Generator[Any, Any, PromptResponse]:
        """Wait for the end of the turn, without its events; raises as ``prompt``."""
        return self._wait().__await__()

    async def _wait(self) -> PromptResponse:
        if self._sent is None:
            if self._ended:
                raise SandboxAgentError(
                    f"the prompt of session '{self._core.id}' was not sent: the turn was left before its "
                    "first event; await it, or iterate over it, before that"
                )
            async for _ in self:  # for the text
                pass
        await self._end()
        return self.response

    async def __anext__(self) -> SessionEvent:
        """Return the next event of the turn, once it is stored."""
        if self._answered and not self._ended:
            await self._end()
        if self._ended:
            raise StopAsyncIteration
        viewer = self._viewer or self._begin()
        try:
            event = await anext(viewer)
        except StopAsyncIteration:
            await self._end()
            raise
        update = event.update
        if isinstance(update, AgentMessageChunk):
            self._texts.append(update.text)
        answer = self._outgoing.answer_event if self._outgoing is not None else None
        if answer is not None and event.id == answer.id:
            self._answered = True
        return event

    def _begin(self) -> Viewer:
        outgoing = self._outgoing
        if outgoing is None:
            viewer = self._core.journal.view(live=True, follow=False)
            outgoing = self._outgoing = Outgoing(self._core.host.next_request_id())
        else:
            viewer = self._core.journal.view_from(outgoing.event)
        self._viewer = viewer
        self._sent = self._core.host.tasks.run(self._send(outgoing), name="prompt")
        self._sent.add_done_callback(lambda _: viewer.close())
        return viewer

    async def _end(self) -> None:
        self._ended = True
        if self._sent is not None:
            self._response = await asyncio.shield(self._sent)

    async def aclose(self) -> None:
        """Stop the iteration; the turn continues."""
        self._ended = True


OnBusy = Literal["queue", "error"]


class Session(Serializable):
    """One conversation with one agent, kept in the store; made by a SandboxAgent.

    A session outlives its connection. The first call after the server or the agent restarted restores it:
    with the agent's own session/load or session/resume, or with a new agent session and the recent history
    in front of the next prompt.
    """

    def __init__(self, core: SessionCore, *, read_only: bool = False) -> None:
        self._core = core
        self._read_only = read_only

    def __repr__(self) -> str:
        return f"<Session {self.id!r} agent={self.agent!r}{' read-only' if self._read_only else ''}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the record without what the session was created with, which may hold secrets."""
        fields = self.record.to_dict()
        fields.pop("sessionInit", None)
        return fields

    async def __aenter__(self) -> Session:
        """Return the session."""
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Destroy the session, as ``SandboxAgent.destroy_session`` does; its history stays."""
        if not self._read_only:
            await self._core.host.destroy(self._usable)

    @property
    def _writer(self) -> SessionCore:
        """The session, for a call that changes it."""
        if self._read_only:
            raise SandboxAgentError(
                f"session '{self.id}' was resumed with read_only=True: resume it without that to change it"
            )
        return self._usable

    @property
    def record(self) -> SessionRecord:
        """The session's record."""
        return self._core.record

    @property
    def id(self) -> str:
        """The local id; a restore does not change it."""
        return self._core.record.id

    @property
    def agent(self) -> str:
        """The agent's id; it changes when the session is handed over to another agent."""
        return self._core.record.agent

    @property
    def agent_session_id(self) -> str:
        """The agent's own id for the session; it changes when a restore needs a new agent session."""
        return self._core.record.agent_session_id

    @property
    def last_connection_id(self) -> str:
        """The connection that the session used last."""
        return self._core.record.last_connection_id

    @property
    def created_at(self) -> int:
        """Milliseconds since the epoch."""
        return self._core.record.created_at

    @property
    def destroyed_at(self) -> int | None:
        """When the session was destroyed, in milliseconds since the epoch, or None."""
        return self._core.record.destroyed_at

    @property
    def created_time(self) -> datetime:
        """When the session was created, in UTC."""
        return self._core.record.created_time

    @property
    def destroyed_time(self) -> datetime | None:
        """When the session was destroyed, in UTC, or None."""
        return self._core.record.destroyed_time

    @property
    def _usable(self) -> SessionCore:
        # A call of another thread, event loop or process must fail before it changes anything.
        self._core.host.tasks.check_caller()
        return self._core

    @property
    def permission_policy(self) -> PermissionPolicy | None:
        """How permission requests are answered when there is no listener; can be set.

        Raises:
            ValueError: the value is neither a known name nor a function.
        """
        return self._core.permissions.policy

    @permission_policy.setter
    def permission_policy(self, policy: PermissionPolicy | None) -> None:
        self._writer.set_permission_policy(policy)

    @property
    def permission_mode(self) -> PermissionMode | None:
        """What the session may do: the chosen permission mode, else what the agent's own mode means.

        None if nothing was chosen and the meaning of the agent's mode is unknown.
        """
        chosen, record = self._core.permissions.mode, self._core.record
        mode = config.setting(record.config_options, record.modes, "mode")
        return chosen or permission_mode_of(record.agent, mode, self._core.host.modes.get(record.agent))

    async def set_permission_mode(self, permission_mode: PermissionMode) -> None:
        """Choose what the session may do, and set the agent's mode that this stands for.

        Args:
            permission_mode: "ask", "accept_edits", "allow", "plan" or "read_only".

        Raises:
            ValueError: there is no such mode.
            UnsupportedSessionValueError: the agent refuses its own mode.
        """
        await self._writer.set_permission_mode(permission_mode)

    # prompts

    async def prompt(self, prompt: Prompt, *, on_busy: OnBusy = "queue") -> PromptResponse:
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
                next append.
        """
        return await self._prompt(prompt, on_busy, None)

    async def _prompt(self, prompt: Prompt, on_busy: OnBusy, outgoing: Outgoing | None) -> PromptResponse:
        core = self._writer
        if on_busy not in {"queue", "error"}:
            raise ValueError(f'on_busy must be "queue" or "error", not {on_busy!r}')
        if on_busy == "error" and core.is_busy:
            raise ConflictError(
                f"conflict: a turn of session '{self.id}' runs or waits, so the prompt was not sent: send it "
                'when that turn has ended, or use on_busy="queue"'
            )
        blocks = prompt_blocks(prompt)
        outgoing = outgoing or Outgoing(core.host.next_request_id())
        core.prompts += 1
        try:
            result = await core.call("session/prompt", _params(blocks), outgoing)
        finally:
            core.prompts -= 1
            failure = core.take_failure()
        if failure is not None:
            raise failure
        return _response(result, outgoing)

    @property
    def turn(self) -> Turn | None:
        """The turn that runs, whichever process began it; None if none does.

        ``await turn`` returns its response as ``prompt`` does; iterating it yields its events from the prompt
        on.
        """
        running = self._core.running_turn()
        if running is None:
            return None

        async def join(outgoing: Outgoing) -> PromptResponse:
            return _response(await self._core.join_turn(running), outgoing)

        return Turn(self._core, join, running.outgoing)

    def stream(self, prompt: Prompt, *, on_busy: OnBusy = "queue") -> Turn:
        """Send a prompt and iterate over the turn's events, each once it is stored, until the turn ends.

        The prompt is sent when the iteration begins. Leaving the loop early does not cancel the turn;
        ``turn.response`` is the response at the end. An error of the turn is raised after its events. With
        ``on_busy="error"``, a prompt that is not sent raises ConflictError when the iteration begins.
        """
        blocks = prompt_blocks(prompt)
        return Turn(self._core, lambda outgoing: self._prompt(blocks, on_busy, outgoing))

    async def ask(self, prompt: Prompt, *, on_busy: OnBusy = "queue") -> str:
        """Send a prompt and return what the agent says; raises as ``prompt``."""
        turn = self.stream(prompt, on_busy=on_busy)
        await turn
        return turn.text

    async def show(self, prompt: Prompt, *, on_busy: OnBusy = "queue") -> PromptResponse:
        """Send a prompt and show the turn in the notebook while it runs; raises as ``prompt``.

        Raises:
            ImportError: IPython is not installed.
        """
        turn = self.stream(prompt, on_busy=on_busy)
        await show_events(turn)
        return turn.response

    def events(self, *, after: int = 0) -> Viewer:
        """Iterate over the events with an index above ``after``: stored ones, then live ones, each once.

        The iteration ends when the SandboxAgent is disposed.
        """
        return self._core.journal.view(after)

    async def cancel(self) -> None:
        """Cancel the turn and the agent's open requests; the prompt's response reports it.

        Does nothing if no agent holds the session.
        """
        core = self._writer
        connection = core.host.live_connection(core)
        if connection is not None:
            await core.cancel_on(connection)

    async def raw_send(
        self, method: str, params: Mapping[str, Any] | None = None, *, notification: bool = False
    ) -> Any:
        """Send any method to the agent and return its result (None for a notification).

        ``sessionId`` is added to the params.

        Raises:
            SandboxAgentError: the method is session/cancel; use ``cancel``.
        """
        if method == "session/cancel":
            raise SandboxAgentError("raw_send does not send session/cancel: use session.cancel()")
        fields = dict(params or {})
        if notification:
            await self._writer.notify(method, fields)
            return None
        return await self._writer.call(method, fields)

    # listeners

    def on_event(self, listener: EventListener) -> Callable[[], None]:
        """Call the listener with every event once it is stored; return a function that unregisters it.

        A sync listener is called before the ``prompt`` that the event belongs to returns; an async listener
        is awaited event by event in its own task. Exceptions of listeners are logged. If the store fails,
        listeners receive an event with index 0 and the method ``_sandbox_agent/persist_failed``.
        """
        return self._core.journal.listen(listener)

    def on_permission_request(self, listener: PermissionListener) -> Callable[[], None]:
        """Call the listener with permission requests; answer them with ``respond_permission``."""
        return self._core.permissions.listen(listener)

    def respond_permission(self, permission_id: str, reply: PermissionReply) -> Awaitable[None]:
        """Answer a permission request with "once", "always" or "reject".

        The response is sent at once, even if the result is not awaited.

        Raises:
            UnsupportedPermissionReplyError: the request has no such option; it stays open.
            SandboxAgentError: no such request is open.
        """
        return self._writer.permissions.respond(permission_id, reply)

    def raw_respond_permission(self, permission_id: str, response: Mapping[str, Any]) -> Awaitable[None]:
        """Answer a permission request with an ACP result (``{"outcome": …}``)."""
        return self._writer.permissions.respond_raw(permission_id, response)

    def pending_permissions(self) -> list[PermissionRequest]:
        """Return the permission requests that wait for an answer, oldest first."""
        return self._core.permissions.open_requests

    def on_question(self, listener: QuestionListener) -> Callable[[], None]:
        """Call the listener with the agent's questions; answer them with ``respond_question``.

        Agents ask only if the session was created with a ``question_policy``. Questions that are already open
        are delivered at once. Returns a function that unregisters the listener.
        """
        return self._core.questions.listen(listener)

    def respond_question(self, question_id: str, answers: Answers | None) -> Awaitable[None]:
        """Answer a question; None declines it.

        The response is sent at once, even if the result is not awaited.

        Args:
            question_id: the request's id.
            answers: one answer, a list with the answer of each field, or a dict by the fields' names. An
                answer is an option's label or value, or free text; several choices of one field are a list.

        Raises:
            InvalidRequestError: the answers do not match the question; it stays open.
            SandboxAgentError: no such question is open.
        """
        return self._writer.questions.respond(question_id, answers)

    def pending_questions(self) -> list[QuestionRequest]:
        """Return the questions that wait for an answer, oldest first."""
        return self._core.questions.open_requests

    # settings

    async def set_model(self, model: str) -> None:
        """Set the model.

        Raises:
            UnsupportedSessionCategoryError: the agent has no such option.
            UnsupportedSessionValueError: the option does not accept the value.
        """
        await self._set_category("model", model)

    async def set_thought_level(self, thought_level: str) -> None:
        """Set how much the agent thinks; raises as ``set_model``."""
        await self._set_category("thought_level", thought_level)

    async def set_mode(self, mode: str) -> None:
        """Set the mode with session/set_mode, or with a config option if the agent lacks that method.

        Raises:
            UnsupportedSessionValueError: the agent has no such mode.
            ValueError: the mode contradicts the chosen permission mode; use ``set_permission_mode``.
        """
        await self._set_category("mode", mode)

    async def set_config_option(self, config_id: str, value: str | bool) -> None:
        """Set any option by its id. A boolean option takes True, False, "true" or "false".

        Raises:
            UnsupportedSessionConfigOptionError: the agent has no such option.
            UnsupportedSessionValueError: the option does not accept the value.
        """
        await self._writer.settings.set_option(config_id, value, self._writer.call)
        await self._core.journal.flush()

    async def _set_category(self, category: str, value: str) -> None:
        await self._writer.settings.set_category(category, value, self._writer.call)
        await self._core.journal.flush()

    async def get_config_options(self) -> list[ConfigOption]:
        """Return the options in ACP's shape; fetched from the server if session/new returned none."""
        options = await self._usable.settings.options()
        await self._core.journal.flush()
        return [ConfigOption(option) for option in options]

    async def get_modes(self) -> SessionModes | None:
        """Return ``current_mode_id`` and ``available_modes``, or None if the agent has no modes."""
        modes = await self._usable.settings.modes()
        await self._core.journal.flush()
        return None if modes is None else SessionModes(modes)

    async def refresh(self) -> Session:
        """Read the record again, as another process may have changed it.

        Raises:
            SessionNotFoundError: the session was deleted.
        """
        if not self._usable.journal.is_fenced:
            await self._core.journal.flush()
        await self._core.host.require(self.id)
        return self


def waits_for_people(session: Session, permission_id: str) -> bool:
    """Return whether a permission request is open, and the session answers it neither by mode nor policy."""
    return session._core.permissions.waits_for_people(permission_id)  # pyright: ignore[reportPrivateUsage]


_handles: WeakKeyDictionary[SessionCore, ref[Session]] = WeakKeyDictionary()


def session_handle(core: SessionCore) -> Session:
    """Return the session's handle: the same object for as long as a caller holds it."""
    known = _handles.get(core)
    session = known() if known is not None else None
    if session is None:
        session = Session(core)
        _handles[core] = ref(session)
    return session


def _response(result: object, outgoing: Outgoing) -> PromptResponse:
    response = parse_prompt_response(members(result))
    is_cancelled = outgoing.cancelled or response.stop_reason == "cancelled"
    return msgspec.structs.replace(response, cancelled=is_cancelled)


def _params(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a prompt sends: its blocks, and the trace that it belongs to."""
    trace = current_trace()
    return {"prompt": blocks, **({"_meta": trace} if trace else {})}
