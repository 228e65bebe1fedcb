"""A session's open permission requests: delivered to listeners, answered, cancelled."""

from __future__ import annotations

import inspect
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from sandbox_agent.client.tasks import TaskOwner, await_result, call_listener
from sandbox_agent.engine.permissions import (
    PERMISSION_MODES,
    PermissionMode,
    PermissionReply,
    Verdict,
    available_replies,
    cancelled_outcome,
    decide_by_mode,
    is_permission_mode,
    is_reply,
    select_option,
    verdict_outcome,
)
from sandbox_agent.errors import SandboxAgentError, UnsupportedPermissionReplyError
from sandbox_agent.wire.jsonrpc import elements, members

logger: logging.Logger = logging.getLogger("sandbox_agent.client")


@dataclass(frozen=True, slots=True)
class PermissionRequest:
    """An agent's request to use a tool.

    Attributes:
        id: the request's id for ``respond_permission``; not the agent's own id.
        session_id: the local session id.
        agent_session_id: the agent's session id.
        created_at: when the request was received, in milliseconds since the epoch.
        tool_call: the tool call, in ACP's shape.
        options: the possible answers, in ACP's shape.
        available_replies: the replies ("once", "always", "reject") that the options offer.
        raw_request: the request's params.
    """

    id: str
    session_id: str
    agent_session_id: str
    created_at: int
    tool_call: dict[str, Any]
    options: list[dict[str, Any]]
    available_replies: list[PermissionReply]
    raw_request: dict[str, Any] = field(repr=False)


PermissionListener = Callable[[PermissionRequest], Awaitable[object] | object]
PolicyFunction = Callable[[PermissionRequest], "Awaitable[PermissionReply] | PermissionReply"]
PermissionPolicy = PermissionMode | PermissionReply | Literal["allow_once", "allow_always"] | PolicyFunction

_ALIASES: dict[str, PermissionReply] = {"allow_once": "once", "allow_always": "always"}


# Sends the result of a request to the agent.
Respond = Callable[[object], Coroutine[Any, Any, None]]


@dataclass(slots=True)
class _Pending:
    request: PermissionRequest
    respond: Respond


