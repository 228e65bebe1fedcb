"""What the fold remembers: small, and made of JSON values only."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from sandbox_agent.engine.restore import Retelling
from sandbox_agent.wire.universal import ContentPart, FileRefPart

__all__ = ["Ask", "Call", "DoneTool", "OpenText", "OpenTool", "State", "Stream", "Turn"]

Stream: TypeAlias = Literal[
    "agent_message_chunk", "agent_thought_chunk", "user_message_chunk", "compaction_summary_chunk"
]


class OpenText(msgspec.Struct):
    """A message that goes on.

    Attributes:
        native_id: the agent's id of it; None where it has none and ends with the next item of another kind.
        parts: what is complete of it.
        pieces: the deltas since then.
        size: characters that came.
    """

    item_id: str
    native_id: str | None = None
    parts: list[ContentPart] = []
    pieces: list[str] = []
    size: int = 0


class OpenTool(msgspec.Struct):
    """A tool call that has no result yet, as far as the agent has told.

    Attributes:
        text: the text of its content.
        final: whether that came with its end.
        terminal: what its terminal showed, where the agent sends it along.
        called: whether its tool_call item is completed.
        arguments: those of the completed item.
        call_files: the file refs of the completed item.
        rejected: whether the permission for it was refused.
    """

    item_id: str
    call_id: str
    parent_id: str | None = None
    title: str = ""
    name: str = ""
    kind: str = ""
    status: str = ""
    raw_input: Any = None
    raw_output: Any = None
    text: str = ""
    final: bool = False
    terminal: str = ""
    diffs: list[FileRefPart] = []
    places: list[str] = []
    others: list[ContentPart] = []
    called: bool = False
    arguments: str = ""
    call_files: list[FileRefPart] = []
    rejected: bool = False


class DoneTool(msgspec.Struct):
    """A tool call of this turn that has its result; ``output`` is the CRC of that."""

    item_id: str
    output: int


class Turn(msgspec.Struct):
    """A prompt that has no response yet."""

    turn_id: str
    cancelled: bool = False


class Call(msgspec.Struct):
    """Another request of the client's that has no response yet; ``value`` is what it wants to set."""

    method: str
    value: str = ""


class Ask(msgspec.Struct):
    """A request of the agent's that has no answer yet.

    Attributes:
        ask_id: the permission's or question's id.
        text: the permission's action or the question's prompt.
        options: a permission's option ids and kinds, or a question's options and nothing.
        call_id: the tool call that it is about.
    """

    ask_id: str
    text: str
    options: dict[str, str] = {}
    call_id: str = ""


class State(msgspec.Struct):
    """All that the fold remembers between two envelopes.

    Attributes:
        version: of these fields; a snapshot of another version is refused, its session is folded anew.
        sequence: that of the last event.
        texts: the open messages, one for each stream at most.
        current: the stream that the last item or chunk belongs to; empty where it was something else.
        turns: by the prompt's id; ids are kept as their JSON.
        calls, permissions, questions: likewise.
        shown: CRCs of the status items, by label, so that what is said again is not shown again.
        seen: whether anything was said or done in this session.
        retelling: whether the agent says again what was seen, as it opens the session.
        skipped: how many updates were left out for it.
        told_elsewhere: whether who runs the restore tells of it (``Inputs.restoring``).
        echo: the rest of the prompt that the agent may say again.
        exited: whether the agent is gone.
    """

    session_id: str
    version: Literal[1] = 1
    sequence: int = 0
    native_session_id: str | None = None
    texts: dict[str, OpenText] = {}
    current: str = ""
    tools: dict[str, OpenTool] = {}
    done: dict[str, DoneTool] = {}
    turns: dict[str, Turn] = {}
    calls: dict[str, Call] = {}
    permissions: dict[str, Ask] = {}
    questions: dict[str, Ask] = {}
    shown: dict[str, int] = {}
    seen: bool = False
    retelling: Retelling = msgspec.field(default_factory=Retelling)
    skipped: int = 0
    told_elsewhere: bool = False
    echo: str = ""
    exited: bool = False
