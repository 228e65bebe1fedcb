"""A session's model, mode, thought level and other options: chosen, set, confirmed, kept in its record.

The record holds two sides: what the user chose (in ``session_init``), which only the user's calls change, and
what the agent reports (``config_options``, ``modes``), which its results and updates change.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from typing import Any, NoReturn, TypeVar, cast

import anyio
import msgspec

from sandbox_agent.client.journal import Journal
from sandbox_agent.engine import config_options as config
from sandbox_agent.engine.permissions import AgentModes, PermissionMode, check_agreement, is_permission_mode
from sandbox_agent.engine.restore.ladder import Outcome
from sandbox_agent.engine.settings import (
    CATEGORIES,
    SETTLE_SECONDS,
    AgentSettings,
    AskOptions,
    Call,
    ChosenSettings,
    Failure,
    ReadReported,
    Refusal,
    Step,
)
from sandbox_agent.errors import (
    AcpRpcError,
    AgentProcessExitedError,
    ConnectionLostError,
    SandboxAgentError,
    SettingNotConfirmedError,
    UnsupportedSessionCategoryError,
    UnsupportedSessionConfigOptionError,
    UnsupportedSessionValueError,
)
from sandbox_agent.wire.jsonrpc import elements, loads, members
from sandbox_agent.wire.records import SessionRecord

# The chosen settings, and a digest of the arguments of create_session, which may have secrets, are in
# session_init._meta["sandbox-agent"]. The rest of session_init is the params of
# session/new. The TypeScript SDK sends all of it to the agent; this SDK leaves its own member out.
_META = "_meta"
_MEMBER = "sandbox-agent"
_VERSION = 1


def has_chosen(record: SessionRecord) -> bool:
    """Return whether the record has chosen settings; records of older versions and other SDKs do not."""
    return _read(record) is not None


def chosen_settings(record: SessionRecord) -> ChosenSettings:
    """Return the chosen settings; if the record has none, those that the agent reported last."""
    chosen = _read(record)
    if chosen is not None:
        return chosen
    model, mode, level = (
        config.setting(record.config_options, record.modes, category) for category in CATEGORIES
    )
    return ChosenSettings(model=model, mode=mode, thought_level=level)


def _read(record: SessionRecord) -> ChosenSettings | None:
    stored = _member(record)
    if "chosen" not in stored:
        return None
    try:
        return msgspec.convert(stored["chosen"], ChosenSettings)
    except msgspec.ValidationError:
        return None


def created_with(record: SessionRecord) -> object:
    """Return the digest of the arguments that created the session; None in records without one."""
    return _member(record).get("arguments")


def _member(record: SessionRecord) -> dict[str, Any]:
    return members(members((record.session_init or {}).get(_META)).get(_MEMBER))


def init_with_arguments(init: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """Return ``session_init`` with the digest of the arguments that create the session."""
    return _with_member(init, arguments=digest)


def variable_names(record: SessionRecord) -> list[str]:
    """Return the names of the session's variables. Their values are not stored."""
    names: object = _member(record).get("env")
    return [name for name in elements(names) if isinstance(name, str)]


