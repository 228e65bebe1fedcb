"""The settings of an agent's session: how one of them is chosen, and how all are confirmed. No I/O.

A caller drives the generators here: it performs each step, stores the outcome in the step, and resumes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Any, Literal, NamedTuple, cast

import msgspec

from sandbox_agent.engine import config_options as config
from sandbox_agent.engine.permissions import AgentModes, agent_mode_of, is_permission_mode
from sandbox_agent.wire.jsonrpc import elements, members

METHOD_NOT_FOUND = -32601
# The model first: what else can be chosen may depend on it.
CATEGORIES = ("model", "mode", "thought_level")
# An agent that returns to its own value reports that right after its response: before the settings count as
# confirmed, the caller waits this long for such an update.
SETTLE_SECONDS = 0.05

Options = list[dict[str, Any]]


class ChosenSettings(msgspec.Struct, kw_only=True, frozen=True, rename="camel", omit_defaults=True):
    """What the user last set in a session; agents never change it.

    Attributes:
        mode, model, thought_level: values of the three categories that have methods of their own.
        options: values of all other config options, by id.
        config_ids: the option by which a category was set, for agents that no longer list their options.
        permission_mode: how permission requests are decided (``engine.permissions``).
        permission_policy: the name of the permission policy; a function is never stored.
        questions: whether the agent may ask questions; how they are answered is never stored.
        missing: by agent, the settings that it does not offer since the session was handed over to it.
    """

    mode: str | None = None
    model: str | None = None
    thought_level: str | None = None
    options: dict[str, Any] = {}
    config_ids: dict[str, str] = {}
    permission_mode: str | None = None
    permission_policy: str | None = None
    questions: bool = False
    missing: dict[str, list[str]] = {}

    def wanted(self, agent: str | None = None) -> dict[str, Any]:
        """Return the values to set, by category or option id, without what the agent does not offer."""
        chosen = {"model": self.model, "mode": self.mode, "thought_level": self.thought_level, **self.options}
        missing = self.missing.get(agent, []) if agent is not None else []
        return {name: value for name, value in chosen.items() if value is not None and name not in missing}


class Refusal(NamedTuple):
    """Why a call has no result.

    Attributes:
        message: for people.
        code: the code of the JSON-RPC error; None if no response was received in time.
        error: the error that the caller received.
    """

    message: str
    code: int | None = None
    error: Exception | None = None


class Call:
    """Send this request to the agent, and set ``result`` or ``refusal``.

    Attributes:
        method: the ACP method.
        params: its params.
        may_fail: whether the caller continues if the request is refused; otherwise it raises the error.
        result: the agent's result.
        refusal: the reason if there is no result.
    """

    def __init__(self, method: str, params: Mapping[str, Any], *, may_fail: bool = True) -> None:
        self.method = method
        self.params: dict[str, Any] = dict(params)
        self.may_fail = may_fail
        self.result: dict[str, Any] = {}
        self.refusal: Refusal | None = None


class AskOptions:
    """Set ``options`` to the agent's config options, if they are known from another source."""

    def __init__(self) -> None:
        self.options: Options | None = None


class ReadReported:
    """Wait ``SETTLE_SECONDS``, then set ``values`` to the last reported values, by category or option id.

    Settings that the agent has not reported since they were set are absent.
    """

    def __init__(self) -> None:
        self.values: Mapping[str, Any] = {}


Step = Call | AskOptions | ReadReported


# Values that an agent offers only in some environments.
_ROOT_NEEDS = (
    "Claude Code offers it to root only with IS_SANDBOX=1 in the environment of the server, which says that "
    "the machine is a sandbox. Set that if it is one, or run agents as another user"
)
_NEEDS = {("claude", "bypassPermissions"): _ROOT_NEEDS}


