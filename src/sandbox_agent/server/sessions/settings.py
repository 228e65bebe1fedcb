"""Mode, model and thought level of an agent's session: checked and set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from sandbox_agent.engine import config_options as options_of
from sandbox_agent.errors import AcpRpcError, InvalidRequestError, ModeNotSupportedError, ProblemError
from sandbox_agent.server.sessions.agent_client import METHOD_NOT_FOUND, AgentLink, refused

__all__ = ["MODE", "MODEL", "VARIANT", "AgentSettings"]

# ACP's categories of config options, and what the session API calls them.
MODE, MODEL, VARIANT = "mode", "model", "thought_level"
_NAMES = {MODE: "mode", MODEL: "model", VARIANT: "variant"}
_INVALID_PARAMS = -32602


class AgentSettings:
    """What an agent's session can be set to, and is.

    Args:
        link: the agent; its session exists.
        result: what it answered to session/new, load or resume.
    """

    def __init__(self, link: AgentLink, result: Mapping[str, Any]) -> None:
        self._link = link
        self._options = options_of.valid_options(result.get("configOptions"))
        modes: Any = result.get("modes")
        given = cast("dict[str, Any]", modes) if isinstance(modes, dict) else None
        self._modes = given or options_of.modes_from_options(self._options)

    @property
    def known(self) -> bool:
        """Whether the agent said anything of its settings."""
        return self._options is not None or self._modes is not None

    def current(self, category: str) -> str | None:
        """Return what the session is set to, None where that is unknown."""
        value = options_of.current_value(self._options, category)
        if value is None and category == MODE:
            mode: Any = (self._modes or {}).get("currentModeId")
            return mode if isinstance(mode, str) and mode else None
        return value

    async def set(self, category: str, value: str) -> None:
        """Set one of them.

        Raises:
            ModeNotSupportedError: there is no such mode.
            InvalidRequestError: there is no such model or variant.
            ProblemError: the agent refuses, or is gone.
        """
        if value == self.current(category):
            return
        try:
            if category == MODE:
                await self._set_mode(value)
            else:
                await self._set_option(category, value)
        except AcpRpcError as error:
            if error.code == _INVALID_PARAMS:
                raise self._unsupported(category, value, [], str(error)) from error
            raise refused(self._link.agent, f"to set the {_NAMES[category]} '{value}'", error) from error

    async def _set_mode(self, value: str) -> None:
        available: Any = (self._modes or {}).get("availableModes")
        entries = cast("list[Any]", available) if isinstance(available, list) else []
        known = [str(cast("dict[str, Any]", each).get("id")) for each in entries if isinstance(each, dict)]
        if value not in known and (known or self._modes is None):
            raise self._unsupported(MODE, value, known)
        try:
            await self._link.call("session/set_mode", {"sessionId": self._link.native_id, "modeId": value})
        except AcpRpcError as error:
            if error.code != METHOD_NOT_FOUND:
                raise
            await self._set_option(MODE, value)
        else:
            self._modes = options_of.with_current_mode(self._modes, value)
            self._options = options_of.with_mode_option(self._options, value)

    async def _set_option(self, category: str, value: str) -> None:
        option = options_of.find_category(self._options or [], category)
        if option is None:
            raise self._unsupported(category, value, [])
        allowed = options_of.allowed_values(option)
        if allowed and value not in allowed:
            raise self._unsupported(category, value, allowed)
        params = {"sessionId": self._link.native_id, "configId": option["id"], "value": value}
        result = await self._link.call("session/set_config_option", params)
        told = options_of.valid_options(result.get("configOptions"))
        self._options = told or options_of.with_value(self._options, str(option["id"]), value)

    def _unsupported(self, category: str, value: str, allowed: list[str], why: str = "") -> ProblemError:
        name = _NAMES[category]
        hint = why or (f"it has {', '.join(allowed)}" if allowed else f"it offers no choice of {name}")
        text = f"{self._link.agent} has no {name} '{value}': {hint}"
        if category == MODE:
            return ModeNotSupportedError(f"mode not supported: {text}", allowed=allowed or None)
        return InvalidRequestError(f"invalid request: {text}", allowed=allowed or None)
