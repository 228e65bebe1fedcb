"""ACP's objects as dicts whose members are also attributes, in snake_case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from sandbox_agent.wire.jsonrpc import elements
from sandbox_agent.wire.serial import Serializable

if TYPE_CHECKING:
    from sandbox_agent.wire.acp import ToolCallContent, ToolCallLocation, ToolCallUpdate

__all__ = [
    "AcpObject",
    "ConfigOption",
    "ConfigOptionValue",
    "PermissionOption",
    "PermissionToolCall",
    "SessionMode",
    "SessionModes",
]


class AcpObject(dict[str, Any], Serializable):
    """An object of ACP, with all its members. An attribute is the member of that name in camelCase.

    An attribute of the class is None if the object lacks the member; any other missing one raises
    AttributeError.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        first, *rest = name.split("_")
        member = first + "".join(part.capitalize() for part in rest)
        if member in self and first:
            return self[member]
        if any(name in kind.__annotations__ for kind in type(self).__mro__ if issubclass(kind, AcpObject)):
            return None
        raise AttributeError(f"{type(self).__name__} has no member {member!r}; it has {', '.join(self)}")


class PermissionToolCall(AcpObject):
    """The tool call that an agent requests permission for.

    Attributes:
        tool_call_id: its id.
        title: what it does, for users.
        kind: read, edit, delete, move, search, execute, think, fetch, switch_mode, other, or a newer one.
        status: pending, in_progress, completed or failed.
        raw_input: its arguments, as the agent sends them.
        raw_output: its result, as the agent sends it.
    """

    __slots__ = ()

    tool_call_id: str | None
    title: str | None
    kind: str | None
    status: str | None
    raw_input: Any
    raw_output: Any

    @property
    def content(self) -> list[ToolCallContent]:
        """What it shows, such as the Diff of an edit."""
        return self._view().content or []

    @property
    def locations(self) -> list[ToolCallLocation]:
        """The files that it works on."""
        return self._view().locations or []

    def _view(self) -> ToolCallUpdate:
        from sandbox_agent.wire import acp  # it has config options

        view = acp.parse_update({"toolCallId": "", **self, "sessionUpdate": "tool_call_update"})
        return view if isinstance(view, acp.ToolCallUpdate) else acp.ToolCallUpdate(tool_call_id="")


class PermissionOption(AcpObject):
    """A possible answer to a permission request.

    Attributes:
        option_id: the agent's own id.
        name: its text for people.
        kind: allow_once, allow_always, reject_once or reject_always.
    """

    __slots__ = ()

    option_id: str | None
    name: str | None
    kind: str | None


class SessionMode(AcpObject):
    """A mode of an agent.

    Attributes:
        id: its id.
        name: its name for people.
        description: what it means.
    """

    __slots__ = ()

    id: str
    name: str
    description: str | None


class SessionModes(AcpObject):
    """The modes of a session's agent.

    Attributes:
        current_mode_id: the mode that the session is in.
    """

    __slots__ = ()

    current_mode_id: str

    @property
    def available_modes(self) -> list[SessionMode]:
        """The modes that the agent has."""
        return [SessionMode(mode) for mode in _dicts(self.get("availableModes"))]


class ConfigOptionValue(AcpObject):
    """A value that a config option accepts.

    Attributes:
        value: the value.
        name: its name for people.
        description: what it means.
    """

    __slots__ = ()

    value: Any
    name: str | None
    description: str | None


class ConfigOption(AcpObject):
    """A config option of a session, such as its model.

    Attributes:
        id: its id.
        name: its name for people.
        description: what it does.
        category: "model", "mode", "thought_level" or another one.
        type: "select" or "boolean".
        current_value: its value.
    """

    __slots__ = ()

    id: str
    name: str | None
    description: str | None
    category: str | None
    type: str | None
    current_value: Any

    @property
    def options(self) -> list[ConfigOptionValue]:
        """The values that it accepts, without their groups."""
        found: list[ConfigOptionValue] = []
        for each in _dicts(self.get("options")):
            members = _dicts(each["options"]) if "options" in each else [each]
            found += map(ConfigOptionValue, members)
        return found


def _dicts(value: object) -> list[dict[str, Any]]:
    return [cast("dict[str, Any]", each) for each in elements(value) if isinstance(each, Mapping)]
