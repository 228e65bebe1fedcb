"""The workspaces of sessions that clients create: the first prompt waits until their state is recorded."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import anyio

from sandbox_agent.server.agents.openings import read_params
from sandbox_agent.server.files.baselines import Baselines, Recording, native_name
from sandbox_agent.wire.jsonrpc import Head, InvalidEnvelopeError, loads, members

_CREATING: Final = frozenset({"session/new", "session/fork"})
_PROMPT: Final = "session/prompt"
_CANCEL: Final = "session/cancel"
_HELD: Final = frozenset({_PROMPT, _CANCEL})


class _NewSession:
    """A session whose workspace is being recorded."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.order = asyncio.Lock()
        self.waiting = 0


class Workspaces:
    """Records the workspaces of the sessions that one agent creates, when it has created them.

    Git does not compete with the agent then, and a client waits for it only if it sends a prompt at once.

    Args:
        agent: the agent's id.
        baselines: records them; None records nothing.
    """

    def __init__(self, agent: str, baselines: Baselines | None) -> None:
        self._agent = agent
        self._baselines = baselines
        self._new: dict[str, _NewSession] = {}

    def watch(self, head: Head, envelope: bytes, response: asyncio.Future[bytes]) -> None:
        """Record the workspace of the session that a request creates, once the agent has created it.

        Args:
            head: the request's.
            envelope: the request.
            response: its response, which names the session.
        """
        if self._baselines is not None and head.method in _CREATING:
            response.add_done_callback(lambda done: self._record(envelope, done))

    def _record(self, envelope: bytes, response: asyncio.Future[bytes]) -> None:
        session_id, directory = _session_id(response), read_params(envelope).get("cwd")
        if self._baselines is not None and session_id and isinstance(directory, str):
            recording = self._baselines.begin(directory)
            recording.name(native_name(self._agent, session_id))
            self._forget_made()
            self._new[session_id] = _NewSession(recording)

    def may_hold(self, head: Head) -> bool:
        """Return whether an envelope may have to wait (see wait)."""
        if not self._new or head.method not in _HELD:
            return False
        self._forget_made()
        return bool(self._new)

    def _forget_made(self) -> None:
        for session_id, new in list(self._new.items()):
            if new.recording.made.is_set() and not new.waiting:
                del self._new[session_id]

    async def wait(self, head: Head, envelope: bytes) -> None:
        """Return when an envelope may be sent: a prompt once the workspace of its session is recorded.

        It does not wait longer than a workspace may take to be recorded. A cancellation of a prompt that
        waits gives the recording up, and follows the prompt.
        """
        new = self._new.get(str(read_params(envelope).get("sessionId"))) if self.may_hold(head) else None
        if new is None:
            return
        if head.method == _CANCEL:
            if not new.waiting:
                return
            new.recording.give_up()
        new.waiting += 1
        try:
            async with new.order:  # what waits is sent in its order
                with anyio.CancelScope(deadline=new.recording.deadline):
                    await new.recording.made.wait()
                new.recording.give_up()
        finally:
            new.waiting -= 1

    def end(self) -> None:
        """Let the prompts that wait fail: the agent has ended."""
        for new in self._new.values():
            if new.waiting:
                new.recording.give_up()


def _session_id(response: asyncio.Future[bytes]) -> str:
    """Return the id of the session that a response creates; "" if it creates none."""
    if response.cancelled() or response.exception() is not None:
        return ""
    try:
        found: Any = members(members(loads(response.result())).get("result")).get("sessionId")
    except InvalidEnvelopeError:
        return ""
    return found if isinstance(found, str) else ""
