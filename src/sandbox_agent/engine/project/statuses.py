"""Status items: plan, usage, title, mode, config, commands, notices, compaction, restores."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

from sandbox_agent.engine.project.content import block_part, to_json
from sandbox_agent.engine.project.emit import Emitter
from sandbox_agent.engine.project.state import State
from sandbox_agent.engine.restore.history import is_replay_title
from sandbox_agent.wire import acp
from sandbox_agent.wire.universal import ContentPart, EventSource, ItemStatus, JsonPart, StatusPart

StatusUpdate = (
    acp.Plan
    | acp.UsageUpdate
    | acp.SessionInfoUpdate
    | acp.CurrentModeUpdate
    | acp.ConfigOptionUpdate
    | acp.AvailableCommandsUpdate
    | acp.Notice
    | acp.CompactionUpdate
)
# The members of a restore that are shown if they have a value. ``verified`` is also shown if it is false.
_RESTORED = ("method", "replayed", "leftOut", "applied", "failed", "agent", "fromAgent")
_STEP = {"completed": "[x]", "in_progress": "[~]"}


class Statuses:
    """Shows each change as a status item. An unchanged status is not shown again."""

    def __init__(self, state: State, emit: Emitter) -> None:
        self._state = state
        self._emit = emit

    def update(self, update: StatusUpdate) -> None:
        """Process an update of the agent."""
        match update:
            case acp.Plan():
                steps = [f"{_STEP.get(entry.status, '[ ]')} {entry.content}" for entry in update.entries]
                self._show_changed("plan", "\n".join(steps), {"entries": msgspec.to_builtins(update.entries)})
            case acp.UsageUpdate():
                self._show_usage(update)
            case acp.SessionInfoUpdate():
                # Its other members are times and extensions.
                if update.title is not None and not is_replay_title(update.title):
                    self._show_changed("title", update.title)
            case acp.CurrentModeUpdate():
                self.show_mode(update.current_mode_id)
            case acp.ConfigOptionUpdate():
                self.show_config(update.config_options)
            case acp.AvailableCommandsUpdate():
                names = [command.name for command in update.available_commands]
                commands = msgspec.to_builtins(update.available_commands)
                self._show_changed("commands", ", ".join(names), {"availableCommands": commands})
            case acp.Notice():
                failed = update.severity == "error"
                value = {"severity": update.severity, "description": update.description}
                self.show("notice", update.title, value, status="failed" if failed else "completed")
            case acp.CompactionUpdate():
                value = {"compactionId": update.compaction_id, "status": update.status}
                detail = update.status + (f": {update.error}" if update.error else "")
                failed = update.status in {"failed", "cancelled"}
                self.show(
                    "compaction",
                    detail,
                    value,
                    status="failed" if failed else "completed",
                    more=[block_part(block) for block in update.summary or []],
                )

    def show_restored(self, restored: dict[str, Any]) -> None:
        """Show how the session was restored. ``restored`` has the members of SessionRestored."""
        method = str(restored.get("method") or "replay")
        value = {name: restored[name] for name in _RESTORED if restored.get(name)}
        if isinstance(restored.get("verified"), bool):
            value["verified"] = restored["verified"]
        if method == "replay":
            detail = f"replay: {_replayed(restored)}"
        else:
            detail = f"{method}: the agent still knew the session"
            skipped = value["repeated"] = self._state.skipped
            if skipped:
                detail += f"; {skipped} updates that repeat what is here are left out"
            if restored.get("verified") is False:
                detail += f"; the history that it sent differs from what is here, {_replayed(restored)}"
        self.show("restored", detail, value, source="daemon")

    def show_mode(self, mode_id: str, source: EventSource = "agent") -> None:
        """Show the session's mode."""
        self._show_changed("mode", mode_id, source=source)

    def show_config(self, options: Sequence[dict[str, Any]], source: EventSource = "agent") -> None:
        """Show the values of the config options."""
        values = [f"{option.get('id')}={_plain(option.get('currentValue'))}" for option in options]
        self._show_changed("config", ", ".join(values), {"configOptions": options}, source=source)

    def show(
        self,
        label: str,
        detail: str,
        value: Any = None,
        *,
        source: EventSource = "agent",
        status: ItemStatus = "completed",
        more: list[ContentPart] | None = None,
    ) -> None:
        """Append a status item: a line of text, and its value as JSON."""
        item_id = self._emit.next_id("itm")
        self._emit.start(item_id, "status", "system", [StatusPart(label)])
        content: list[ContentPart] = [StatusPart(label, detail)]
        if value is not None:
            content.append(JsonPart(value))
        content += more or []
        self._emit.complete(item_id, "status", "system", content, status=status, source=source)

    def _show_usage(self, update: acp.UsageUpdate) -> None:
        detail = f"{update.used} of {update.size} tokens"
        value: dict[str, Any] = {"used": update.used, "size": update.size}
        if update.cost is not None:
            detail += f", {update.cost.amount:g} {update.cost.currency}"
            value["cost"] = {"amount": update.cost.amount, "currency": update.cost.currency}
        self._show_changed("usage", detail, value)

    def _show_changed(
        self, label: str, detail: str, value: Any = None, *, source: EventSource = "agent"
    ) -> None:
        crc = zlib.crc32(to_json([detail, value]).encode())
        if self._state.shown.get(label) != crc:
            self._state.shown[label] = crc
            self.show(label, detail, value, source=source)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else to_json(value)


def _replayed(restored: dict[str, Any]) -> str:
    text = f"{restored.get('replayed') or 0} events of the history replayed"
    return text + (f", {restored['leftOut']} older ones left out" if restored.get("leftOut") else "")