def init_with_variables(init: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return ``session_init`` with the names of the session's variables."""
    return _with_member(init, env=sorted(names))


def init_with_chosen(init: Mapping[str, Any], chosen: ChosenSettings) -> dict[str, Any]:
    """Return ``session_init`` with the chosen settings in it."""
    return _with_member(init, chosen=msgspec.to_builtins(chosen))


def _with_member(init: Mapping[str, Any], **fields: object) -> dict[str, Any]:
    meta = members(init.get(_META))
    stored = {**members(meta.get(_MEMBER)), "version": _VERSION, **fields}
    return {**init, _META: {**meta, _MEMBER: stored}}


def init_for_agent(init: Mapping[str, Any]) -> dict[str, Any]:
    """Return the params of session/new: ``session_init`` without this SDK's own member."""
    params = dict(init)
    meta = {name: value for name, value in members(init.get(_META)).items() if name != _MEMBER}
    if meta:
        params[_META] = meta
    else:
        params.pop(_META, None)
    return params


T = TypeVar("T")

SET_METHODS = frozenset({"session/set_mode", "session/set_model", "session/set_config_option"})

# Sends a method of the session and returns its result.
Send = Callable[[str, dict[str, Any]], Awaitable[Any]]
# Fetches an agent's options from the server.
AgentOptions = Callable[[str], Awaitable[list[dict[str, Any]]]]


class Settings:
    """Reads and changes the settings in the journal's record; the journal's writer saves them."""

    def __init__(
        self, journal: Journal, agent_options: AgentOptions, agent_modes: Callable[[str], AgentModes | None]
    ) -> None:
        self._journal = journal
        self._agent_modes = agent_modes
        self._agent_options = agent_options
        self._unconfirmed = False
        self._failed: dict[str, str] = {}

    @property
    def _record(self) -> SessionRecord:
        return self._journal.record

    # what the user chose

    @property
    def chosen(self) -> ChosenSettings:
        """What the user last set."""
        return chosen_settings(self._record)

    def choose(self, **changes: Any) -> None:
        """Change what is chosen (fields of ChosenSettings)."""
        chosen = msgspec.structs.replace(self.chosen, **changes)
        init = init_with_chosen(self._record.session_init or {}, chosen)
        self._journal.change(session_init=init)

    def adopt(self) -> None:
        """Store the settings that the agent reported last as chosen, if the record has no chosen ones."""
        if not has_chosen(self._record):
            self.choose()

    def user_set(self, method: str, params: Mapping[str, Any], result: object) -> None:
        """Record the successful result of a set request that the user made."""
        self.apply_result(method, params, result)
        if method == "session/set_mode":
            self._user_chose("mode", params.get("modeId"))
            return
        if method == "session/set_model":
            self._user_chose("model", params.get("modelId"))
            return
        config_id, value = str(params.get("configId")), params.get("value")
        options = self._record.config_options or []
        option = config.find_option(options, config_id)
        category = str(option.get("category")) if option is not None else ""
        if category in CATEGORIES and config.find_category(options, category) is option:
            self.choose(config_ids={**self.chosen.config_ids, category: config_id})
            self._user_chose(category, value)
        else:
            self._user_chose(config_id, value)

    def _user_chose(self, name: str, value: Any) -> None:
        chosen = self.chosen
        self._failed.pop(name, None)
        missing = {
            agent: [each for each in names if agent != self._record.agent or each != name]
            for agent, names in chosen.missing.items()
        }
        if name in CATEGORIES:
            self.choose(**{name: value}, missing=missing)
        else:
            self.choose(options={**chosen.options, name: value}, missing=missing)

    # what the agent reports

    async def options(self) -> list[dict[str, Any]]:
        """Return the options; they are fetched from the server if session/new returned none."""
        if self._record.config_options is None:
            options = await self._agent_options(self._record.agent)
            if self._record.config_options is None:
                current = (self._record.modes or {}).get("currentModeId")
                options = (config.with_mode_option(options, current) if current else options) or []
                modes = self._record.modes or config.modes_from_options(options)
                self._journal.change(config_options=options, modes=modes)
        return [dict(option) for option in self._record.config_options or []]

    async def modes(self) -> dict[str, Any] | None:
        """Return the modes; they are derived from the mode option if session/new returned none."""
        modes = self._record.modes
        if not (modes and modes.get("availableModes")):
            derived = config.modes_from_options(await self.options())
            if derived is not None:
                self._journal.change(modes=derived)
        return dict(self._record.modes) if self._record.modes else None

    def apply_result(self, method: str, params: Mapping[str, Any], result: object) -> None:
        """Record what the result of a set request reports, or else the value that was set."""
        if method == "session/set_mode" and isinstance(mode := params.get("modeId"), str):
            self._apply_mode(mode)
        elif method == "session/set_model":
            option = config.find_category(self._record.config_options or [], "model")
            if option is not None:
                value, option_id = params.get("modelId"), str(option["id"])
                self._apply_options(config.with_value(self._record.config_options, option_id, value))
        elif method == "session/set_config_option":
            fields = members(result)
            options = config.valid_options(fields.get("configOptions"))
            if options is None:
                config_id, value = str(params.get("configId")), params.get("value")
                options = config.with_value(self._record.config_options, config_id, value)
            self._apply_options(options)

    def apply_update(self, line: bytes) -> None:
        """Record a config_option_update or a current_mode_update."""
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

    def _reported(self, name: str) -> Any:
        if name in CATEGORIES:
            return config.setting(self._record.config_options, self._record.modes, name)
        option = config.find_option(self._record.config_options, name)
        return None if option is None else option.get("currentValue")

    # setting

    async def set_category(self, category: str, value: str, send: Send) -> None:
        """Set the category's option ("model", "thought_level", "mode").

        Args:
            category: the option's category.
            value: the value to set.
            send: sends a request on behalf of the user.

        Raises:
            UnsupportedSessionCategoryError: the agent has no such option.
            UnsupportedSessionValueError: the agent does not offer that value.
            AcpRpcError: the agent refused.
            ValueError: the value is empty, or the mode contradicts the session's permission mode.
        """
        wanted = required(value, category)
        if category != "mode":
            await self.options()
        else:
            mode = self.chosen.permission_mode
            self._check_agreement(self._record.agent, wanted, mode)
        await self._set(self._agent_settings().choose(category, wanted), send)

    async def set_option(self, config_id: str, value: str | bool, send: Send) -> None:
        """Set the option of that id; raises as ``set_category``."""
        name = required(config_id, "config_id")
        wanted = value if isinstance(value, bool) else required(value, "value")
        await self.options()
        await self._set(self._agent_settings().choose_option(name, wanted), send)

    async def set_permission_mode(self, mode: PermissionMode | None, send: Send) -> None:
        """Set the agent's mode that a permission mode stands for, where it has one; raises as above."""
        self._check_agreement(self._record.agent, None, mode)
        settings = self._agent_settings()
        agent_mode = self._mode_for(self._record.agent, mode)
        if agent_mode is not None:
            await self._set(settings.choose("mode", agent_mode), send)
        self.choose(permission_mode=mode)

    def check_agent(self, agent: str) -> None:
        """Refuse to hand the session over to an agent that cannot keep to its permission mode.

        Raises:
            ValueError: the agent never asks for permission.
        """
        mode = self.chosen.permission_mode
        self._check_agreement(agent, None, mode)

    def _check_agreement(self, agent: str, agent_mode: str | None, mode: str | None) -> None:
        wanted = mode if is_permission_mode(mode) else None
        check_agreement(agent, agent_mode, wanted, self._agent_modes(agent))

    def _mode_for(self, agent: str, mode: str | None) -> str | None:
        return self._agent_settings().mode_for(agent, mode, self._agent_modes(agent))

    async def create(self, send: Send) -> None:
        """Set and confirm what a new session was created with; raises as ``set_category``.

        Raises:
            SettingNotConfirmedError: the agent reports another value afterwards.
        """
        wanted = self.chosen.wanted()
        mode = self._mode_for(self._record.agent, self.chosen.permission_mode)
        if mode is not None and "mode" not in wanted:
            wanted["mode"] = mode
            self.choose(mode=mode)
        if wanted and set(wanted) != {"mode"}:
            await self.options()
        failures = await self._drive(self._agent_settings().confirm(wanted), send)
        if failures:
            self._raise(failures[0])
        self._unconfirmed = False

    def _raise(self, failure: Failure) -> NoReturn:
        session_id, options = self._record.id, self._record.config_options or []
        if failure.kind == "refused" and failure.refusal is not None and failure.refusal.error is not None:
            raise failure.refusal.error
        if failure.kind == "category":
            categories = sorted({str(each["category"]) for each in options if each.get("category")})
            raise UnsupportedSessionCategoryError(session_id, failure.name, categories)
        if failure.kind == "option":
            ids = [str(option.get("id")) for option in options]
            raise UnsupportedSessionConfigOptionError(session_id, failure.name, ids)
        if failure.kind == "value":
            option = config.find_option(options, failure.config_id) or {}
            label = str(option.get("category") or "uncategorized")
            raise UnsupportedSessionValueError(
                session_id,
                failure.name if failure.name in CATEGORIES else label,
                str(failure.config_id),
                failure.value,
                failure.allowed,
                failure.needs(self._record.agent),
            )
        raise SettingNotConfirmedError(session_id, {failure.name: failure.message(self._record.agent)})

    # confirming

    def expect_confirmation(self) -> None:
        """Require ``confirm`` before the next prompt."""
        self._unconfirmed = True

    def restored(self, outcome: Outcome, agent: str, *, handed_over: bool) -> None:
        """Record what a restore could not set.

        Args:
            outcome: the outcome of the restore.
            agent: the session's agent now.
            handed_over: whether the session had another agent before: settings that the new agent does not
                offer are then not required.
        """
        chosen = self.chosen
        if handed_over:
            missing = [name for name in outcome.missing if name in chosen.wanted()]
            self.choose(missing={**chosen.missing, agent: missing})
            mode = self._mode_for(agent, chosen.permission_mode)
            if mode is not None:
                self.choose(mode=mode)  # that of the new agent: the permission mode is what was chosen
        required = self.chosen.wanted(agent)
        self._failed = {name: why for name, why in (outcome.failed or {}).items() if name in required}
        self.expect_confirmation()

    async def confirm(self, send: Send) -> None:
        """Set the chosen settings that the agent does not report, once after each restore.

        Args:
            send: sends a request to the agent.

        Raises:
            SettingNotConfirmedError: the agent did not accept or confirm a setting.
        """
        if not self._unconfirmed:
            return
        chosen = self.chosen
        wanted = {
            name: value
            for name, value in chosen.wanted(self._record.agent).items()
            if name in self._failed or self._reported(name) not in (None, value)
        }
        if wanted:
            settings = self._agent_settings()
            failures = await self._drive(settings.confirm(wanted, config_ids=chosen.config_ids), send)
            self._failed = {failure.name: failure.message(self._record.agent) for failure in failures}
            if failures:
                raise SettingNotConfirmedError(self._record.id, self._failed)

    def prompted(self) -> None:
        """Record that a prompt is sent: from now on the agent may change its mode itself."""
        self._unconfirmed = False

    def _agent_settings(self) -> AgentSettings:
        return AgentSettings(None, options=self._record.config_options, modes=self._record.modes)

    async def _set(self, steps: Generator[Step, None, Failure | None], send: Send) -> None:
        failure = await self._drive(steps, send)
        if failure is not None:
            self._raise(failure)

    async def _drive(self, steps: Generator[Step, None, T], send: Send) -> T:
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return cast("T", end.value)
            if not isinstance(step, Call):
                await self.perform(step)
                continue
            try:
                result = await send(step.method, step.params)
            except SandboxAgentError as error:
                step.refusal = refusal_of(error)
            else:
                step.result = members(result)

    async def perform(self, step: AskOptions | ReadReported) -> None:
        """Perform a step that needs no request to the agent."""
        if isinstance(step, AskOptions):
            step.options = await self.options()
        else:
            await anyio.sleep(SETTLE_SECONDS)
            names = self.chosen.wanted()
            step.values = {name: self._reported(name) for name in names}


def refusal_of(error: SandboxAgentError) -> Refusal:
    """Return an error of a request as a step's refusal.

    Raises:
        SandboxAgentError: the same error: the connection or the agent is gone.
    """
    if isinstance(error, ConnectionLostError | AgentProcessExitedError):
        raise error
    return Refusal(str(error), error.code if isinstance(error, AcpRpcError) else None, error)


def required(value: str, name: str) -> str:
    """Return the value without surrounding whitespace.

    Raises:
        ValueError: the value is empty.
    """
    stripped = value.strip()
    if not stripped:
        raise ValueError(f"{name} is empty")
    return stripped
