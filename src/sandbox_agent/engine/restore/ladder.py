"""The order of a restore: the agent's own session where it still has it, else a new one and a replay."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from sandbox_agent.engine.restore.load_phase import PRESENT_UPDATES
from sandbox_agent.engine.restore.steps import OpenSession, ReadNewest, Step
from sandbox_agent.engine.restore.text import Replay, build_replay, needs_older
from sandbox_agent.engine.settings import AgentSettings, Call
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError
from sandbox_agent.wire.members import members
from sandbox_agent.wire.records import SessionEvent

# ACP's "resource not found": an agent that does not know the session is not asked again.
_NOT_FOUND = -32002
# Each read goes back this many times as far as the last one, so that little is read twice.
_GROWTH = 4


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All that a restore has to know.

    Attributes:
        agent: the agent in which the session continues.
        from_agent: the agent that had it before, where that is another one.
        native_id: the agent's own id of the session; empty where it has none, or must not be asked for it.
        methods: by which the agent opens a session that it has had (``native_methods``), best first.
        init: the params of session/new: cwd, mcpServers, and what else the session was created with.
        wanted: the chosen settings, by category ("model", "mode", "thought_level") or option id.
        config_ids: by which options the categories were set before.
        permission_mode: the chosen permission mode; it stands for a mode of the agent where no mode was
            chosen, or that was another agent's.
        known_options, known_modes: what the same agent reported of the session before.
        events: the newest of the history, oldest of them first.
        total: how many events the history has.
        max_events, max_chars: how much of it may be replayed.
        max_read: how many events may be read for a replay, where ``events`` leaves room for more.
    """

    agent: str
    native_id: str
    methods: Sequence[str]
    init: Mapping[str, Any]
    wanted: Mapping[str, Any]
    events: Sequence[SessionEvent]
    total: int
    max_events: int
    max_chars: int
    max_read: int = 0
    from_agent: str | None = None
    config_ids: Mapping[str, str] = {}
    permission_mode: str | None = None
    known_options: list[dict[str, Any]] | None = None
    known_modes: dict[str, Any] | None = None


class Outcome(NamedTuple):
    """How the session was restored, and what is missing.

    Attributes:
        method: "session/resume", "session/load", or "replay".
        text: the text block that goes before the next prompt, if any.
        replayed, left_out: how many events of the history it covers, and does not, of those that the agent
            may not know.
        verified: whether what the agent retold is the history; None where that cannot be known.
        applied: the settings that were set again and confirmed, by category or option id.
        failed: those that could not be confirmed, and why.
        missing: those of ``failed`` that the agent does not offer.
    """

    method: str
    text: str | None = None
    replayed: int = 0
    left_out: int = 0
    verified: bool | None = None
    applied: dict[str, Any] | None = None
    failed: dict[str, str] | None = None
    missing: tuple[str, ...] = ()


