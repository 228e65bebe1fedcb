"""Typed views of ACP: session updates, content, permission requests (agentclientprotocol.com, schema v1).

The parsers never raise, because real agents break the schema. What fits the schema is decoded in one step.
Everything else is handled as the schema's ``x-deserialize-default-on-error`` and
``x-deserialize-skip-invalid-items`` say: an invalid optional field counts as absent, an invalid item of a
list is left out, and null is an empty list.
"""

from __future__ import annotations

import types
import typing
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar, cast

import msgspec

from sandbox_agent.wire import objects
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, load_object, members, replace_surrogates
from sandbox_agent.wire.serial import Serializable

if TYPE_CHECKING:
    _Option = objects.ConfigOption
else:
    _Option = dict[str, Any]  # what msgspec decodes; __post_init__ converts it


class AcpStruct(Serializable, msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A view of an ACP object. Unknown fields are ignored, because the bytes are kept elsewhere.

    Attributes:
        meta: ACP's ``_meta``, with any content.
    """

    meta: dict[str, Any] | None = msgspec.field(default=None, name="_meta")

    def to_dict(self) -> dict[str, Any]:
        """Return the object in ACP's shape."""
        return cast("dict[str, Any]", _unwrap_unknown(super().to_dict()))


class Annotations(AcpStruct, frozen=True):
    """Hints on how to show a block; ``last_modified`` is ISO 8601, ``priority`` is 0 to 1."""

    audience: list[str] | None = None
    last_modified: str | None = None
    priority: float | None = None


class TextContent(AcpStruct, frozen=True, tag_field="type", tag="text"):
    """Text, usually Markdown."""

    type: ClassVar[Literal["text"]] = "text"
    text: str
    annotations: Annotations | None = None


class ImageContent(AcpStruct, frozen=True, tag_field="type", tag="image"):
    """An image; ``data`` is base64."""

    type: ClassVar[Literal["image"]] = "image"
    data: str
    mime_type: str
    uri: str | None = None
    annotations: Annotations | None = None


class AudioContent(AcpStruct, frozen=True, tag_field="type", tag="audio"):
    """Sound; ``data`` is base64."""

    type: ClassVar[Literal["audio"]] = "audio"
    data: str
    mime_type: str
    annotations: Annotations | None = None


class ResourceLink(AcpStruct, frozen=True, tag_field="type", tag="resource_link"):
    """A link to a resource that the reader can fetch; ``size`` is in bytes."""

    type: ClassVar[Literal["resource_link"]] = "resource_link"
    name: str
    uri: str
    title: str | None = None
    description: str | None = None
    mime_type: str | None = None
    size: int | None = None
    annotations: Annotations | None = None


class ResourceContents(AcpStruct, frozen=True):
    """An embedded resource's contents: ``text``, or ``blob`` in base64 (ACP has a type for each)."""

    uri: str
    mime_type: str | None = None
    text: str | None = None
    blob: str | None = None


class EmbeddedResource(AcpStruct, frozen=True, tag_field="type", tag="resource"):
    """A resource with its contents."""

    type: ClassVar[Literal["resource"]] = "resource"
    resource: ResourceContents
    annotations: Annotations | None = None


class UnknownContent(Serializable, msgspec.Struct, frozen=True, tag_field="type", tag=""):
    """A block whose type is unknown to this version, or that breaks the schema.

    Attributes:
        type: its type, or an empty string if it has none.
        raw: the whole block.
    """

    type: str = msgspec.field(name="_type")
    raw: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the whole block."""
        return self.raw


ContentBlock: TypeAlias = (
    TextContent | ImageContent | AudioContent | ResourceLink | EmbeddedResource | UnknownContent
)


class ToolCallLocation(AcpStruct, frozen=True):
    """A file that a tool works on; ``line`` counts from 1; None if the agent does not report it."""

    path: str
    line: int | None = None


class Content(AcpStruct, frozen=True, tag_field="type", tag="content"):
    """An ordinary content block."""

    type: ClassVar[Literal["content"]] = "content"
    content: ContentBlock


class Diff(AcpStruct, frozen=True, tag_field="type", tag="diff"):
    """A file's change; ``old_text`` is None for a new file."""

    type: ClassVar[Literal["diff"]] = "diff"
    path: str
    new_text: str
    old_text: str | None = None


class Terminal(AcpStruct, frozen=True, tag_field="type", tag="terminal"):
    """A terminal that the client created, shown inside the tool call."""

    type: ClassVar[Literal["terminal"]] = "terminal"
    terminal_id: str


ToolCallContent: TypeAlias = Content | Diff | Terminal | UnknownContent


class _Update(AcpStruct, frozen=True, tag_field="sessionUpdate"):
    pass


class _ContentChunk(_Update, frozen=True):
    content: ContentBlock

    @property
    def text(self) -> str:
        """The block's text, or an empty string if it is not a text block.

        It can always be encoded: half of a surrogate pair is U+FFFD here. ``content.text`` has the half.
        """
        return replace_surrogates(self.content.text) if isinstance(self.content, TextContent) else ""


class UserMessageChunk(_ContentChunk, frozen=True, tag="user_message_chunk"):
    """A piece of a message of the user; ``message_id`` is the same in all pieces of a message."""

    session_update: ClassVar[Literal["user_message_chunk"]] = "user_message_chunk"
    message_id: str | None = None


class AgentMessageChunk(_ContentChunk, frozen=True, tag="agent_message_chunk"):
    """A piece of a message of the agent; ``message_id`` is the same in all pieces of a message."""

    session_update: ClassVar[Literal["agent_message_chunk"]] = "agent_message_chunk"
    message_id: str | None = None


class AgentThoughtChunk(_ContentChunk, frozen=True, tag="agent_thought_chunk"):
    """A piece of a thought of the agent; ``message_id`` is the same in all pieces of a message."""

    session_update: ClassVar[Literal["agent_thought_chunk"]] = "agent_thought_chunk"
    message_id: str | None = None


class ToolCall(_Update, frozen=True, tag="tool_call"):
    """A tool call begins.

    Attributes:
        tool_call_id: unique in its session.
        title: what it does, for users.
        name: the tool's own name, if the agent reports it.
        kind: read, edit, delete, move, search, execute, think, fetch, switch_mode, other, or a newer one.
        status: pending, in_progress, completed or failed.
        content: its output so far.
        locations: the files that it works on.
        raw_input: its arguments, as the agent sends them.
        raw_output: its result, as the agent sends it.
    """

    session_update: ClassVar[Literal["tool_call"]] = "tool_call"
    tool_call_id: str
    title: str
    name: str | None = None
    kind: str = "other"
    status: str = "pending"
    content: list[ToolCallContent] = msgspec.field(default_factory=list[ToolCallContent])
    locations: list[ToolCallLocation] = msgspec.field(default_factory=list[ToolCallLocation])
    raw_input: Any = None
    raw_output: Any = None


class ToolCallUpdate(_Update, frozen=True, tag="tool_call_update"):
    """A change of a tool call: fields as in ToolCall, None if unchanged; lists replace lists."""

    session_update: ClassVar[Literal["tool_call_update"]] = "tool_call_update"
    tool_call_id: str
    title: str | None = None
    name: str | None = None
    kind: str | None = None
    status: str | None = None
    content: list[ToolCallContent] | None = None
    locations: list[ToolCallLocation] | None = None
    raw_input: Any = None
    raw_output: Any = None


class PlanEntry(AcpStruct, frozen=True):
    """A step; ``priority`` is high, medium or low, ``status`` pending, in_progress or completed."""

    content: str
    priority: str = "medium"
    status: str = "pending"


class Plan(_Update, frozen=True, tag="plan"):
    """The agent's whole plan; it replaces the previous one."""

    session_update: ClassVar[Literal["plan"]] = "plan"
    entries: list[PlanEntry]


class UnstructuredCommandInput(AcpStruct, frozen=True):
    """The command accepts text after its name; ``hint`` is shown until some is entered."""

    hint: str


class AvailableCommand(AcpStruct, frozen=True):
    """A slash command."""

    name: str
    description: str
    input: UnstructuredCommandInput | None = None


class AvailableCommandsUpdate(_Update, frozen=True, tag="available_commands_update"):
    """All commands that the session offers now."""

    session_update: ClassVar[Literal["available_commands_update"]] = "available_commands_update"
    available_commands: list[AvailableCommand]


class CurrentModeUpdate(_Update, frozen=True, tag="current_mode_update"):
    """The session is in another mode."""

    session_update: ClassVar[Literal["current_mode_update"]] = "current_mode_update"
    current_mode_id: str


class ConfigOptionUpdate(_Update, frozen=True, tag="config_option_update"):
    """All config options with their values, in ACP's shape (SessionConfigOption)."""

    session_update: ClassVar[Literal["config_option_update"]] = "config_option_update"
    config_options: list[_Option]

    def __post_init__(self) -> None:
        """Make the options' members attributes, too."""
        options = [objects.ConfigOption(option) for option in self.config_options]
        msgspec.structs.force_setattr(self, "config_options", options)


class SessionInfoUpdate(_Update, frozen=True, tag="session_info_update"):
    """The session's title, or the time of its last change (ISO 8601)."""

    session_update: ClassVar[Literal["session_info_update"]] = "session_info_update"
    title: str | None = None
    updated_at: str | None = None


class Cost(AcpStruct, frozen=True):
    """The cost of a session so far; ``currency`` is ISO 4217."""

    amount: float
    currency: str


class UsageUpdate(_Update, frozen=True, tag="usage_update"):
    """Tokens ``used`` of the context window's ``size``."""

    session_update: ClassVar[Literal["usage_update"]] = "usage_update"
    used: int
    size: int
    cost: Cost | None = None


class Notice(_Update, frozen=True, tag="notice"):
    """A notice for the user; ``severity`` is info, warning or error."""

    session_update: ClassVar[Literal["notice"]] = "notice"
    severity: str
    title: str
    description: str | None = None


class CompactionUpdate(_Update, frozen=True, tag="compaction_update"):
    """The agent shortens its history; ``status`` is its progress, ``error`` the reason of a failure."""

    session_update: ClassVar[Literal["compaction_update"]] = "compaction_update"
    compaction_id: str
    status: str
    summary: list[ContentBlock] | None = None
    error: str | None = None


class CompactionSummaryChunk(_ContentChunk, frozen=True, tag="compaction_summary_chunk"):
    """A piece of a compaction's summary."""

    session_update: ClassVar[Literal["compaction_summary_chunk"]] = "compaction_summary_chunk"
    compaction_id: str


class UnknownUpdate(Serializable, msgspec.Struct, frozen=True):
    """An update whose kind is unknown to this version, or that lacks a required member.

    Attributes:
        session_update: its kind, or an empty string if it has none.
        raw: the whole update; empty if it was not an object.
    """

    session_update: str
    raw: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the whole update."""
        return self.raw


KnownUpdate: TypeAlias = (
    UserMessageChunk
    | AgentMessageChunk
    | AgentThoughtChunk
    | ToolCall
    | ToolCallUpdate
    | Plan
    | AvailableCommandsUpdate
    | CurrentModeUpdate
    | ConfigOptionUpdate
    | SessionInfoUpdate
    | UsageUpdate
    | Notice
    | CompactionUpdate
    | CompactionSummaryChunk
)
SessionUpdate: TypeAlias = KnownUpdate | UnknownUpdate


class PermissionOption(AcpStruct, frozen=True):
    """A possible answer.

    ``kind`` is allow_once, allow_always, reject_once or reject_always; ``option_id`` is the agent's own.
    """

    option_id: str
    name: str = ""
    kind: str = ""


class PermissionRequest(AcpStruct, frozen=True):
    """The params of ``session/request_permission``; the tool call's id may come before its tool_call."""

    session_id: str = ""
    tool_call: ToolCallUpdate = ToolCallUpdate(tool_call_id="")
    options: list[PermissionOption] = msgspec.field(default_factory=list[PermissionOption])


class PromptResponse(AcpStruct, frozen=True):
    """The result of ``session/prompt``.

    Attributes:
        stop_reason: end_turn, max_tokens, max_turn_requests, refusal, cancelled, or a newer one; empty
            if the agent sent none.
        usage: the turn's tokens, if the agent reports them (``inputTokens``, ``outputTokens``, …).
        cancelled: whether the turn was cancelled. Some agents end a cancelled turn with end_turn. It is not
            part of ACP: the SDK sets it.
    """

    stop_reason: str = ""
    usage: dict[str, Any] | None = None
    cancelled: bool = False


S = TypeVar("S", bound=msgspec.Struct)


class _Params(msgspec.Struct, frozen=True):
    update: msgspec.Raw = msgspec.Raw()


class _Envelope(msgspec.Struct, frozen=True):
    method: str = ""
    params: _Params = _Params()


class _Known(msgspec.Struct):
    """Holds an update: msgspec compiles the types of a struct once, those of a bare union in every call."""

    update: KnownUpdate


_envelope_decoder = msgspec.json.Decoder(_Envelope)
_update_decoder: msgspec.json.Decoder[KnownUpdate] = msgspec.json.Decoder(KnownUpdate)
_KINDS: dict[object, type[KnownUpdate]] = {kind.session_update: kind for kind in typing.get_args(KnownUpdate)}


def parse_update(update: bytes | dict[str, Any]) -> SessionUpdate:
    """Return the view of a ``session/update``'s ``update`` member.

    Args:
        update: the member, as JSON bytes or decoded.

    Returns:
        The view of its kind; UnknownUpdate if the kind is unknown or a required member is missing.
    """
    try:
        if isinstance(update, dict):
            return msgspec.convert({"update": update}, _Known).update
        return _update_decoder.decode(update)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
        pass
    raw = _object(update)
    kind = raw.get("sessionUpdate")
    known = _KINDS.get(kind) if isinstance(kind, str) else None
    if known is not None:
        try:
            return _struct(known, raw)
        except _UnfitError:
            pass
    return UnknownUpdate(kind if isinstance(kind, str) else "", raw)


def read_update(envelope: bytes) -> SessionUpdate | None:
    """Return the update in an envelope, or None if it is not a ``session/update``."""
    try:
        message = _envelope_decoder.decode(envelope)
    except (msgspec.DecodeError, RecursionError):
        fields = _object(envelope)
        if fields.get("method") != "session/update":
            return None
        return parse_update(members(members(fields.get("params")).get("update")))
    return parse_update(bytes(message.params.update)) if message.method == "session/update" else None


def parse_permission_request(params: bytes | dict[str, Any]) -> PermissionRequest:
    """Return the view of a ``session/request_permission``'s params; missing members are empty."""
    return _struct(PermissionRequest, _object(params))


def parse_prompt_response(result: bytes | dict[str, Any]) -> PromptResponse:
    """Return the view of a ``session/prompt``'s result; missing members are empty."""
    return _struct(PromptResponse, _object(result))


def _unwrap_unknown(value: object) -> object:
    """Replace what is an UnknownContent in a dict of JSON values by the block that it stands for."""
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        if fields.get("type") == "" and "_type" in fields and "raw" in fields:
            return fields["raw"]
        return {name: _unwrap_unknown(each) for name, each in fields.items()}
    if isinstance(value, list):
        return [_unwrap_unknown(each) for each in cast("list[object]", value)]
    return value


class _UnfitError(Exception):
    """A required member is missing or of a wrong type."""


def _object(value: bytes | dict[str, Any]) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    try:
        return load_object(value)
    except InvalidEnvelopeError:
        return {}


def _struct(kind: type[S], raw: dict[str, Any]) -> S:
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        if field.encode_name in raw:
            try:
                values[field.name] = _value(field.type, raw[field.encode_name])
            except _UnfitError:
                if field.required:
                    raise
        elif field.required:
            raise _UnfitError
    return kind(**values)


def _value(kind: Any, value: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError):
        pass
    options = typing.get_args(kind) if _is_union(kind) else (kind,)
    for option in options:
        if typing.get_origin(option) is list:
            return _items(typing.get_args(option)[0], value)
    if not isinstance(value, dict):
        raise _UnfitError
    raw = cast("dict[str, Any]", value)
    structs = [option for option in options if _is_struct(option)]
    tag = raw.get("type")
    for option in structs:
        if len(structs) == 1 or (tag == option.__struct_config__.tag and option is not UnknownContent):
            try:
                return _struct(option, raw)
            except _UnfitError:
                break
    if UnknownContent in structs:
        return UnknownContent(tag if isinstance(tag, str) else "", raw)
    raise _UnfitError


def _items(kind: Any, value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _UnfitError
    items: list[Any] = []
    for item in cast("list[Any]", value):
        try:
            items.append(_value(kind, item))
        except _UnfitError:
            continue
    return items


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (types.UnionType, typing.Union)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