class Failure(NamedTuple):
    """Why a setting does not have the chosen value.

    Attributes:
        kind: "category", "option" or "value": the agent does not offer it; "refused": the agent responded
            with an error, or not at all; "reverted": the agent reported another value afterwards.
        name: the category or option id.
        value: the chosen value.
        config_id: the option's id, if known.
        allowed: the values that the agent offers.
        refusal: the agent's error, if ``kind`` is "refused".
        reported: the reported value, if ``kind`` is "reverted".
    """

    kind: Literal["category", "option", "value", "refused", "reverted"]
    name: str
    value: Any
    config_id: str | None = None
    allowed: list[str] = []  # noqa: RUF012 - a NamedTuple's default
    refusal: Refusal | None = None
    reported: Any = None

    @property
    def is_missing(self) -> bool:
        """Whether the agent does not offer the setting, or the value."""
        return self.kind in ("category", "option", "value")

    def message(self, agent: str) -> str:
        """Return the reason in one line."""
        name = self.name.replace("_", " ")
        if self.kind == "refused":
            return self.refusal.message if self.refusal is not None else "the agent refused"
        if self.kind == "reverted":
            return f"{agent} reports {name} '{self.reported}' after it was set to '{self.value}'"
        hint = f"it has {', '.join(self.allowed)}" if self.allowed else f"it offers no choice of {name}"
        needs = self.needs(agent)
        return f"{agent} has no {name} '{self.value}': {hint}{f'. {needs}' if needs else ''}"

    def needs(self, agent: str) -> str | None:
        """Return what the agent needs to offer the value, if that is known."""
        return _NEEDS.get((agent, str(self.value))) if self.kind == "value" else None


