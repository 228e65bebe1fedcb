"""The chosen settings of a session that the server drives: stored, set at its agent, and confirmed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import anyio
import msgspec

from sandbox_agent.agents.catalogue import agent_modes
from sandbox_agent.engine.settings import (
    SETTLE_SECONDS,
    AgentSettings,
    Call,
    ChosenSettings,
    Failure,
    ReadReported,
    Refusal,
    Step,
    reported_settings,
)
from sandbox_agent.errors import (
    AcpRpcError,
    InvalidRequestError,
    ModeNotSupportedError,
    ProblemError,
    RequestTimeoutError,
    SandboxAgentError,
    StreamError,
)
from sandbox_agent.persist.store import EnvelopeRow, SessionRow
from sandbox_agent.server.permissions.policies import permission_mode_of
from sandbox_agent.server.recorder import RecordedSession
from sandbox_agent.server.sessions.agent_client import AgentClient, SessionContext, refused
from sandbox_agent.wire.api import Body
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, loads, members
from sandbox_agent.wire.sessions import CreateSessionRequest

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# ACP's categories of config options, and what the session API calls them.
MODE, MODEL, VARIANT = "mode", "model", "thought_level"
_NAMES = {MODE: "mode", MODEL: "model", VARIANT: "variant"}
# The members of CreateSessionRequest that set them.
OPTION_MEMBERS = {MODE: "agentMode", MODEL: "model", VARIANT: "variant"}
_INVALID_PARAMS = -32602
# An agent reports its settings within this many envelopes, or not at all.
_MAX_ENVELOPES = 1_000
_VERSION = 1


class StoredSettings(CreateSessionRequest, kw_only=True):
    """The ``settings`` column of a session: the request that created it, and what was chosen since.

    Attributes:
        version: of this layout; rows without one hold the request alone.
        idempotency_key: the Idempotency-Key of that request, if it had one.
        chosen: None in rows without a version: the request says what was chosen.
    """

    version: int = 0
    idempotency_key: str | None = None
    chosen: ChosenSettings | None = None


def stored_settings(
    request: CreateSessionRequest,
    idempotency_key: str | None,
    *,
    mode: str | None = None,
    config_ids: dict[str, str] | None = None,
) -> bytes:
    """Return the ``settings`` column of a new session.

    ``mode`` is the agent's mode for the permission mode, and ``config_ids`` are the options by which the
    settings were set, once these are known.
    """
    chosen = ChosenSettings(
        mode=request.agent_mode or mode,
        model=request.model,
        thought_level=request.variant,
        options=dict(request.config_options or {}),
        config_ids=config_ids or {},
        permission_mode=permission_mode_of(request),
    )
    fields = {name: getattr(request, name) for name in CreateSessionRequest.__struct_fields__}
    settings = StoredSettings(**fields, version=_VERSION, idempotency_key=idempotency_key, chosen=chosen)
    return msgspec.json.encode(settings)


class _CreationKey(Body):
    idempotency_key: str | None = None


def creation_key(row: SessionRow) -> str | None:
    """Return the Idempotency-Key that a session was created with; None if there was none."""
    try:
        return msgspec.json.decode(row.settings or b"{}", type=_CreationKey).idempotency_key
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # by a newer version
        return None


def chosen_settings(row: SessionRow) -> ChosenSettings:
    """Return what was chosen for a session; in an older row that is what it was created with."""
    try:
        stored = msgspec.convert(loads(row.settings or b"{}"), StoredSettings)
    except (InvalidEnvelopeError, msgspec.ValidationError):
        stored = StoredSettings(agent=row.agent)
    if stored.chosen is not None:
        return stored.chosen
    return ChosenSettings(
        mode=stored.agent_mode,
        model=stored.model,
        thought_level=stored.variant,
        options=dict(stored.config_options or {}),
    )


async def perform(step: Step, client: AgentClient, session: RecordedSession, context: SessionContext) -> None:
    """Perform a step of a settings generator and store its outcome in it.

    Raises:
        ProblemError: the agent has ended.
        PersistError: what the agent reported can't be read.
    """
    if isinstance(step, Call):
        try:
            step.result = await client.call(step.method, step.params)
        except AcpRpcError as error:
            logger.info("agent %s: %s failed: %s", client.agent, step.method, error)
            step.refusal = Refusal(str(error), error.code, error)
        except RequestTimeoutError as error:
            logger.warning("agent %s: %s: %s", client.agent, step.method, error)
            step.refusal = Refusal(str(error), error=error)
    elif isinstance(step, ReadReported):
        await anyio.sleep(SETTLE_SECONDS)
        await context.recorder.flush()
        rows = await context.store.newest_envelopes(session.row.key, limit=_MAX_ENVELOPES)
        step.values = reported_settings(_payloads(rows, client.connection_id))
    # AskOptions: of an agent that reports no options, none are known here.


def _payloads(rows: Sequence[EnvelopeRow], connection_id: str) -> Iterable[tuple[str, dict[str, Any]]]:
    for row in rows:
        if row.connection_id == connection_id:
            try:
                yield row.sender, members(loads(row.data))
            except InvalidEnvelopeError:
                continue


def _problem(agent: str, failure: Failure) -> SandboxAgentError:
    """Return the error of a session that can't be created because of a setting."""
    name = _NAMES.get(failure.name, failure.name)
    refusal = failure.refusal
    error = None if refusal is None else refusal.error
    if failure.kind == "reverted":
        return StreamError(f"stream error: {failure.message(agent)}", agent=agent)
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, AcpRpcError) and error.code != _INVALID_PARAMS:
        problem = refused(agent, f"to set the {name} '{failure.value}'", error)
        problem.__cause__ = error
        return problem
    hint = str(error) if error is not None else failure.message(agent).partition(": ")[2]
    text = f"{agent} has no {name} '{failure.value}': {hint.replace('thought level', 'variant')}"
    allowed = failure.allowed or None
    if failure.name == MODE:
        return ModeNotSupportedError(f"mode not supported: {text}", allowed=allowed)
    return InvalidRequestError(f"invalid request: {text}", allowed=allowed)


def _check_options(settings: AgentSettings, chosen: Mapping[str, Any]) -> None:
    """Refuse options that have members of their own: a mode must agree with the permission mode."""
    for option in settings.options or ():
        member = OPTION_MEMBERS.get(str(option.get("category")))
        if member is not None and option["id"] in chosen:
            raise InvalidRequestError(
                f"invalid request: configOptions has '{option['id']}', which is set by {member}: use that"
            )


async def set_chosen(
    client: AgentClient,
    session: RecordedSession,
    context: SessionContext,
    result: dict[str, Any],
    chosen: ChosenSettings,
) -> AgentSettings:
    """Set and confirm the chosen settings in a session that was just created by a result of session/new.

    Raises:
        ModeNotSupportedError: the agent has no such mode.
        InvalidRequestError: it has no such model, variant or option, or the option is one of these settings.
        ProblemError: it refuses, reports another value afterwards, or has ended.
    """
    settings = AgentSettings.of_result(client.native_id, result)
    _check_options(settings, chosen.options)
    wanted = chosen.wanted()
    mode = settings.mode_for(client.agent, chosen.permission_mode, agent_modes(client.agent))
    if mode is not None and chosen.mode is None:
        wanted["mode"] = mode
    steps = settings.confirm(wanted)
    try:
        while True:
            step = next(steps)
            await perform(step, client, session, context)
    except StopIteration as end:
        failures: list[Failure] = end.value
    if failures:
        raise _problem(client.agent, failures[0])
    return settings
