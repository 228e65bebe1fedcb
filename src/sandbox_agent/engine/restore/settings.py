"""Model, mode and thought level of a session, set again where they are others than before."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import Any, cast

from sandbox_agent.engine import config_options as config
from sandbox_agent.engine.restore.steps import AskOptions, Call, Refusal, Step

__all__ = ["SettingsAgain"]

_METHOD_NOT_FOUND = -32601
# The model first: what else can be chosen may depend on it.
_CATEGORIES = ("model", "mode", "thought_level")

Options = list[dict[str, Any]]


class SettingsAgain:
    """One agent session's settings, as far as its agent tells them.

    Args:
        agent: whose, for the messages.
        session_id: the agent's session.
        result: what the agent answered when it opened the session.
        known_options: what it told of the same session before, where it is silent now.
        known_modes: likewise.
        listed_only: set only what the agent lists: the wish comes from another agent.

    Attributes:
        failed: what could not be set, by category, and why.
    """

    def __init__(
        self,
        agent: str,
        session_id: str,
        result: Mapping[str, Any],
        *,
        known_options: Options | None = None,
        known_modes: dict[str, Any] | None = None,
        listed_only: bool = False,
    ) -> None:
        self.failed: dict[str, str] = {}
        self._agent = agent
        self._session_id = session_id
        self._listed_only = listed_only
        told = config.valid_options(result.get("configOptions"))
        modes: Any = result.get("modes")
        self._modes = cast("dict[str, Any]", modes) if isinstance(modes, dict) else None
        if self._modes is None:
            self._modes = config.modes_from_options(told) or _without_current_mode(known_modes)
        self._options = told if told is not None else _without_values(known_options)
        self._asked = False

    @property
    def known(self) -> bool:
        """Whether anything is known of what can be set."""
        return self._options is not None or self._modes is not None

    def steps(self, wanted: Mapping[str, str | None]) -> Iterator[Step]:
        """Return what is to be done, step by step."""
        for category in _CATEGORIES:
            value = wanted.get(category)
            if not value or value == self._current(category):
                continue
            setting = self._mode(value) if category == "mode" else self._option(category, value)
            refusal = yield from setting
            if refusal is not None:
                self.failed[category] = refusal.message

    def _current(self, category: str) -> str | None:
        value = config.current_value(self._options, category)
        if value is None and category == "mode":
            mode: Any = (self._modes or {}).get("currentModeId")
            return mode if isinstance(mode, str) and mode else None
        return value

    def _mode(self, value: str) -> Generator[Step, None, Refusal | None]:
        if self._modes is None:
            yield from self._ask()
            self._modes = _without_current_mode(config.modes_from_options(self._options))
        available: Any = (self._modes or {}).get("availableModes")
        entries = cast("list[Any]", available) if isinstance(available, list) else []
        listed = [str(cast("dict[str, Any]", each).get("id")) for each in entries if isinstance(each, dict)]
        if value not in listed and (listed or self._listed_only):
            return self._unsupported("mode", value, listed)
        call = Call("session/set_mode", {"sessionId": self._session_id, "modeId": value})
        yield call
        if call.refusal is None:
            self._modes = config.with_current_mode(self._modes, value)
            self._options = config.with_mode_option(self._options, value)
        elif call.refusal.code == _METHOD_NOT_FOUND:
            return (yield from self._option("mode", value))
        return call.refusal

    def _option(self, category: str, value: str) -> Generator[Step, None, Refusal | None]:
        yield from self._ask()
        option = config.find_category(self._options or [], category)
        allowed = config.allowed_values(option) if option is not None else []
        if option is None or (value not in allowed and (allowed or self._listed_only)):
            return self._unsupported(category, value, allowed)
        params = {"sessionId": self._session_id, "configId": option["id"], "value": value}
        call = Call("session/set_config_option", params)
        yield call
        if call.refusal is None:
            told = config.valid_options(call.result.get("configOptions"))
            self._options = told or config.with_value(self._options, str(option["id"]), value)
        return call.refusal

    def _ask(self) -> Generator[Step, None, None]:
        if self._options is None and not self._asked:
            self._asked = True
            ask = AskOptions()
            yield ask
            self._options = _without_values(ask.options)

    def _unsupported(self, category: str, value: str, allowed: list[str]) -> Refusal:
        name = category.replace("_", " ")
        hint = f"it has {', '.join(allowed)}" if allowed else f"it offers no choice of {name}"
        return Refusal(f"{self._agent} has no {name} '{value}': {hint}")


def _without_values(options: Options | None) -> Options | None:
    # What can be chosen is the same; what is chosen is not known.
    return None if options is None else [{**option, "currentValue": None} for option in options]


def _without_current_mode(modes: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if modes is None else {**modes, "currentModeId": ""}