class AgentSettings:
    """One agent session's settings, as far as the agent has reported them.

    Args:
        session_id: the agent's session; None leaves ``sessionId`` to the caller.
        options: the config options that the agent reported, or None.
        modes: the modes that it reported, or None.
        listed_only: set only listed values, because they were chosen for another agent.
    """

    def __init__(
        self,
        session_id: str | None,
        *,
        options: Options | None = None,
        modes: Mapping[str, Any] | None = None,
        listed_only: bool = False,
    ) -> None:
        self.options = options
        self.modes = dict(modes) if modes is not None else config.modes_from_options(options)
        self._session = {} if session_id is None else {"sessionId": session_id}
        self._listed_only = listed_only
        self._asked = False
        self.applied: dict[str, Any] = {}

    @classmethod
    def of_result(
        cls,
        session_id: str,
        result: Mapping[str, Any],
        *,
        known_options: Options | None = None,
        known_modes: Mapping[str, Any] | None = None,
        listed_only: bool = False,
    ) -> AgentSettings:
        """Return the settings that an agent reports when it opens a session.

        Args:
            session_id: the agent's session.
            result: the agent's result.
            known_options: the options that it reported earlier; their values are unknown now.
            known_modes: the modes that it reported earlier; the current one is unknown now.
            listed_only: as in the class.
        """
        reported = config.options_of(result)
        given: object = result.get("modes")
        modes = cast("dict[str, Any]", given) if isinstance(given, dict) else None
        if modes is None:
            modes = config.modes_from_options(reported) or _without_current_mode(known_modes)
        options = reported if reported is not None else _without_values(known_options)
        return cls(session_id, options=options, modes=modes, listed_only=listed_only)

    def current(self, name: str) -> Any:
        """Return the value of a category or an option, None if it is unknown."""
        if name not in CATEGORIES:
            option = config.find_option(self.options, name)
            return None if option is None else option.get("currentValue")
        return config.setting(self.options, self.modes, name)

    @property
    def mode_ids(self) -> list[str]:
        """The ids of the modes that the agent lists."""
        available = elements((self.modes or {}).get("availableModes"))
        return [str(mode["id"]) for mode in map(members, available) if mode.get("id")]

    def mode_for(
        self, agent: str, permission_mode: str | None, modes: AgentModes | None = None
    ) -> str | None:
        """Return the agent's mode that a permission mode stands for, None if it lists none."""
        if not is_permission_mode(permission_mode):
            return None
        return agent_mode_of(agent, permission_mode, self.mode_ids, modes)

    @property
    def config_ids(self) -> dict[str, str]:
        """The ids of the options that set the categories, as far as the agent lists them."""
        options = {name: config.find_category(self.options or [], name) for name in CATEGORIES}
        return {name: str(option["id"]) for name, option in options.items() if option is not None}

    def choose(
        self, name: str, value: Any, *, config_id: str | None = None
    ) -> Generator[Step, None, Failure | None]:
        """Set a category ("model", "mode", "thought_level") or the option of that id.

        Args:
            name: the category or the option's id.
            value: the value.
            config_id: the option by which the category was set before; used if the agent lists none.

        Returns:
            Why it was not set; None if the agent reported success.
        """
        if name == "mode":
            return (yield from self._choose_mode(str(value), config_id))
        return (yield from self._choose_option(name, value, config_id, is_category=name in CATEGORIES))

    def choose_option(self, config_id: str, value: Any) -> Generator[Step, None, Failure | None]:
        """Set the option of that id, whatever its category; returns as ``choose``."""
        return (yield from self._choose_option(config_id, value, config_id, is_category=False))

    def confirm(
        self, wanted: Mapping[str, Any], *, config_ids: Mapping[str, str] | None = None
    ) -> Generator[Step, None, list[Failure]]:
        """Set everything that has another value, and check that the agent keeps it.

        Settings for which the agent reports another value afterwards are set once more. After a request
        without a response nothing else is tried.

        Args:
            wanted: the chosen values, by category or option id.
            config_ids: the options by which the categories were set before.

        Returns:
            The settings that could not be confirmed.
        """
        if not wanted:
            return []
        ids = config_ids or {}
        ordered = [name for name in CATEGORIES if name in wanted]
        ordered += [name for name in wanted if name not in CATEGORIES]
        failures = yield from self._choose_all(ordered, wanted, ids)
        reverted = yield from self._reverted(ordered, wanted, failures)
        if not reverted or any(_is_unanswered(failure) for failure in failures.values()):
            return [*failures.values(), *reverted]
        for failure in reverted:
            self.applied.pop(failure.name, None)
        failures.update(
            (yield from self._choose_all([each.name for each in reverted], wanted, ids, again=True))
        )
        reverted = yield from self._reverted(ordered, wanted, failures)
        for failure in reverted:
            self.applied.pop(failure.name, None)
        return [*failures.values(), *reverted]

    def _choose_all(
        self,
        names: Iterable[str],
        wanted: Mapping[str, Any],
        config_ids: Mapping[str, str],
        *,
        again: bool = False,
    ) -> Generator[Step, None, dict[str, Failure]]:
        failures: dict[str, Failure] = {}
        silent: Failure | None = None
        for name in names:
            value = wanted[name]
            if not again and _is_same(value, self.current(name)):
                continue
            if silent is not None:
                failures[name] = silent._replace(name=name, value=value)
                continue
            failure = yield from self.choose(name, value, config_id=config_ids.get(name))
            if failure is None:
                self.applied[name] = value
                continue
            failures[name] = failure
            silent = failure if _is_unanswered(failure) else None
        return failures

    def _reverted(
        self, names: Iterable[str], wanted: Mapping[str, Any], failures: Mapping[str, Failure]
    ) -> Generator[Step, None, list[Failure]]:
        reading = ReadReported()
        yield reading
        reported = {name: reading.values.get(name) for name in names if name not in failures}
        return [
            Failure("reverted", name, wanted[name], reported=value)
            for name, value in reported.items()
            if value is not None and not _is_same(value, wanted[name])
        ]

    def _choose_mode(self, value: str, config_id: str | None) -> Generator[Step, None, Failure | None]:
        if self.modes is None and self._listed_only:
            yield from self._ask_options()
        if self.modes is None:
            self.modes = _without_current_mode(config.modes_from_options(self.options))
        listed = self.mode_ids
        if value not in listed and (listed or self._listed_only):
            return Failure("value" if listed else "category", "mode", value, "mode", listed)
        call = Call("session/set_mode", {**self._session, "modeId": value})
        yield call
        if call.refusal is None:
            self.modes = config.with_current_mode(self.modes, value)
            self.options = config.with_mode_option(self.options, value)
            return None
        option = config.find_category(self.options or [], "mode") or {}
        if call.refusal.code == METHOD_NOT_FOUND and config.setter_of(option) != call.method:
            return (yield from self._choose_option("mode", value, config_id, is_category=True))
        return Failure("refused", "mode", value, refusal=call.refusal)

    def _choose_option(
        self, name: str, value: Any, config_id: str | None, *, is_category: bool
    ) -> Generator[Step, None, Failure | None]:
        known_id = config_id if is_category else name
        if self.options is None and (known_id is None or self._listed_only):
            yield from self._ask_options()
        option = config.find_category(self.options or [], name) if is_category else None
        option = option or config.find_option(self.options, known_id)
        if option is None and self.options is None and known_id is not None and not self._listed_only:
            option = {"id": known_id}
        if option is None and is_category and name == "model" and not self._listed_only:
            return (yield from self._choose_model(str(value)))
        if option is None:
            return Failure("category" if is_category else "option", name, value)
        option_id = str(option["id"])
        value = config.accepted_value(option, value)
        allowed = config.allowed_values(option)
        is_boolean = option.get("type") == "boolean"
        if (value not in allowed and (allowed or self._listed_only)) and not is_boolean:
            return Failure("value", name, value, option_id, allowed)
        if is_boolean and not isinstance(value, bool):
            return Failure("value", name, value, option_id, ["true", "false"])
        method = config.setter_of(option)
        if method == "session/set_mode":
            return (yield from self._choose_mode(str(value), None))
        if method == "session/set_model":
            call = Call(method, {**self._session, "modelId": value})
        else:
            kind = {"type": "boolean"} if is_boolean else {}
            call = Call(method, {**self._session, "configId": option_id, **kind, "value": value})
        yield call
        if call.refusal is not None:
            is_unknown = call.refusal.code == METHOD_NOT_FOUND and call.method != "session/set_model"
            if is_category and name == "model" and is_unknown:
                return (yield from self._choose_model(str(value)))  # the option is of the catalogue
            return Failure("refused", name, value, option_id, refusal=call.refusal)
        reported = config.valid_options(call.result.get("configOptions"))
        self.options = reported or config.with_value(self.options, option_id, value)
        if is_category and name == "mode":
            self.modes = config.with_current_mode(self.modes, str(value))
        return None

    def _choose_model(self, value: str) -> Generator[Step, None, Failure | None]:
        """Set a model at an agent that lists none."""
        call = Call("session/set_model", {**self._session, "modelId": value})
        yield call
        if call.refusal is None:
            return None
        if call.refusal.code == METHOD_NOT_FOUND:
            return Failure("category", "model", value)
        return Failure("refused", "model", value, refusal=call.refusal)

    def _ask_options(self) -> Generator[Step, None, None]:
        if self.options is None and not self._asked:
            self._asked = True
            asking = AskOptions()
            yield asking
            self.options = _without_values(asking.options)


