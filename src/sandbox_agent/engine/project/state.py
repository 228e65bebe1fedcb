"""The state of the projector: small, and made of JSON values only. Snapshots of it are stored."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from sandbox_agent.engine.restore.load_phase import Retelling
from sandbox_agent.wire.universal import ContentPart, FileRefPart, ItemStatus

Stream: TypeAlias = Literal[
    "agent_message_chunk", "agent_thought_chunk", "user_message_chunk", "compaction_summary_chunk"
]


class OpenText(msgspec.Struct):
    """An incomplete message.

    Attributes:
        native_id: The agent's id of the message. None if it has none; it then ends with the next item of
            another kind.
        parts: The complete parts.
        pieces: The deltas after these parts.
        size: The number of characters received.
    """

    item_id: str
    native_id: str | None = None
    parts: list[ContentPart] = []
    pieces: list[str] = []
    size: int = 0


class OpenTool(msgspec.Struct):
    """A tool call without a result.

    Attributes:
        text: The text of its content.
        final: Whether the text came with the end of the call.
        terminal: The output of its terminal, if the agent sends it.
        called: Whether its tool_call item is completed.
        arguments: The arguments in the completed item.
        call_files: The file refs in the completed item.
        rejected: Whether the permission for the call was rejected.
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
    """A tool call with a result: one of this turn, or an older one that the agent has not ended.

    Attributes:
        output: The CRC of the result.
        status: The status of the result.
        tool: The call, if its turn ended before the agent ended it.
    """

    item_id: str
    output: int
    status: ItemStatus = "completed"
    tool: OpenTool | None = None


class Turn(msgspec.Struct):
    """A prompt without a response.

    Attributes:
        by_server: Whether the server sent the prompt. It sends it again if the agent has lost the session.
        refused: Whether the agent has lost the session, and the prompt was not sent again yet.
        acted: Whether the agent has used a tool or asked for something: the prompt is not sent again then.
    """

    turn_id: str
    cancelled: bool = False
    by_server: bool = False
    refused: bool = False
    acted: bool = False


class Call(msgspec.Struct):
    """Another request of the client without a response. ``value`` is the value to set."""

    method: str
    value: str = ""


class Ask(msgspec.Struct):
    """A request of the agent without an answer.

    Attributes:
        ask_id: The id of the permission or question.
        text: The action of the permission, or the prompt of the question.
        options: The option ids and kinds of a permission, or the options of a question with "".
        call_id: The tool call that needs the permission.
    """

    ask_id: str
    text: str
    options: dict[str, str] = {}
    call_id: str = ""


class State(msgspec.Struct):
    """The state of the projector between two envelopes. The field names are part of stored snapshots.

    Attributes:
        version: The version of these fields. A snapshot of another version is rejected, and its session is
            projected again from its envelopes.
        sequence: The sequence of the last event.
        texts: The incomplete messages, at most one per stream.
        current: The stream of the last item or chunk, or "" if it was of another kind.
        turns: The running turns by the id of their prompt. Ids are JSON.
        calls, permissions, questions: By the id of their request, likewise.
        shown: The CRC of the last status item of each label. An unchanged status is not shown again.
        seen: Whether the session has any content.
        retelling: Whether the agent repeats the history while it opens the session.
        held: Updates that may repeat it, until that is known.
        skipped: The number of updates that were skipped for this reason.
        told_elsewhere: Whether the restore reports itself by ``Inputs.restoring`` and ``Inputs.restored``.
        echo: The rest of the prompt, which the agent may repeat.
        exited: Whether the agent has exited.
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
    held: list[bytes] = []
    skipped: int = 0
    told_elsewhere: bool = False
    echo: str = ""
    exited: bool = False