class PermissionBroker:
    """Holds one session's permission requests until they are answered.

    The session's permission mode decides first. What it leaves open goes to the listeners; without any, the
    policy answers. Without a policy too, a request is cancelled, unless the session has a permission mode
    that asks: then it waits for a listener that comes later, as it does with the policy "ask".

    Attributes:
        mode: the session's permission mode, None if none was chosen.
    """

    def __init__(self, session_id: str, tasks: TaskOwner) -> None:
        self._policy: PermissionPolicy | None = None
        self.mode: PermissionMode | None = None
        self._session_id = session_id
        self._tasks = tasks
        self._prefix = secrets.token_hex(8)
        self._counter = itertools.count(1)
        self._pending: dict[str, _Pending] = {}
        self._listeners: dict[object, PermissionListener] = {}

    @property
    def policy(self) -> PermissionPolicy | None:
        """The policy that answers if there is no listener."""
        return self._policy

    @policy.setter
    def policy(self, policy: PermissionPolicy | None) -> None:
        known = (*PERMISSION_MODES, "once", "always", "reject", *_ALIASES)
        if policy is not None and not callable(policy) and policy not in known:
            raise ValueError(
                f"permission_policy must be one of {', '.join(known)}, or a function, not {policy!r}"
            )
        self._policy = policy

    def listen(self, listener: PermissionListener) -> Callable[[], None]:
        """Call the listener with requests, also those already open; return a function to unregister it."""
        key = object()
        self._listeners[key] = listener
        for pending in list(self._pending.values()):
            self._notify(listener, pending.request)

        def unregister() -> None:
            self._listeners.pop(key, None)

        return unregister

    async def open(self, params: Mapping[str, Any], respond: Respond, *, must_ask: bool = False) -> None:
        """Add a request; it is delivered to the listeners or answered by the policy.

        Args:
            params: the request's params.
            respond: sends the result.
            must_ask: only a listener may allow it; without one it is cancelled.
        """
        given: list[object] = elements(params.get("options"))
        options = [cast("dict[str, Any]", option) for option in given if isinstance(option, dict)]
        request = PermissionRequest(
            id=f"perm-{self._prefix}-{next(self._counter)}",
            session_id=self._session_id,
            agent_session_id=str(params.get("sessionId") or ""),
            created_at=time.time_ns() // 1_000_000,
            tool_call=members(params.get("toolCall")),
            options=options,
            available_replies=available_replies(options),
            raw_request=dict(params),
        )
        pending = self._pending[request.id] = _Pending(request, respond)
        mode = None if must_ask else self.mode
        result = self._decide(request, mode) if mode is not None else None
        if result is not None:
            await self._answer(pending, result)
        elif self._listeners:
            for listener in list(self._listeners.values()):
                self._notify(listener, request)
        elif self.policy is not None and not must_ask:
            await self._answer_by_policy(pending, self.policy)
        elif mode is None or mode == "allow":
            await self._cancel(pending)

    async def _cancel(self, pending: _Pending) -> None:
        """Cancel a request that nothing can answer."""
        logger.warning(
            "permission %s of session %s is cancelled: neither its mode nor its policy can answer it, and "
            "there is no listener",
            pending.request.id,
            self._session_id,
        )
        await self._answer(pending, cancelled_outcome())

    def _decide(self, request: PermissionRequest, mode: PermissionMode) -> dict[str, Any] | None:
        kind: object = request.tool_call.get("kind")
        verdict: Verdict = decide_by_mode(mode, kind if isinstance(kind, str) else None)
        return verdict_outcome(request.id, request.options, verdict)

    async def _answer_by_policy(self, pending: _Pending, policy: PermissionPolicy) -> None:
        request = pending.request
        result: dict[str, Any] | None
        if is_permission_mode(policy):
            result = self._decide(request, policy)
            if result is None and policy == "allow":
                await self._cancel(pending)
        else:
            result = await self._reply_of(request, policy)
        if result is not None and request.id in self._pending:
            await self._answer(pending, result)

    async def _reply_of(self, request: PermissionRequest, policy: PolicyFunction | str) -> dict[str, Any]:
        try:
            if callable(policy):
                decided = policy(request)
                reply: object = await decided if inspect.isawaitable(decided) else decided
            else:
                reply = _ALIASES.get(policy, policy)
            if not is_reply(reply):
                raise UnsupportedPermissionReplyError(request.id, str(reply), request.available_replies)
            return select_option(request.id, request.options, reply)
        except Exception:
            # The boundary to the user's policy: the agent needs a response in any case.
            logger.exception("the permission policy of session %s failed: cancelled", self._session_id)
            return cancelled_outcome()

    def _notify(self, listener: PermissionListener, request: PermissionRequest) -> None:
        # If the listener fails, the request stays open for other listeners.
        result = call_listener(listener, request, f"a permission listener of session {self._session_id}")
        if result is not None and self._tasks.running:
            self._tasks.spawn(await_result(result), name=f"permission listener of {self._session_id}")

    def respond(self, permission_id: str, reply: PermissionReply) -> Awaitable[None]:
        """Answer with the option of a reply; it is sent at once, even if the result is not awaited.

        Raises:
            UnsupportedPermissionReplyError: the request has no such option; it stays open.
            SandboxAgentError: no such request is open.
        """
        pending = self._find(permission_id)
        return self._send(pending, select_option(permission_id, pending.request.options, reply))

    def respond_raw(self, permission_id: str, response: Mapping[str, Any]) -> Awaitable[None]:
        """Answer with an ACP result.

        Raises:
            SandboxAgentError: no such request is open.
        """
        return self._send(self._find(permission_id), dict(response))

    async def cancel_all(self) -> None:
        """Answer all open requests with "cancelled"."""
        for pending in list(self._pending.values()):
            try:
                await self._answer(pending, cancelled_outcome())
            except SandboxAgentError as error:
                logger.info("permission %s could not be cancelled: %s", pending.request.id, error)

    @property
    def has_open(self) -> bool:
        """Whether a request waits for an answer."""
        return bool(self._pending)

    def forget_all(self) -> None:
        """Drop all open requests: their agent is gone."""
        self._pending.clear()

    def _find(self, permission_id: str) -> _Pending:
        pending = self._pending.get(permission_id)
        if pending is None:
            raise SandboxAgentError(
                f"permission '{permission_id}' is not open: it was answered, cancelled, or its agent is gone"
            )
        return pending

    def _send(self, pending: _Pending, result: object) -> Awaitable[None]:
        self._tasks.check()
        # A task, not a coroutine: a listener need not await or return it.
        self._pending.pop(pending.request.id, None)
        return self._tasks.run(pending.respond(result), name=f"answer {pending.request.id}")

    async def _answer(self, pending: _Pending, result: object) -> None:
        self._pending.pop(pending.request.id, None)
        await pending.respond(result)


def permission_mode(value: object) -> PermissionMode | None:
    """Return the value as a permission mode.

    Raises:
        ValueError: the mode is unknown.
    """
    if value is None or is_permission_mode(value):
        return value
    raise ValueError(f"permission_mode must be one of {', '.join(PERMISSION_MODES)}, not {value!r}")
