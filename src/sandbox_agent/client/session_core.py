"""The internals of a session: its journal, settings, open requests, and the calls to its agent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

from sandbox_agent.client.agent_info import KnownModes
from sandbox_agent.client.broker import R, RequestBroker, Respond
from sandbox_agent.client.connection import Connection
from sandbox_agent.client.envelopes import Answer
from sandbox_agent.client.journal import Journal
from sandbox_agent.client.outgoing import NotSentError, Outgoing, PendingRequest
from sandbox_agent.client.permissions import PermissionBroker, PermissionPolicy, permission_mode
from sandbox_agent.client.questions import QuestionBroker, QuestionPolicy
from sandbox_agent.client.settings import SET_METHODS, Settings, init_with_variables, variable_names
from sandbox_agent.client.tasks import TaskOwner
from sandbox_agent.engine import config_options as config
from sandbox_agent.engine.cancellation import cancel_grace_of
from sandbox_agent.engine.handshake import is_lost_session
from sandbox_agent.engine.permissions import PermissionMode
from sandbox_agent.errors import AcpRpcError, InvalidRequestError, PersistError
from sandbox_agent.wire.jsonrpc import members
from sandbox_agent.wire.records import SessionEvent, SessionRecord
from sandbox_agent.wire.requests import read_permission, read_question_request

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

# A request that did not reach the agent is sent again until this many seconds have passed.
RESEND_FOR = 10.0
RESEND_DELAY = 0.1


class Policies(NamedTuple):
    """What answers the agent's requests when there is no listener."""

    permissions: PermissionPolicy | None = None
    questions: QuestionPolicy | None = None


class SessionHost(Protocol):
    """What a session needs of its client; ``SessionRegistry`` documents the members."""

    tasks: TaskOwner

    @property
    def is_fenced(self) -> bool: ...

    cancel_grace: float
    modes: KnownModes

    def next_request_id(self) -> int: ...
    def keep(self, session: SessionCore) -> None: ...
    def live_connection(self, session: SessionCore) -> Connection | None: ...
    async def bound_connection(self, session: SessionCore) -> Connection: ...
    async def end_turn(self, session: SessionCore, connection: Connection) -> None: ...
    async def require(self, session_id: str) -> SessionCore: ...
    async def destroy(self, session: SessionCore) -> None: ...
    async def agent_options(self, agent: str) -> list[dict[str, Any]]: ...
    async def explain(self, agent: str, error: AcpRpcError) -> None: ...