def reported_settings(envelopes: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the values that an agent reported last, by category and by option id.

    A successful response to a set request counts as a report of the value that was set, unless it carries
    options of its own.

    Args:
        envelopes: the sender ("client" or "agent") and payload of each, in order.
    """
    values: dict[str, Any] = {}
    requests: dict[object, tuple[str, Any]] = {}
    categories: dict[str, str] = {}

    def add_options(options: Options) -> None:
        for option in reversed(options):  # the first option of a category counts
            values[str(option["id"])] = option.get("currentValue")
            category = option.get("category")
            if isinstance(category, str):
                values[category] = option.get("currentValue")
                categories[str(option["id"])] = category

    for sender, payload in envelopes:
        method, params = payload.get("method"), members(payload.get("params"))
        if sender == "client":
            if method == "session/set_mode":
                requests[payload.get("id")] = ("mode", params.get("modeId"))
            elif method == "session/set_model":
                requests[payload.get("id")] = ("model", params.get("modelId"))
            elif method == "session/set_config_option":
                requests[payload.get("id")] = (str(params.get("configId")), params.get("value"))
        elif method == "session/update":
            update = members(params.get("update"))
            if update.get("sessionUpdate") == "current_mode_update":
                values["mode"] = update.get("currentModeId")
            elif update.get("sessionUpdate") == "config_option_update":
                add_options(config.valid_options(update.get("configOptions")) or [])
        elif method is None and payload.get("error") is None and payload.get("id") in requests:
            name, value = requests.pop(payload.get("id"))
            options = config.valid_options(members(payload.get("result")).get("configOptions"))
            if options is not None:
                add_options(options)
            else:
                values[categories.get(name, name)] = values[name] = value
    return values


def _is_same(value: object, other: object) -> bool:
    # Booleans of an option are also written as text (config.accepted_value).
    return _as_text(value) == _as_text(other)


def _as_text(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value


def _is_unanswered(failure: Failure) -> bool:
    return failure.refusal is not None and failure.refusal.code is None


def _without_values(options: Options | None) -> Options | None:
    # The allowed values are the same; the current value is unknown.
    return None if options is None else [{**option, "currentValue": None} for option in options]


def _without_current_mode(modes: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if modes is None else {**modes, "currentModeId": ""}