class Ladder:
    """Iterate over the steps and store each step's outcome in it before the next; then read ``outcome``.

    At most one request waits for an agent that does not answer: the replay follows it.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._outcome: Outcome | None = None

    @property
    def outcome(self) -> Outcome:
        """The outcome, once the steps are done."""
        assert self._outcome is not None
        return self._outcome

    def __iter__(self) -> Iterator[Step]:
        opened = yield from self._native()
        if opened is not None:
            call: Call = opened
            session_id = opened.opens
            outcome = yield from self._untold(opened)
        else:
            call, outcome = yield from self._replay()
            session_id = str(call.result.get("sessionId"))
        plan = self._plan
        settings = AgentSettings.of_result(
            session_id,
            call.result,
            known_options=plan.known_options if opened is not None else None,
            known_modes=plan.known_modes if opened is not None else None,
            listed_only=plan.from_agent is not None,
        )
        wanted = dict(plan.wanted)
        mode = settings.mode_for(plan.agent, plan.permission_mode)
        if mode is not None and ("mode" not in wanted or plan.from_agent is not None):
            wanted["mode"] = mode
        failures = yield from settings.confirm(wanted, config_ids=plan.config_ids)
        self._outcome = outcome._replace(
            applied=settings.applied or None,
            failed={failure.name: failure.message(plan.agent) for failure in failures} or None,
            missing=tuple(failure.name for failure in failures if failure.is_missing),
        )

    def _native(self) -> Generator[Step, None, OpenSession | None]:
        plan = self._plan
        if not plan.native_id or plan.from_agent is not None or _is_untold(plan.events, plan.total):
            return None
        for method in self._methods():
            call = OpenSession(method, plan.init, opens=plan.native_id)
            yield call
            if call.refusal is None:
                return call
            if call.refusal.code is None or call.refusal.code == _NOT_FOUND:
                return None
        return None

    def _methods(self) -> Sequence[str]:
        """Return the plan's methods, session/load first where the agent may not have kept the last turn."""
        plan = self._plan
        if not _is_cut_off(plan.events, plan.total):
            return plan.methods
        return sorted(plan.methods, key="session/load".__ne__)

    def _untold(self, call: OpenSession) -> Generator[Step, None, Outcome]:
        """Replay what the agent did not retell of the history: it has lost that."""
        plan, told = self._plan, call.told
        cut_off = _is_cut_off(plan.events, plan.total)
        position = told.until(plan.events, cut_off=cut_off) if told is not None else None
        if told is None or position is None:
            return Outcome(call.method)
        if position == len(plan.events):
            return Outcome(call.method, verified=True)
        events = plan.events
        if position == 0:
            events = yield from self._recent()
            position = told.until(events, cut_off=cut_off) or 0
        total = len(events) - position if position else plan.total
        replay = self._told_by_text(events[position:], total, continues=position > 0)
        return Outcome(call.method, replay.text, replay.replayed, replay.left_out, verified=False)

    def _replay(self) -> Generator[Step, None, tuple[Call, Outcome]]:
        plan = self._plan
        events = yield from self._recent()
        call = Call("session/new", plan.init, may_fail=False)
        yield call
        replay = self._told_by_text(events, plan.total)
        return call, Outcome("replay", replay.text, replay.replayed, replay.left_out)

    def _told_by_text(self, events: Sequence[SessionEvent], total: int, *, continues: bool = False) -> Replay:
        plan = self._plan
        return build_replay(
            events, total, max_events=plan.max_events, max_chars=plan.max_chars, continues=continues
        )

    def _recent(self) -> Generator[Step, None, Sequence[SessionEvent]]:
        plan, events = self._plan, self._plan.events
        limit = plan.max_events
        while limit < plan.max_read and needs_older(
            events, plan.total, max_events=plan.max_events, max_chars=plan.max_chars
        ):
            limit = min(_GROWTH * limit, plan.max_read)
            older = ReadNewest(limit)
            yield older
            if len(older.events) <= len(events):
                break
            events = older.events
        return events


def native_methods(initialized: Mapping[str, Any]) -> list[str]:
    """Return the methods by which an agent opens a session that it has had before, best first.

    Args:
        initialized: the agent's result of initialize.
    """
    capabilities = members(initialized.get("agentCapabilities"))
    methods: list[str] = []
    # resume does not retell the history, which is stored here already
    resume: object = members(capabilities.get("sessionCapabilities")).get("resume")
    if resume is not None and resume is not False:
        methods.append("session/resume")
    if capabilities.get("loadSession") is True:
        methods.append("session/load")
    return methods


def _is_untold(events: Sequence[SessionEvent], total: int) -> bool:
    """Whether the agent's session was created by a restore whose replay it never got: it is empty."""
    answered = False
    for position in range(len(events) - 1, -1, -1):
        raw = events[position].payload_json
        if b"session/new" in raw or b"session/prompt" in raw:
            method = _payload(events[position]).get("method")
            if method == "session/prompt" and answered:
                return False
            if method == "session/new":
                return total > len(events) or any(map(_is_said, events[:position]))
        if not answered:
            answered = events[position].sender == "agent" and _is_said(events[position])
    return False


def _is_cut_off(events: Sequence[SessionEvent], total: int) -> bool:
    """Whether the history ends within a turn."""
    said = False
    for event in reversed(events):
        payload = _payload(event)
        if payload.get("method") == "session/prompt":
            return True
        if "method" not in payload and "stopReason" in members(payload.get("result")):
            return False
        said = said or _is_said(event)
    return said and total > len(events)


def _is_said(event: SessionEvent) -> bool:
    payload = _payload(event)
    params = members(payload.get("params"))
    match payload.get("method"):
        case "session/prompt":
            return True
        case "session/update":
            return members(params.get("update")).get("sessionUpdate") not in PRESENT_UPDATES
        case None:
            return "stopReason" in members(payload.get("result"))
        case _:
            return False


def _payload(event: SessionEvent) -> dict[str, Any]:
    try:
        return members(event.payload)
    except InvalidEnvelopeError:
        return {}
