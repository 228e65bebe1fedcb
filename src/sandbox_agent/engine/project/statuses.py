"""What changed beside the conversation: plan, usage, title, mode, config, commands, notices, compaction."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

from sandbox_agent.engine.project.content import block_part, to_json
from sandbox_agent.engine.project.emit import Emitter
from sandbox_agent.engine.project.state import State
from sandbox_agent.engine.restore import is_replay_title
from sandbox_agent.wire import acp
from sandbox_agent.wire.universal import ContentPart, EventSource, ItemStatus, JsonPart, StatusPart

__all__ = ["StatusUpdate", "Statuses"]

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
# What is shown of a restore where it is there; ``verified`` also where it is false.
_RESTORED = ("method", "replayed", "leftOut", "applied", "failed", "agent", "fromAgent")
_STEP = {"completed": "[x]", "in_progress": "[~]"}


class Statuses:
    """Shows each change as a status item, and what didn't change not again."""

    def __init__(self, state: State, emit: Emitter) -> None:
        self._state = state
        self._emit = emit

    def update(self, update: StatusUpdate) -> None:
        """Take an update of the agent's."""
        match update:
            case acp.Plan() if self._state.retelling.is_past("plan"):
                self._state.skipped += 1
            case acp.Plan():
                steps = [f"{_STEP.get(entry.status, '[ ]')} {entry.content}" for entry in update.entries]
                self._changed("plan", "\n".join(steps), {"entries": msgspec.to_builtins(update.entries)})
            case acp.UsageUpdate():
                self._usage(update)
            case acp.SessionInfoUpdate():
                # The rest of it is when, or what only the agent's own client understands.
                if update.title is not None and not is_replay_title(update.title):
                    self._changed("title", update.title)
            case acp.CurrentModeUpdate():
                self.mode(update.current_mode_id)
            case acp.ConfigOptionUpdate():
                self.config(update.config_options)
            case acp.AvailableCommandsUpdate():
                names = [command.name for command in update.available_commands]
                commands = msgspec.to_builtins(update.available_commands)
                self._changed("commands", ", ".join(names), {"availableCommands": commands})
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

    def restored(self, told: dict[str, Any]) -> None:
        """Show by which means the session was restored; ``told`` is what SessionRestored has."""
        method = str(told.get("method") or "replay")
        value = {name: told[name] for name in _RESTORED if told.get(name)}
        if isinstance(told.get("verified"), bool):
            value["verified"] = told["verified"]
        if method == "replay":
            detail = f"replay: {_replayed(told)}"
        else:
            detail = f"{method}: the agent still knew the session"
            skipped = value["repeated"] = self._state.skipped
            if skipped:
                detail += f"; {skipped} updates that repeat what is here are left out"
            if told.get("verified") is False:
                detail += f"; what it told again differs from what is here, {_replayed(told)}"
        self.show("restored", detail, value, source="daemon")

    def mode(self, mode_id: str, source: EventSource = "agent") -> None:
        """Show the session's mode."""
        self._changed("mode", mode_id, source=source)

    def config(self, options: list[dict[str, Any]], source: EventSource = "agent") -> None:
        """Show the config options' values."""
        values = [f"{option.get('id')}={_plain(option.get('currentValue'))}" for option in options]
        self._changed("config", ", ".join(values), {"configOptions": options}, source=source)

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
        """Append a status item: a line, and what is behind it as JSON."""
        item_id = self._emit.next_id("itm")
        self._emit.start(item_id, "status", "system", [StatusPart(label)])
        content: list[ContentPart] = [StatusPart(label, detail)]
        if value is not None:
            content.append(JsonPart(value))
        content += more or []
        self._emit.complete(item_id, "status", "system", content, status=status, source=source)

    def _usage(self, update: acp.UsageUpdate) -> None:
        detail = f"{update.used} of {update.size} tokens"
        value: dict[str, Any] = {"used": update.used, "size": update.size}
        if update.cost is not None:
            detail += f", {update.cost.amount:g} {update.cost.currency}"
            value["cost"] = {"amount": update.cost.amount, "currency": update.cost.currency}
        self._changed("usage", detail, value)

    def _changed(self, label: str, detail: str, value: Any = None, *, source: EventSource = "agent") -> None:
        crc = zlib.crc32(to_json([detail, value]).encode())
        if self._state.shown.get(label) != crc:
            self._state.shown[label] = crc
            self.show(label, detail, value, source=source)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else to_json(value)


def _replayed(told: dict[str, Any]) -> str:
    text = f"{told.get('replayed') or 0} events of the history replayed"
    return text + (f", {told['leftOut']} older ones left out" if told.get("leftOut") else "")