class SessionCore:
    """A session as the client works with it; ``Session`` is its public handle.

    Attributes:
        journal: stores the session's events and its record.
        permissions: the session's open permission requests.
        questions: the session's open questions.
        settings: the session's model, mode and other options.
        binding: held while the session is bound to a connection.
        replay: the text in front of the next prompt, or None.
        unopenable: id of an agent session whose opening crashed its agent, or which the agent lost again; it
            is not opened again.
        prompts: how many calls have a prompt that runs or waits.
        acted: whether the agent has used a tool, or asked for permission, since the last prompt was sent.
    """

    def __init__(self, host: SessionHost, journal: Journal, permissions: PermissionBroker) -> None:
        self.journal = journal
        self.permissions = permissions
        self.questions: QuestionBroker = QuestionBroker(journal.record.id, host.tasks)
        self.settings: Settings = Settings(journal, host.agent_options, host.modes.get)
        self.binding: asyncio.Lock = asyncio.Lock()
        self.unopenable: str = ""
        self.prompts: int = 0
        self.acted: bool = False
        self.host = host
        self._turn = asyncio.Lock()
        self.replay: str | None = None
        self._has_new_policy = False
        self._variables: dict[str, str] = {}
        self.read_permissions()

    @property
    def record(self) -> SessionRecord:
        """The session's record."""
        return self.journal.record

    @property
    def id(self) -> str:
        """The local id."""
        return self.record.id

    @property
    def agent(self) -> str:
        """The agent's id."""
        return self.record.agent

    @property
    def agent_session_id(self) -> str:
        """The agent's own id for the session."""
        return self.record.agent_session_id

    @property
    def is_busy(self) -> bool:
        """Whether a turn runs or waits, also one whose caller was cancelled."""
        connection = self.host.live_connection(self)
        return self.prompts > 0 or (connection is not None and bool(connection.turns_of(self)))

    # permissions and questions

    @property
    def answers_questions(self) -> bool:
        """Whether there is a listener or a policy for questions."""
        return self.questions.can_answer

    def read_permissions(self) -> None:
        """Use the permission mode and policies of the record; a function is never stored, so it stays."""
        chosen = self.settings.chosen
        if chosen.questions and self.questions.policy is None:
            self.questions.policy = "ask"
        with contextlib.suppress(ValueError):  # a newer version's
            self.permissions.mode = permission_mode(chosen.permission_mode)
            if chosen.permission_policy is not None and not self._has_new_policy:
                self.permissions.policy = cast("PermissionPolicy", chosen.permission_policy)

    def set_permission_policy(self, policy: PermissionPolicy | None) -> None:
        """Change the policy; it is stored once this client is the session's writer.

        Raises:
            ValueError: the value is neither a known name nor a function.
        """
        self.permissions.policy = policy
        self._has_new_policy = True
        if self.host.live_connection(self) is not None:
            self.store_policies()

    def set_variables(self, variables: Mapping[str, str]) -> None:
        """Use these variables for the agents that are started from now on; their names are stored."""
        self._variables = dict(variables)
        if sorted(variables) != variable_names(self.record):
            init = init_with_variables(self.record.session_init or {}, variables)
            self.journal.change(session_init=init)

    def variables(self) -> Mapping[str, str]:
        """Return the session's variables.

        Raises:
            InvalidRequestError: this client does not know their values.
        """
        names = variable_names(self.record)
        if any(name not in self._variables for name in names):
            raise InvalidRequestError(
                f"session '{self.id}' has variables of its own ({', '.join(names)}), whose values are not "
                "stored: pass env= to resume_session"
            )
        return self._variables

    def set_policies(self, policies: Policies) -> None:
        """Change the policies that are given, as ``set_permission_policy`` does."""
        if policies.questions is not None:
            self.questions.policy = policies.questions
        if policies.permissions is not None:
            self.set_permission_policy(policies.permissions)
        elif self.host.live_connection(self) is not None:
            self.store_policies()

    def store_policies(self) -> None:
        """Record policies that were changed; the session's writer calls it."""
        if self.questions.policy is not None and not self.settings.chosen.questions:
            self.settings.choose(questions=True)
        if self._has_new_policy:
            policy = self.permissions.policy
            self.settings.choose(permission_policy=policy if isinstance(policy, str) else None)
            self._has_new_policy = False

    async def set_permission_mode(self, mode: PermissionMode) -> None:
        """Change the permission mode, and the agent's mode that it stands for."""
        wanted = permission_mode(mode)
        await self.host.modes.load(self.agent)
        await self.settings.set_permission_mode(wanted, self.call)
        self.permissions.mode = wanted
        await self.journal.flush()

    # calls to the agent

    async def call(self, method: str, params: dict[str, Any], outgoing: Outgoing | None = None) -> Any:
        """Send a request until the agent receives it; return the result once its events are stored.

        Raises:
            NotSentError: the agent did not receive the request.
            ConnectionLostError: the connection was lost during the request.
            AcpRpcError: the agent responded with an error.
            SettingNotConfirmedError: the agent does not keep a setting that was chosen; no prompt was sent.
            PersistError: the store failed.
        """
        sent = outgoing or Outgoing(self.host.next_request_id())
        deadline = time.monotonic() + RESEND_FOR
        is_last = False
        try:
            while True:
                try:
                    result = await self._send(method, params, sent)
                    break
                except AcpRpcError as error:
                    if not is_lost_session(error.rpc_message, error.data):
                        raise
                    if not self._forget_agent_session(sent) or (method == "session/prompt" and self.acted):
                        raise
                    logger.warning("session %s: the agent has lost it: it is restored (%s)", self.id, error)
                    sent.retry(self.host.next_request_id())
                    continue
                except NotSentError:
                    # Safe to repeat: over the same connection when its server is back, or over a new one.
                    if is_last or not self.host.tasks.running:
                        raise
                    # Once more after the deadline: a try may take as long as its server takes to start.
                    is_last = time.monotonic() > deadline
                await asyncio.sleep(RESEND_DELAY)
        except (AcpRpcError, NotSentError) as error:
            await self._flush_quietly()
            if isinstance(error, AcpRpcError):
                await self.host.explain(self.agent, error)
            raise
        await self.journal.flush()
        return result

    def _forget_agent_session(self, sent: Outgoing) -> bool:
        """Unbind an agent session that its agent has lost; return whether to restore it and send again."""
        connection = self.host.live_connection(self)
        if connection is not None:
            connection.router.forget(self.agent_session_id)
        if sent.retried:
            # The agent opened it and lost it again: the next restore creates another one.
            self.unopenable = self.agent_session_id
        return not sent.retried

    async def _send(self, method: str, params: dict[str, Any], sent: Outgoing) -> Any:
        if method == "session/prompt":
            async with self._turn:  # a second prompt is sent when the first turn has ended
                return await self._prompt(params, sent)
        connection = await self.host.bound_connection(self)
        on_result = partial(self.settings.user_set, method, params) if method in SET_METHODS else None
        stored = {**params, "sessionId": self.agent_session_id}
        return await connection.request(method, stored, session=self, outgoing=sent, on_result=on_result)

    async def _prompt(self, params: dict[str, Any], sent: Outgoing) -> Any:
        method = "session/prompt"
        connection = await self.host.bound_connection(self)
        # The caller of an earlier prompt may have been cancelled: its turn continues.
        await connection.wait_turns_ended(self)
        stored = {**params, "sessionId": self.agent_session_id}
        if self.host.is_fenced:
            # A replaced writer learns it now, not after the agent has done the work.
            await self.journal.confirm()
        await self.settings.confirm(partial(self.send_setting, connection))
        self.settings.prompted()
        self.acted = False
        if self.replay is None:
            return await connection.request(method, stored, session=self, outgoing=sent)
        replay, self.replay = self.replay, None
        with_replay = {**stored, "prompt": [{"type": "text", "text": replay}, *stored.get("prompt", [])]}
        try:
            return await connection.request(
                method, with_replay, session=self, stored_params=stored, outgoing=sent
            )
        except (NotSentError, AcpRpcError):
            # Not received or refused: the agent still does not know the history.
            self.replay = self.replay or replay
            raise

    def running_turn(self) -> PendingRequest | None:
        """Return the prompt whose turn runs, whichever client sent it, or None."""
        connection = self.host.live_connection(self)
        turns = connection.turns(self) if connection is not None else []
        return turns[0] if turns else None

    async def join_turn(self, turn: PendingRequest) -> Any:
        """Return the result of a turn once its events are stored; raises as ``call``."""
        line = await asyncio.shield(turn.future)
        await self.journal.flush()
        return Answer.read(line).unwrap()

    async def send_setting(self, connection: Connection, method: str, params: dict[str, Any]) -> Any:
        """Send a set request for a setting that was chosen earlier."""
        return await connection.request(
            method,
            {**params, "sessionId": self.agent_session_id},
            session=self,
            on_result=partial(self.settings.apply_result, method, params),
        )

    async def notify(self, method: str, params: dict[str, Any]) -> None:
        """Send a notification to the session's agent."""
        connection = await self.host.bound_connection(self)
        await connection.notify(method, {**params, "sessionId": self.agent_session_id}, session=self)

    async def cancel_on(self, connection: Connection) -> None:
        """Cancel the turn on a connection, then the agent's open requests (ACP wants this order).

        An agent that does not end the turn within the grace period is stopped.
        """
        self.journal.check_fence()  # the turn may be another process's
        for pending in connection.turns(self):
            pending.outgoing.cancelled = True
        turns = connection.turns_of(self)
        if turns:
            self.host.tasks.spawn(self._end_if_ignored(connection, turns), name=f"cancellation of {self.id}")
        try:
            await connection.notify("session/cancel", {"sessionId": self.agent_session_id}, session=self)
        finally:
            await self.cancel_requests()

    async def _end_if_ignored(self, connection: Connection, turns: set[asyncio.Event]) -> None:
        grace = cancel_grace_of(connection.agent, self.host.cancel_grace)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await asyncio.gather(*(turn.wait() for turn in turns))
        if connection.lost is not None or all(turn.is_set() for turn in turns):
            return
        logger.warning(
            "agent %s did not end a turn of session %s within %g s of session/cancel: it is stopped",
            connection.agent,
            self.id,
            grace,
        )
        await self.host.end_turn(self, connection)

    async def _flush_quietly(self) -> None:
        # The caller has an earlier error to raise; the journal reports its own to the listeners.
        with contextlib.suppress(PersistError):
            await self.journal.flush(quiet=True)

    # events of the connection

    def on_bound(self, agent: str, connection_id: str, result: Mapping[str, Any]) -> None:
        """Record the opened agent session: a new one, or the same one on another connection."""
        options = config.options_of(result)
        modes = members(result.get("modes")) or config.modes_from_options(options)
        if result["sessionId"] == self.agent_session_id and agent == self.agent:
            # What the agent does not mention has not changed.
            options = self.record.config_options if options is None else options
            modes = modes or self.record.modes
        self.journal.change(
            agent=agent,
            agent_session_id=result["sessionId"],
            last_connection_id=connection_id,
            destroyed_at=None,
            config_options=options,
            modes=modes,
        )

    def on_attached(self, connection_id: str) -> None:
        """Record that this client took another one's place on its connection."""
        self.journal.change(last_connection_id=connection_id)
        self.settings.expect_confirmation()

    def on_unbound(self, connection_id: str) -> None:
        """Drop the open requests of an agent that is gone."""
        if self.journal.dirty:
            self.host.keep(self)
        if self.record.last_connection_id == connection_id:
            self.forget_requests()

    def on_state_update(self, line: bytes) -> None:
        """Record a config_option_update or current_mode_update."""
        self.settings.apply_update(line)

    def on_permission_request(self, event: SessionEvent, respond: Respond, *, must_ask: bool) -> None:
        """Open a permission request once all events before it are delivered."""
        self.acted = True
        self._open_later(self.permissions, read_permission(event), respond, must_ask)

    def on_question_request(self, event: SessionEvent, respond: Respond, *, must_ask: bool) -> None:
        """Open a question once all events before it are delivered."""
        self.acted = True
        question = read_question_request(event)
        if question is not None:
            self._open_later(self.questions, question, respond, must_ask)

    def _open_later(self, broker: RequestBroker[R], request: R, respond: Respond, must_ask: bool) -> None:
        pending = broker.add(request, respond)

        async def flush_and_open() -> None:
            await self._flush_quietly()
            if self.journal.is_fenced:
                broker.forget(pending)  # the process that took the session over answers
            else:
                await broker.open(pending, must_ask=must_ask)

        self.host.tasks.spawn(flush_and_open(), name=f"request of {self.id}")

    @property
    def has_open_requests(self) -> bool:
        """Whether a request of the agent waits for an answer."""
        return bool(self.permissions.open_requests or self.questions.open_requests)

    async def cancel_requests(self) -> None:
        """Answer the agent's open requests with "cancelled"."""
        await self.permissions.cancel_all()
        await self.questions.cancel_all()

    def take_failure(self) -> Exception | None:
        """Return what a callback of the user did wrong since the last call, as an error for the user."""
        failure = self.permissions.failure or self.questions.failure
        self.permissions.failure = self.questions.failure = None
        return failure

    def forget_requests(self) -> None:
        """Drop the agent's open requests without an answer."""
        self.permissions.forget_all()
        self.questions.forget_all()
