"""Tool calls: a tool_call item when the arguments are known, and a tool_result item at the end."""

from __future__ import annotations

import zlib
from typing import Any

from sandbox_agent.engine.project.content import block_part, location_refs, output_text, to_json, unified_diff
from sandbox_agent.engine.project.emit import Emitter
from sandbox_agent.engine.project.state import DoneTool, OpenTool, State
from sandbox_agent.engine.project.texts import Texts
from sandbox_agent.wire import acp
from sandbox_agent.wire.jsonrpc import members
from sandbox_agent.wire.universal import (
    ContentPart,
    EventSource,
    FileRefPart,
    ItemStatus,
    JsonPart,
    StatusPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

_ENDED = {"completed", "failed"}
# How many calls of earlier turns may still end.
MAX_UNENDED = 100


class Tools:
    """The open tool calls of a session."""

    def __init__(self, state: State, emit: Emitter, texts: Texts) -> None:
        self._state = state
        self._emit = emit
        self._texts = texts

    def update(self, update: acp.ToolCall | acp.ToolCallUpdate) -> None:
        """Process an update of a call. Agents send them in any order."""
        state = self._state
        call_id = update.tool_call_id
        done = state.done.get(call_id)
        if done is not None:
            if isinstance(update, acp.ToolCallUpdate) or update.status in _ENDED:
                self._add_late_result(call_id, done, update)
                return
            del state.done[call_id]  # the agent reuses the id
        tool = state.tools.get(call_id)
        if tool is None:
            tool = self._open(call_id, update)
        else:
            _merge(tool, update)
        self._complete_call(tool)
        if tool.status in _ENDED:
            self._finish(tool, "failed" if tool.status == "failed" else "completed", "agent")

    def announce(self, update: acp.ToolCallUpdate) -> str | None:
        """Process the call in a permission request. Earlier updates of the call have precedence.

        Returns:
            The id of the call's item, or None if the request has no call.
        """
        call_id = update.tool_call_id
        if not call_id:
            return None
        done = self._state.done.get(call_id)
        if done is not None:
            return done.item_id
        tool = self._state.tools.get(call_id)
        if tool is None:
            tool = self._open(call_id, update)
            tool.status = ""
        self._complete_call(tool)
        return tool.item_id

    def set_rejected(self, call_id: str, *, rejected: bool) -> None:
        """Store the answer to the permission request of a call."""
        tool = self._state.tools.get(call_id)
        if tool is not None:
            tool.rejected = rejected

    def close(self, status: ItemStatus = "completed") -> None:
        """End the open calls. Calls whose permission was rejected have failed."""
        for tool in list(self._state.tools.values()):
            self._finish(tool, "failed" if tool.rejected else status, "daemon")

    def _open(self, call_id: str, update: acp.ToolCall | acp.ToolCallUpdate) -> OpenTool:
        self._texts.interrupt()
        tool = OpenTool(self._emit.next_id("itm"), call_id, self._parent(update))
        _merge(tool, update)
        self._state.tools[call_id] = tool
        self._state.seen = True
        content = _call_content(tool, "")
        self._emit.start(
            tool.item_id,
            "tool_call",
            "assistant",
            content,
            native_id=call_id,
            parent_id=tool.parent_id,
            source="agent",
        )
        return tool

    def _parent(self, update: acp.ToolCall | acp.ToolCallUpdate) -> str | None:
        caller = _meta(update, "claudeCode").get("parentToolUseId")
        parent = self._state.tools.get(caller) if isinstance(caller, str) else None
        return parent.item_id if parent is not None else None

    def _complete_call(self, tool: OpenTool, *, now: bool = False) -> None:
        # Agents announce a call with empty arguments, which follow in an update.
        if tool.called or not (now or tool.raw_input or tool.status in _ENDED):
            return
        tool.called = True
        tool.arguments = to_json({} if tool.raw_input is None else tool.raw_input)
        content = _call_content(tool, tool.arguments)
        tool.call_files = [part for part in content if isinstance(part, FileRefPart)]
        self._emit.complete(
            tool.item_id, "tool_call", "assistant", content, native_id=tool.call_id, parent_id=tool.parent_id
        )

    def _finish(self, tool: OpenTool, status: ItemStatus, source: EventSource) -> None:
        self._texts.interrupt()
        self._complete_call(tool, now=True)
        del self._state.tools[tool.call_id]
        self._emit_result(tool, status, source)
        unended = tool if source == "daemon" else None
        self._state.done[tool.call_id] = DoneTool(tool.item_id, _crc(_output(tool)), status, unended)

    def forget_ended(self) -> None:
        """Forget the calls that the agent has ended: a turn starts. The others may end in it."""
        unended = [(call_id, done) for call_id, done in self._state.done.items() if done.tool is not None]
        self._state.done = {
            # Without its content, which may be large.
            call_id: DoneTool(done.item_id, done.output, done.status, OpenTool(done.item_id, call_id))
            for call_id, done in unended[-MAX_UNENDED:]
        }

    def _add_late_result(
        self, call_id: str, done: DoneTool, update: acp.ToolCall | acp.ToolCallUpdate
    ) -> None:
        # The end of a call after that of its turn, or a repeated end, which only shows a new output.
        tool = done.tool or OpenTool(done.item_id, call_id)
        _merge(tool, update)
        if done.tool is None:
            tool.places, tool.raw_input = [], None  # shown before
        if tool.status not in _ENDED:
            return
        status: ItemStatus = "failed" if tool.status == "failed" else "completed"
        output = _output(tool)
        is_new = _crc(output) != done.output and bool(output)
        if is_new or (done.tool is not None and status != done.status):
            self._texts.interrupt()
            self._emit_result(tool, status, "agent")
            done.output, done.status = _crc(output), status
        done.tool = None

    def _emit_result(self, tool: OpenTool, status: ItemStatus, source: EventSource) -> None:
        content: list[ContentPart] = [ToolResultPart(tool.call_id, _output(tool))]
        refs = location_refs(tool.places, tool.kind, tool.diffs)
        content += [ref for ref in refs if ref not in tool.call_files]
        content += tool.others
        if tool.raw_input is not None and to_json(tool.raw_input) != tool.arguments:
            content.append(JsonPart({"rawInput": tool.raw_input}))
        item_id = self._emit.next_id("itm")
        self._emit.start(
            item_id,
            "tool_result",
            "tool",
            [ToolResultPart(tool.call_id, "")],
            native_id=tool.call_id,
            parent_id=tool.item_id,
        )
        self._emit.complete(
            item_id,
            "tool_result",
            "tool",
            content,
            status=status,
            native_id=tool.call_id,
            parent_id=tool.item_id,
            source=source,
        )


def _call_content(tool: OpenTool, arguments: str) -> list[ContentPart]:
    name = tool.name or tool.title or tool.kind or "tool"
    content: list[ContentPart] = [ToolCallPart(name, arguments, tool.call_id)]
    if tool.title:
        content.append(StatusPart(tool.title, tool.kind or None))
    content += location_refs(tool.places, tool.kind, tool.diffs)
    return content


def _merge(tool: OpenTool, update: acp.ToolCall | acp.ToolCallUpdate) -> None:
    tool.title = update.title or tool.title
    tool.name = update.name or _meta_name(update) or tool.name
    if isinstance(update, acp.ToolCallUpdate) or update.kind != "other" or not tool.kind:
        tool.kind = update.kind or tool.kind
    if update.status is not None and tool.status not in _ENDED:
        tool.status = update.status
    if update.raw_input is not None:
        tool.raw_input = update.raw_input
    if update.raw_output is not None:
        tool.raw_output = update.raw_output
    if update.locations:
        tool.places = [location.path for location in update.locations]
    if update.content:
        _merge_content(tool, update.content)
        tool.final = update.status in _ENDED
    data = _meta(update, "terminal_output").get("data")
    if isinstance(data, str):
        tool.terminal += data


def _merge_content(tool: OpenTool, content: list[acp.ToolCallContent]) -> None:
    texts: list[str] = []
    diffs: list[FileRefPart] = []
    others: list[ContentPart] = []
    for item in content:
        match item:
            case acp.Content():
                part = block_part(item.content)
                if isinstance(part, TextPart):
                    texts.append(part.text)
                else:
                    others.append(part)
            case acp.Diff():
                diff = unified_diff(item.old_text, item.new_text)
                diffs.append(
                    FileRefPart(item.path, "write" if item.old_text is None else "patch", diff or None)
                )
            case acp.Terminal():
                pass  # its output comes in terminal_output; its id means nothing to users
            case _:
                others.append(JsonPart(item.raw))
    tool.text = "\n".join(texts)
    # The content of a result replaces that of the call, but diffs stay.
    tool.diffs = diffs or tool.diffs
    tool.others = others


def _output(tool: OpenTool) -> str:
    output = tool.terminal or output_text(tool.raw_output)
    if tool.final and tool.text:
        return tool.text
    # While a call is pending, its content describes the call and not the output.
    return output or (tool.text if tool.status not in {"", "pending"} else "")


def _meta(update: acp.ToolCall | acp.ToolCallUpdate, name: str) -> dict[str, Any]:
    return members((update.meta or {}).get(name))


def _meta_name(update: acp.ToolCall | acp.ToolCallUpdate) -> str:
    plain = (update.meta or {}).get("toolName")
    claude = _meta(update, "claudeCode").get("toolName")
    goose = members(_meta(update, "goose").get("toolCall")).get("toolName")
    return next((name for name in (plain, claude, goose) if isinstance(name, str)), "")


def _crc(output: str) -> int:
    return zlib.crc32(output.encode("utf-8", "surrogatepass"))
