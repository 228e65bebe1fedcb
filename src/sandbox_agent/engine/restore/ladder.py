"""The order of a restore: the agent's own session if it still has it, else a new one and a replay."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from sandbox_agent.engine.permissions import AgentModes
from sandbox_agent.engine.restore.load_phase import PRESENT_UPDATES
from sandbox_agent.engine.restore.replay import Replay, build_replay, needs_older
from sandbox_agent.engine.restore.replay_check import ReportedHistory
from sandbox_agent.engine.settings import AgentSettings, AskOptions, Call, ReadReported
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, members
from sandbox_agent.wire.records import SessionEvent


class OpenSession(Call):
    """Ask the agent to open a session that it had before; until its response it may report the history.

    Attributes:
        opens: the agent's session.
        reported: the history that the agent reported.
    """

    def __init__(self, method: str, params: Mapping[str, Any], *, opens: str) -> None:
        super().__init__(method, {**params, "sessionId": opens})
        self.opens = opens
        self.reported: ReportedHistory | None = None


class ReadNewest:
    """Set ``events`` to the newest ``limit`` events of the plan's history, oldest first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.events: Sequence[SessionEvent] = ()


Step = Call | AskOptions | ReadReported | ReadNewest


# ACP's "resource not found": no other method is tried with an agent that does not know the session.
_NOT_FOUND = -32002
# Each read goes back this many times as far as the last one, so that few events are read twice.
_GROWTH = 4


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The input of a restore.

    Attributes:
        agent: the agent in which the session continues.
        from_agent: the previous agent, if it is another one.
        native_id: the agent's own id of the session; empty if it has none, or must not open it.
        methods: the methods that open a session that the agent had before (``native_methods``), best first.
        init: the params of session/new with which the session was created.
        wanted: the chosen settings, by category ("model", "mode", "thought_level") or option id.
        config_ids: the options by which the categories were set before.
        permission_mode: the chosen permission mode; it selects the agent's mode if no mode was chosen, or if
            the session had another agent.
        modes: what the agent's modes mean, if its entry or the server says so.
        known_options, known_modes: what the same agent reported earlier.
        events: the newest events of the history, oldest first.
        total: the number of events in the history.
        max_events, max_chars: the limits of a replay.
        max_read: how many events may be read for a replay if ``events`` leaves room for more.
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
    modes: AgentModes | None = None
    known_options: list[dict[str, Any]] | None = None
    known_modes: dict[str, Any] | None = None


class Outcome(NamedTuple):
    """How the session was restored, and what is missing.

    Attributes:
        method: "session/resume", "session/load", or "replay".
        text: the text block that goes before the next prompt, if any.
        replayed, left_out: the numbers of events that the text covers and leaves out, of those that the
            agent may not know.
        verified: whether the agent reported the same history; None if unknown.
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
            outcome = yield from self._replay_missing(opened)
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
        mode = settings.mode_for(plan.agent, plan.permission_mode, plan.modes)
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
        if not plan.native_id or plan.from_agent is not None or _is_replay_unsent(plan.events, plan.total):
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
        """Return the plan's methods, session/load first if the agent may not have kept the last turn."""
        plan = self._plan
        if not _is_cut_off(plan.events, plan.total):
            return plan.methods
        return sorted(plan.methods, key="session/load".__ne__)

    def _replay_missing(self, call: OpenSession) -> Generator[Step, None, Outcome]:
        """Replay the part of the history that the agent did not report, because it has lost it."""
        plan, reported = self._plan, call.reported
        cut_off = _is_cut_off(plan.events, plan.total)
        position = None if reported is None else reported.covered_until(plan.events, cut_off=cut_off)
        if reported is None or position is None:
            return Outcome(call.method)
        if position == len(plan.events):
            return Outcome(call.method, verified=True)
        events = plan.events
        if position == 0:
            events = yield from self._recent()
            position = reported.covered_until(events, cut_off=cut_off) or 0
        total = len(events) - position if position else plan.total
        replay = self._build_replay(events[position:], total, continues=position > 0)
        return Outcome(call.method, replay.text, replay.replayed, replay.left_out, verified=False)

    def _replay(self) -> Generator[Step, None, tuple[Call, Outcome]]:
        plan = self._plan
        events = yield from self._recent()
        call = Call("session/new", plan.init, may_fail=False)
        yield call
        replay = self._build_replay(events, plan.total)
        return call, Outcome("replay", replay.text, replay.replayed, replay.left_out)

    def _build_replay(self, events: Sequence[SessionEvent], total: int, *, continues: bool = False) -> Replay:
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
    """Return the methods that open a session that the agent had before, best first.

    Args:
        initialized: the agent's result of initialize.
    """
    capabilities = members(initialized.get("agentCapabilities"))
    methods: list[str] = []
    # resume does not report the history, which is already stored here
    resume: object = members(capabilities.get("sessionCapabilities")).get("resume")
    if resume is not None and resume is not False:
        methods.append("session/resume")
    if capabilities.get("loadSession") is True:
        methods.append("session/load")
    return methods


def _is_replay_unsent(events: Sequence[SessionEvent], total: int) -> bool:
    """Whether the agent's session is empty: a restore created it, and its replay was never sent."""
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
