"""A session's open permission requests: delivered to listeners, answered, cancelled."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from sandbox_agent.client.broker import Pending, RequestBroker
from sandbox_agent.client.tasks import TaskOwner
from sandbox_agent.engine.permissions import (
    PERMISSION_MODES,
    PermissionMode,
    PermissionReply,
    Verdict,
    cancelled_outcome,
    decide_by_mode,
    is_permission_mode,
    is_reply,
    select_option,
    verdict_outcome,
)
from sandbox_agent.wire.requests import PermissionRequest

logger: logging.Logger = logging.getLogger("sandbox_agent.client")


PermissionListener = Callable[[PermissionRequest], Awaitable[object] | object]
PolicyFunction = Callable[[PermissionRequest], "Awaitable[PermissionReply] | PermissionReply"]
PermissionPolicy = PermissionMode | PermissionReply | Literal["allow_once", "allow_always"] | PolicyFunction

_ALIASES: dict[str, PermissionReply] = {"allow_once": "once", "allow_always": "always"}


class PermissionBroker(RequestBroker[PermissionRequest]):
    """Holds one session's permission requests until they are answered.

    The session's permission mode decides first. What it leaves open goes to the listeners; without any, the
    policy answers. Without a policy too, a request is cancelled, unless the session has a permission mode
    that asks: then it waits for a listener that comes later, as it does with the policy "ask".

    Attributes:
        mode: the session's permission mode, None if none was chosen.
    """

    def __init__(self, session_id: str, tasks: TaskOwner) -> None:
        super().__init__(session_id, tasks, "permission", lambda _: cancelled_outcome())
        self._policy: PermissionPolicy | None = None
        self.mode: PermissionMode | None = None

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

    async def open(self, pending: Pending[PermissionRequest], *, must_ask: bool = False) -> None:
        """Deliver a request to the listeners, or answer it by the mode or the policy.

        Args:
            pending: the request, as ``add`` returned it.
            must_ask: only a listener may allow it; without one it is cancelled.
        """
        request = pending.request
        if not self._deliver(pending):
            return  # a caller that reads the events has answered it
        mode = None if must_ask else self.mode
        result = self._decide(request, mode) if mode is not None else None
        if result is not None:
            await self._answer(pending, result)
        elif self._listeners:
            self._notify_all(request)
        elif self.policy is not None and not must_ask:
            await self._answer_by_policy(pending, self.policy)
        elif mode is None or mode == "allow":
            await self._cancel(pending)

    def waits_for_people(self, request_id: str) -> bool:
        """Return whether a request is open, and neither the mode nor the policy answers it."""
        pending = self._pending.get(request_id)
        if pending is None:
            return False
        request, policy = pending.request, self._policy
        if self.mode is not None and self._decide(request, self.mode) is not None:
            return False
        if self._listeners or policy is None:
            return True
        return is_permission_mode(policy) and self._decide(request, policy) is None

    async def _cancel(self, pending: Pending[PermissionRequest]) -> None:
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

    async def _answer_by_policy(self, pending: Pending[PermissionRequest], policy: PermissionPolicy) -> None:
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
                failure = TypeError(
                    f"the permission policy of session '{self._session_id}' returned {reply!r}, so the "
                    'request was cancelled: return "once", "always" or "reject"'
                )
                self.note_failure(request, failure)
                return cancelled_outcome()
            return select_option(request.id, request.options, reply)
        except Exception:
            # The boundary to the user's policy: the agent needs a response in any case.
            logger.exception("the permission policy of session %s failed: cancelled", self._session_id)
            return cancelled_outcome()

    def _notify(self, listener: PermissionListener, request: PermissionRequest) -> None:
        async def check(result: Awaitable[object]) -> object:
            return self._check_answered(request, await result)

        def call(request: PermissionRequest) -> object:
            result = listener(request)
            return check(result) if inspect.isawaitable(result) else self._check_answered(request, result)

        super()._notify(call, request)

    def _check_answered(self, request: PermissionRequest, result: object) -> object:
        """Cancel a request whose listener returned a reply: it would wait forever."""
        if isinstance(result, str) and is_reply(result) and request.id in self._pending:
            failure = TypeError(
                f"a permission listener of session '{self._session_id}' returned {result!r}, which answers "
                "nothing, so the request was cancelled: call "
                f'session.respond_permission(request.id, "{result}")'
            )
            self.note_failure(request, failure)
            self._send(self._pending[request.id], cancelled_outcome())
        return result

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


def permission_mode(value: object) -> PermissionMode | None:
    """Return the value as a permission mode.

    Raises:
        ValueError: the mode is unknown.
    """
    if value is None or is_permission_mode(value):
        return value
    raise ValueError(f"permission_mode must be one of {', '.join(PERMISSION_MODES)}, not {value!r}")
