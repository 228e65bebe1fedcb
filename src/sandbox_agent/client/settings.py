"""A session's model, mode, thought level and other options: checked, set, kept in its record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from sandbox_agent.client.journal import Journal
from sandbox_agent.engine import config_options as config
from sandbox_agent.errors import AcpRpcError, UnsupportedSessionValueError
from sandbox_agent.wire.jsonrpc import loads
from sandbox_agent.wire.records import SessionRecord

__all__ = ["Send", "Settings"]

METHOD_NOT_FOUND = -32601

# Sends a method of the session and returns its result.
Send = Callable[[str, dict[str, Any]], Awaitable[Any]]
# Asks the server for an agent's options.
AgentOptions = Callable[[str], Awaitable[list[dict[str, Any]]]]


class Settings:
    """Works on the record in the journal: changes are made in memory at once and saved by its writer."""

    def __init__(self, journal: Journal, agent_options: AgentOptions) -> None:
        self._journal = journal
        self._agent_options = agent_options

    @property
    def _record(self) -> SessionRecord:
        return self._journal.record

    async def options(self) -> list[dict[str, Any]]:
        """Return the options, asked from the server where session/new gave none."""
        if self._record.config_options is None:
            options = await self._agent_options(self._record.agent)
            if self._record.config_options is None:
                current = (self._record.modes or {}).get("currentModeId")
                options = (config.with_mode_option(options, current) if current else options) or []
                modes = self._record.modes or config.modes_from_options(options)
                self._journal.change(config_options=options, modes=modes)
        return [dict(option) for option in self._record.config_options or []]

    async def modes(self) -> dict[str, Any] | None:
        """Return the modes, made from the mode option where session/new gave none."""
        modes = self._record.modes
        if not (modes and modes.get("availableModes")):
            derived = config.modes_from_options(await self.options())
            if derived is not None:
                self._journal.change(modes=derived)
        return dict(self._record.modes) if self._record.modes else None

    async def set_category(self, category: str, value: str, send: Send) -> None:
        """Set the category's option ("model", "thought_level", "mode")."""
        if category == "mode":
            await self.set_mode(value, send)
        else:
            await self._set_by_category(category, value, send)

    async def _set_by_category(self, category: str, value: str, send: Send) -> None:
        wanted = required(value, category)
        option = config.option_of_category(self._record.id, await self.options(), category)
        config.check_value(self._record.id, option, category, wanted)
        await self._set(str(option["id"]), wanted, send)

    async def set_mode(self, mode: str, send: Send) -> None:
        """Set the mode by session/set_mode, or by its option where the agent lacks that method."""
        wanted = required(mode, "mode")
        available: list[dict[str, Any]] = (self._record.modes or {}).get("availableModes") or []
        known = [str(item["id"]) for item in available if item.get("id")]
        if known and wanted not in known:
            raise UnsupportedSessionValueError(self._record.id, "mode", "mode", wanted, known)
        params = {"modeId": wanted}
        try:
            result = await send("session/set_mode", params)
        except AcpRpcError as error:
            if error.code != METHOD_NOT_FOUND:
                raise
            await self._set_by_category("mode", wanted, send)
        else:
            self.apply_result("session/set_mode", params, result)

    async def set_option(self, config_id: str, value: str, send: Send) -> None:
        """Set the option of that id."""
        name, wanted = required(config_id, "config_id"), required(value, "value")
        option = config.option_of_id(self._record.id, await self.options(), name)
        config.check_value(self._record.id, option, None, wanted)
        await self._set(name, wanted, send)

    async def _set(self, config_id: str, value: str, send: Send) -> None:
        params = {"configId": config_id, "value": value}
        self.apply_result(
            "session/set_config_option", params, await send("session/set_config_option", params)
        )

    def apply_result(self, method: str, params: Mapping[str, Any], result: object) -> None:
        """Take what a set method's answer says, or the value that was sent, into the record."""
        if method == "session/set_mode" and isinstance(mode := params.get("modeId"), str):
            self._apply_mode(mode)
        elif method == "session/set_config_option":
            fields = cast("dict[str, Any]", result) if isinstance(result, dict) else {}
            options = config.valid_options(fields.get("configOptions"))
            if options is None:
                config_id, value = str(params.get("configId")), params.get("value")
                options = config.with_value(self._record.config_options, config_id, value)
            self._apply_options(options)

    def apply_update(self, line: bytes) -> None:
        """Take a config_option_update or a current_mode_update into the record."""
        update: dict[str, Any] = loads(line)["params"]["update"]
        if update.get("sessionUpdate") == "config_option_update":
            options = config.valid_options(update.get("configOptions"))
            if options is not None:
                self._apply_options(options)
        elif isinstance(mode := update.get("currentModeId"), str):
            self._apply_mode(mode)

    def _apply_options(self, options: list[dict[str, Any]] | None) -> None:
        mode = config.current_value(options, "mode")
        modes = config.with_current_mode(self._record.modes, mode) if mode else self._record.modes
        self._journal.change(config_options=options, modes=modes)

    def _apply_mode(self, mode: str) -> None:
        self._journal.change(
            modes=config.with_current_mode(self._record.modes, mode),
            config_options=config.with_mode_option(self._record.config_options, mode),
        )


def required(value: str, name: str) -> str:
    """Return the value without surrounding blanks.

    Raises:
        ValueError: nothing is left.
    """
    stripped = value.strip()
    if not stripped:
        raise ValueError(f"{name} is empty")
    return stripped
