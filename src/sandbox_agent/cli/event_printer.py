"""Prints the ACP events of a session for users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from sandbox_agent.cli.output import Screen, Style, one_line
from sandbox_agent.wire.acp import (
    AgentMessageChunk,
    AgentThoughtChunk,
    CurrentModeUpdate,
    Notice,
    Plan,
    SessionInfoUpdate,
    ToolCall,
    ToolCallUpdate,
    UsageUpdate,
)
from sandbox_agent.wire.jsonrpc import elements, members
from sandbox_agent.wire.records import SessionEvent, SessionRestored
from sandbox_agent.wire.requests import PermissionRequest, QuestionRequest

_PLAN_MARKS: Final = {"completed": "[x]", "in_progress": "[>]"}
_STATUS_STYLES: Final[dict[str, Style]] = {"completed": "green", "failed": "red"}


class LiveView(Protocol):
    """Shows what is going on, and changes in place."""

    def show_plan(self, entries: Sequence[str]) -> None:
        """Show the entries of the plan that are not completed."""

    def show_tool(self, key: str, title: str | None) -> None:
        """Show a running tool; None if it has ended."""

    def clear(self) -> None:
        """Show nothing: the turn has ended."""


class EventPrinter:
    """Prints events in their order.

    Args:
        screen: Where to print.
        client: Also print what the client sent: prompts, and answers to permission requests.
        live: Shows the plan and the running tools; what is completed is still printed.

    Attributes:
        usage: The latest usage of the session, if the agent reports it.
    """

    def __init__(self, screen: Screen, *, client: bool = False, live: LiveView | None = None) -> None:
        self._screen = screen
        self._client = client
        self._live = live
        self._in_turn = False
        self._printed_usage = True
        self.usage: UsageUpdate | None = None
        self._titles: dict[str, str] = {}
        self._statuses: dict[str, str] = {}
        self._plan: list[str] = []
        self._unfinished: set[str] = set()
        # The kind and message of the previous piece. A different one starts a new line.
        self._piece: tuple[object, ...] = ()

    def print_event(self, event: SessionEvent) -> None:
        """Print an event. Most protocol messages mean nothing to users and print nothing."""
        match event.update:
            case AgentMessageChunk(message_id=message_id) as chunk:
                self._start_piece("message", message_id)
                self._screen.write_text(chunk.text)
            case AgentThoughtChunk(message_id=message_id) as chunk:
                self._start_piece("thought", message_id)
                self._screen.write_thought(chunk.text)
            case ToolCall() | ToolCallUpdate() as call:
                self._print_tool(call)
            case Plan() as plan:
                self._print_plan(plan)
            case UsageUpdate() as usage:
                self.usage, self._printed_usage = usage, False
                if not self._in_turn:
                    self._print_usage()
            case SessionInfoUpdate(title=str(title)):
                self._screen.note(f"title  {one_line(title)}", "dim")
            case CurrentModeUpdate(current_mode_id=mode):
                self._screen.note(f"mode   {one_line(mode)}", "dim")
            case Notice() as notice:
                detail = f": {notice.description}" if notice.description else ""
                self._screen.note(f"{notice.severity}  {one_line(notice.title + detail)}", "yellow")
            case SessionRestored() as restored:
                self._print_restored(restored)
            case None | PermissionRequest() | QuestionRequest():
                self._print_envelope(event)
            case _:
                pass

    def _start_piece(self, *piece: object) -> None:
        if piece != self._piece:
            self._screen.end_line()
        self._piece = piece

    def _print_tool(self, call: ToolCall | ToolCallUpdate) -> None:
        key = call.tool_call_id
        if call.title:
            self._titles[key] = call.title
        status = call.status or self._statuses.get(key, "pending")
        if self._statuses.get(key) == status:
            return
        self._statuses[key] = status
        title = one_line(self._titles.get(key, key))
        if self._live is None or status in _STATUS_STYLES:
            self._screen.note(f"tool   {title}: {status}", _STATUS_STYLES.get(status, "cyan"))
        if self._live is not None:
            self._screen.end_line()
            self._live.show_tool(key, None if status in _STATUS_STYLES else title)

    def _print_plan(self, plan: Plan) -> None:
        entries = [
            f"{_PLAN_MARKS.get(entry.status, '[ ]')} {' '.join(entry.content.split())}"
            for entry in plan.entries
        ]
        for entry in entries:
            if entry not in self._plan and (self._live is None or entry.startswith("[x]")):
                self._screen.note(f"plan   {entry}", "cyan")
        self._plan = entries
        if self._live is not None:
            self._screen.end_line()
            self._live.show_plan([entry for entry in entries if not entry.startswith("[x]")])

    def _end_turn(self, result: Mapping[str, Any]) -> None:
        self._in_turn = False
        reason = result["stopReason"]
        if self._client and reason != "end_turn":
            self._screen.note(f"stopped: {reason}", "yellow")
        if self._live is not None:
            self._live.clear()
            for key, status in self._statuses.items():
                if status not in _STATUS_STYLES and key not in self._unfinished:
                    self._unfinished.add(key)
                    self._screen.note(f"tool   {one_line(self._titles.get(key, key))}: {status}", "cyan")
        self._print_usage()
        tokens = members(result.get("usage"))
        counts = [
            f"{count:,} {name}"
            for member, name in (("inputTokens", "in"), ("outputTokens", "out"))
            if isinstance(count := tokens.get(member), int)
        ]
        if counts:
            self._screen.note(f"turn   {', '.join(counts)} (tokens)", "dim")

    def _print_usage(self) -> None:
        if self.usage is not None and not self._printed_usage:
            self._printed_usage = True
            self._screen.note(f"usage  {format_usage(self.usage)}", "dim")

    def _print_restored(self, restored: SessionRestored) -> None:
        left_out = f", {restored.left_out} older ones left out" if restored.left_out else ""
        replay = f"replay: {restored.replayed} events{left_out}"
        if restored.method == "replay":
            method = f"in a new agent session by {replay}"
        elif restored.verified is False:
            method = f"by the agent's {restored.method}, which lacks some of it; that by {replay}"
        else:
            method = f"by the agent's {restored.method}"
        self._screen.note(f"restored  {method}", "yellow")
        if restored.agent:
            self._screen.note(f"agent  {restored.agent}, no longer {restored.from_agent}", "yellow")
        for setting, reason in (restored.failed or {}).items():
            self._screen.note(f"not restored  {setting}: {reason}", "red")

    def _print_envelope(self, event: SessionEvent) -> None:
        payload = event.payload
        params = members(payload.get("params"))
        method = payload.get("method")
        if method == "session/prompt":
            self._in_turn = True
        if method == "session/prompt" and self._client:
            self._screen.note(f"> {_text(params.get('prompt'))}", "bold")
        elif method == "_adapter/agent_exited":
            how = params.get("reason") or f"code {params.get('code')}"
            self._screen.note(f"agent exited ({how})", "red")
        elif method == "_adapter/egress_refused":
            self._screen.note(f"refused  {params.get('message')}", "yellow")
        elif method == "_adapter/left_out":
            self._screen.note(f"left out  {params.get('message')}", "yellow")
        elif method == "_sandbox_agent/persist_failed":
            self._screen.note(f"store failed: {params.get('message') or params}", "red")
        elif method == "_sandbox_agent/events_lost":
            self._screen.note(f"events lost: {params.get('reason') or params}", "red")
        elif event.sender == "agent" and (result := members(payload.get("result"))).get("stopReason"):
            self._end_turn(result)
        elif self._client and event.sender == "client" and "result" in payload:
            self._print_answer(members(members(payload["result"]).get("outcome")))

    def _print_answer(self, outcome: Mapping[str, Any]) -> None:
        if outcome:
            answer = outcome.get("optionId") if outcome.get("outcome") == "selected" else "cancelled"
            self._screen.note(f"permission  {answer}", "yellow")


def format_usage(usage: UsageUpdate) -> str:
    """Return the tokens in the context, and the cost of the session if the agent reports it."""
    cost = usage.cost
    price = f", {cost.amount:g} {cost.currency}" if cost is not None else ""
    return f"{usage.used:,} of {usage.size:,} tokens{price}"


def _text(prompt: object) -> str:
    blocks = map(members, elements(prompt))
    return "\n".join(str(block.get("text") or f"[{block.get('type')}]") for block in blocks)
