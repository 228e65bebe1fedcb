"""The error tree, and the table: error <-> URN <-> HTTP status <-> CLI exit code <-> retryable.

::

    SandboxAgentError                      base class of all errors of this package
    +-- ProblemError                       an RFC 9457 problem: one subclass per URN of the HTTP API
    |   +-- InvalidRequestError            invalid_request          400
    |   +-- UnsupportedAgentError          unsupported_agent        400
    |   +-- ModeNotSupportedError          mode_not_supported       400
    |   +-- TokenInvalidError              token_invalid            401
    |   +-- PermissionDeniedError          permission_denied        403
    |   +-- NotFoundError                  not_found                404
    |   +-- ServerSessionNotFoundError     session_not_found        404
    |   +-- AgentNotInstalledError         agent_not_installed      404
    |   +-- NotAcceptableError             not_acceptable           406
    |   +-- ConflictError                  conflict                 409
    |   +-- SessionAlreadyExistsError      session_already_exists   409
    |   +-- GoneError                      gone                     410
    |   +-- PayloadTooLargeError           payload_too_large        413
    |   +-- UnsupportedMediaTypeError      unsupported_media_type   415
    |   +-- InstallFailedError             install_failed           500
    |   +-- AgentProcessExitedError        agent_process_exited     500
    |   +-- StreamError                    stream_error             502
    |   |   +-- StoreUnavailableError      store_unavailable        503
    |   +-- RequestTimeoutError            timeout                  504
    +-- AcpRpcError                        the agent responded with a JSON-RPC error
    +-- ConnectionLostError                the server or its connection was lost during a request
    +-- HealthTimeoutError                 the server did not become healthy in time
    +-- SandboxDestroyedError              the sandbox no longer exists
    +-- SessionBusyError                   another process drives the session
    +-- SessionNotFoundError               the persist driver has no session with this id
    +-- SettingNotConfirmedError           the agent did not confirm a setting that was chosen
    +-- PersistError                       the store refused or failed
        +-- SessionFencedError             another process has taken over the session
    +-- UnsupportedSessionCategoryError    no config option has this category
    +-- UnsupportedSessionConfigOptionError  no config option has this id
    +-- UnsupportedSessionValueError       the option does not accept this value
    +-- UnsupportedPermissionReplyError    the request does not offer this reply

Codes and data are API, wording is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

__all__ = [
    "TABLE",
    "URN_PREFIX",
    "AcpRpcError",
    "AgentNotInstalledError",
    "AgentProcessExitedError",
    "ConflictError",
    "ConnectionLostError",
    "ErrorRow",
    "GoneError",
    "HealthTimeoutError",
    "InstallFailedError",
    "InvalidRequestError",
    "ModeNotSupportedError",
    "NotAcceptableError",
    "NotFoundError",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "PersistError",
    "ProblemError",
    "RequestTimeoutError",
    "SandboxAgentError",
    "SandboxDestroyedError",
    "ServerSessionNotFoundError",
    "SessionAlreadyExistsError",
    "SessionBusyError",
    "SessionFencedError",
    "SessionNotFoundError",
    "SettingNotConfirmedError",
    "StoreUnavailableError",
    "StreamError",
    "TokenInvalidError",
    "UnsupportedAgentError",
    "UnsupportedMediaTypeError",
    "UnsupportedPermissionReplyError",
    "UnsupportedSessionCategoryError",
    "UnsupportedSessionConfigOptionError",
    "UnsupportedSessionValueError",
    "error_from_problem",
]

URN_PREFIX = "urn:sandbox-agent:error:"


class SandboxAgentError(Exception):
    """Base class of all errors of this package.

    Attributes:
        status: The HTTP status of the response, or None.
        problem: The RFC 9457 problem document of the response, or None.
    """

    status: int | None = None
    problem: Mapping[str, Any] | None = None

    def __init__(
        self, message: str, *, status: int | None = None, problem: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status
        self.problem = problem

    @property
    def request_id(self) -> str | None:
        """The id of the request that failed, by which the server's log has it; None if it has none."""
        request_id = (self.problem or {}).get("requestId")
        return request_id if isinstance(request_id, str) else None

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.request_id is None else f"{message} (request {self.request_id})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the message and the fields, whatever the arguments of ``__init__`` are."""
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(
    kind: type[SandboxAgentError], args: tuple[Any, ...], fields: dict[str, Any]
) -> SandboxAgentError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class ErrorRow(NamedTuple):
    """One row of the table.

    Attributes:
        error: The error class.
        name: The name in its URN, or None for errors that are never sent over HTTP.
        status: The HTTP status, or None.
        exit_code: The exit code of the command, from sysexits.h where one fits.
        retryable: Whether the same call may succeed later.
    """

    error: type[SandboxAgentError]
    name: str | None
    status: int | None
    exit_code: int
    retryable: bool


_problem_rows: list[ErrorRow] = []


class ProblemError(SandboxAgentError):
    """An error of the HTTP API. The server's routes raise it, and the SDK raises it from the response.

    Args:
        detail: One line that says what happened and what to do.
        **extensions: Members to add to the problem document (``agent="codex"``). None values are omitted.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    status: int | None

    def __init_subclass__(
        cls, *, name: str, status: int, title: str | None = None, exit_code: int = 1, retryable: bool = False
    ) -> None:
        """Set the name, title and HTTP status of the problem, and add its row to the table."""
        super().__init_subclass__()
        cls.name, cls.title, cls.status = name, title or name.replace("_", " ").title(), status
        _problem_rows.append(ErrorRow(cls, name, status, exit_code, retryable))

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        problem: Mapping[str, Any] | None = None,
        **extensions: Any,
    ) -> None:
        super().__init__(detail, status=status, problem=problem)
        self.detail: str = detail
        self.extensions: dict[str, Any] = {
            key: value for key, value in extensions.items() if value is not None
        }

    def to_problem(self) -> dict[str, Any]:
        """Return the problem document: type, title, status, detail, then the extensions."""
        return {
            "type": URN_PREFIX + self.name,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.extensions,
        }


class InvalidRequestError(ProblemError, name="invalid_request", status=400, exit_code=64):
    """The request is malformed or invalid."""


class UnsupportedAgentError(ProblemError, name="unsupported_agent", status=400, exit_code=64):
    """No agent has this id."""


class ModeNotSupportedError(ProblemError, name="mode_not_supported", status=400, exit_code=64):
    """The agent does not have this mode."""


class TokenInvalidError(ProblemError, name="token_invalid", status=401, exit_code=77):
    """The bearer token is missing or wrong."""


class PermissionDeniedError(ProblemError, name="permission_denied", status=403, exit_code=77):
    """The caller is not allowed to do this."""


class NotFoundError(ProblemError, name="not_found", status=404, exit_code=66):
    """The requested resource does not exist."""


class ServerSessionNotFoundError(ProblemError, name="session_not_found", status=404, exit_code=66):
    """The server has no connection or session with this id."""


class AgentNotInstalledError(ProblemError, name="agent_not_installed", status=404, exit_code=69):
    """The agent is known but not installed."""


class NotAcceptableError(ProblemError, name="not_acceptable", status=406, exit_code=64):
    """The Accept header allows no content type that the route can send."""


class ConflictError(ProblemError, name="conflict", status=409, exit_code=73):
    """The request conflicts with the current state."""


class SessionAlreadyExistsError(ProblemError, name="session_already_exists", status=409, exit_code=73):
    """A session with this id already exists."""


class GoneError(ProblemError, name="gone", status=410, exit_code=66):
    """The resource existed and was removed."""


class PayloadTooLargeError(ProblemError, name="payload_too_large", status=413, exit_code=64):
    """The body is over the server's limit."""


class UnsupportedMediaTypeError(ProblemError, name="unsupported_media_type", status=415, exit_code=64):
    """The route does not accept this content type."""


class InstallFailedError(ProblemError, name="install_failed", status=500, exit_code=69, retryable=True):
    """The agent could not be installed."""


class AgentProcessExitedError(
    ProblemError, name="agent_process_exited", status=500, exit_code=70, retryable=True
):
    """The agent's process exited. Extensions: agent, exitCode, stderr (its tail)."""


class StreamError(ProblemError, name="stream_error", status=502, exit_code=75, retryable=True):
    """The agent or a stream could not be reached."""


class StoreUnavailableError(StreamError, name="store_unavailable", status=503, exit_code=75, retryable=True):
    """The server's store fails or does not answer; the response has ``Retry-After``."""


class RequestTimeoutError(ProblemError, name="timeout", status=504, exit_code=75, retryable=True):
    """The agent did not respond in time."""


# How credentials look in the texts of agents and models. What is around them stays readable.
_SECRET = re.compile(
    r"\b(?:sk|pk|rk|ghp|gho|ghs|github_pat|glpat|xox[abprs]|AIza|AKIA)[-_A-Za-z0-9]{12,}"
    r"|(?<=[Bb]earer )[-._~+/=A-Za-z0-9]{8,}"
)
# Messages that say no more than the code of the error does.
_GENERIC = frozenset({"", "internal error", "invalid params", "invalid request", "authentication required"})
_MAX_REASON = 1_000


def agent_reason(message: str, data: Any) -> str:
    """Return what an agent says about an error, in one text for people.

    Agents put the reason into ``data``, as a text or in a member such as ``details``. It is shortened, and
    what looks like a credential is redacted.

    Args:
        message: The message of the JSON-RPC error.
        data: Its data, or None.
    """
    reason = _text_in(data)
    if not reason or reason in message:
        text = message
    else:
        text = reason if message.strip(" .").lower() in _GENERIC else f"{message}: {reason}"
    text = _SECRET.sub("[redacted]", text)
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}…"


def _text_in(data: Any, depth: int = 3) -> str:
    if isinstance(data, str):
        return data.strip()
    if isinstance(data, dict) and depth:
        members = cast("dict[str, Any]", data)
        texts = (_text_in(members.get(name), depth - 1) for name in ("details", "message", "reason", "error"))
        return next((text for text in texts if text), "")
    return ""


class AcpRpcError(SandboxAgentError):
    """The agent responded with a JSON-RPC error.

    ``str(error)`` is a label for the code and the agent's reason, which is in the message or in the data.

    Attributes:
        code: The JSON-RPC error code.
        data: The unchanged data of the error, or None.
        rpc_message: The unchanged message.
    """

    AUTH_REQUIRED: ClassVar[int] = -32000
    LABELS: ClassVar[dict[int, str]] = {
        -32700: "Parse error",
        -32600: "Invalid request",
        -32601: "Method not supported by agent",
        -32602: "Invalid parameters",
        -32603: "Internal agent error",
        -32000: "Authentication required",
        -32002: "Resource not found",
    }

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        label, reason = self.LABELS.get(code), agent_reason(message, data)
        is_said = label is None or label.lower() == reason.strip(" .").lower()
        super().__init__(reason if is_said else f"{label}: {reason}")
        self.code = code
        self.data = data
        self.rpc_message = message

    def add_hint(self, hint: str) -> None:
        """Add what to do to the text of the error."""
        Exception.__init__(self, f"{self}: {hint}")


class ConnectionLostError(SandboxAgentError):
    """The server or its connection was lost during a request. The next call restores the session."""


class HealthTimeoutError(SandboxAgentError):
    """The server did not become healthy within ``health_timeout``."""


class SandboxDestroyedError(SandboxAgentError):
    """The sandbox no longer exists and can't be reconnected."""

    def __init__(self, sandbox_id: str, provider: str) -> None:
        super().__init__(f"Sandbox '{provider}/{sandbox_id}' no longer exists: start a new one.")
        self.sandbox_id = sandbox_id
        self.provider = provider


class SessionNotFoundError(SandboxAgentError):
    """The persist driver has no session with this id."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session '{session_id}' not found: create it, or check which store is in use")
        self.session_id = session_id


class SessionBusyError(SandboxAgentError):
    """Another process drives the session. Nothing was changed.

    Attributes:
        session_id: The session.
        holder: The other process, for people.
    """

    def __init__(self, session_id: str, holder: str) -> None:
        super().__init__(
            f"session '{session_id}' is in use by {holder}: continue there, read it with read_only=True, or "
            "take it over with take_over=True"
        )
        self.session_id = session_id
        self.holder = holder


class SettingNotConfirmedError(SandboxAgentError):
    """The agent did not confirm a chosen setting, so no prompt was sent.

    Attributes:
        session_id: The session.
        failed: The reason of each failure, by category ("model", "mode", "thought_level") or option id.
    """

    def __init__(self, session_id: str, failed: Mapping[str, str]) -> None:
        reasons = "; ".join(f"{name.replace('_', ' ')}: {reason}" for name, reason in failed.items())
        super().__init__(
            f"session '{session_id}': the chosen settings could not be confirmed ({reasons}): no prompt is "
            "sent; send it again to retry, or choose other settings"
        )
        self.session_id = session_id
        self.failed: dict[str, str] = dict(failed)


class PersistError(SandboxAgentError):
    """The store failed or refused. Nothing that was acknowledged is lost.

    Attributes:
        session_id: The session whose events could not be stored, or None if it is not known.
    """

    def __init__(self, message: str, *, session_id: str | None = None) -> None:
        super().__init__(message)
        self.session_id = session_id


class SessionFencedError(PersistError):
    """Another process has taken over the session. Nothing of this call is stored.

    ``resume_session`` takes the session back.

    Attributes:
        session_id: The session.
        generation: The generation of this writer.
    """

    session_id: str

    def __init__(self, session_id: str, generation: int) -> None:
        super().__init__(
            f"session '{session_id}' was taken over by another process, nothing was stored: "
            "continue there, or resume the session here to take it back",
            session_id=session_id,
        )
        self.generation = generation


def _listed(values: Sequence[str]) -> str:
    return ", ".join(values) or "(none)"


class UnsupportedSessionCategoryError(SandboxAgentError):
    """The session has no config option with this category."""

    def __init__(self, session_id: str, category: str, available_categories: Sequence[str]) -> None:
        super().__init__(
            f"Session '{session_id}' does not support category '{category}'. "
            f"Available categories: {_listed(available_categories)}"
        )
        self.session_id = session_id
        self.category = category
        self.available_categories: list[str] = list(available_categories)


class UnsupportedSessionConfigOptionError(SandboxAgentError):
    """The session has no config option with this id."""

    def __init__(self, session_id: str, config_id: str, available_config_ids: Sequence[str]) -> None:
        super().__init__(
            f"Session '{session_id}' does not expose config option '{config_id}'. "
            f"Available config ids: {_listed(available_config_ids)}"
        )
        self.session_id = session_id
        self.config_id = config_id
        self.available_config_ids: list[str] = list(available_config_ids)


class UnsupportedSessionValueError(SandboxAgentError):
    """The config option does not accept this value."""

    def __init__(
        self,
        session_id: str,
        category: str,
        config_id: str,
        requested_value: str,
        allowed_values: Sequence[str],
        needs: str | None = None,
    ) -> None:
        super().__init__(
            f"Session '{session_id}' does not support value '{requested_value}' for category "
            f"'{category}' (config id '{config_id}'). Allowed values: {_listed(allowed_values)}"
            f"{f'. {needs}' if needs else ''}"
        )
        self.session_id = session_id
        self.category = category
        self.config_id = config_id
        self.requested_value = requested_value
        self.allowed_values: list[str] = list(allowed_values)


class UnsupportedPermissionReplyError(SandboxAgentError):
    """The permission request does not offer this reply."""

    def __init__(self, permission_id: str, requested_reply: str, available_replies: Sequence[str]) -> None:
        super().__init__(
            f"Permission '{permission_id}' does not support reply '{requested_reply}'. "
            f"Available replies: {_listed(available_replies)}"
        )
        self.permission_id = permission_id
        self.requested_reply = requested_reply
        self.available_replies: list[str] = list(available_replies)


TABLE: tuple[ErrorRow, ...] = (
    *_problem_rows,
    ErrorRow(AcpRpcError, None, None, 70, False),
    ErrorRow(ConnectionLostError, None, None, 75, True),
    ErrorRow(HealthTimeoutError, None, None, 75, True),
    ErrorRow(SandboxDestroyedError, None, None, 69, False),
    ErrorRow(SessionBusyError, None, None, 75, True),
    ErrorRow(SessionNotFoundError, None, None, 66, False),
    ErrorRow(SettingNotConfirmedError, None, None, 69, True),
    ErrorRow(PersistError, None, None, 74, True),
    ErrorRow(SessionFencedError, None, None, 73, False),
    ErrorRow(UnsupportedSessionCategoryError, None, None, 64, False),
    ErrorRow(UnsupportedSessionConfigOptionError, None, None, 64, False),
    ErrorRow(UnsupportedSessionValueError, None, None, 64, False),
    ErrorRow(UnsupportedPermissionReplyError, None, None, 64, False),
)

# The members of RFC 9457. All others are extensions.
_PROBLEM_MEMBERS = {"type", "title", "status", "detail", "instance", "requestId"}
_BY_NAME = {row.name: row.error for row in TABLE if row.name is not None}


# A server's advice is for callers of the HTTP API. The same advice for callers of the SDK; ``problem`` keeps
# the server's words.
_SDK_ADVICE = (
    (re.compile(r"^token invalid\b.*"), "token invalid: the server wants another token: pass token=…"),
    (re.compile(r"POST again with \?agent=\S+ to start it again"), "the next call starts it again"),
    (re.compile(r"(send it again, or )?DELETE the connection"), r"\1destroy the session"),
)


def error_from_problem(status: int, problem: Mapping[str, Any] | None) -> SandboxAgentError:
    """Return the error for an HTTP response that is not a success.

    Args:
        status: The HTTP status.
        problem: The decoded problem document, or None if the body is not one.

    Returns:
        An instance of the ProblemError subclass for the document's URN, or a plain SandboxAgentError.
    """
    document = problem or {}
    kind = str(document.get("type") or "").removeprefix(URN_PREFIX)
    detail = str(document.get("detail") or document.get("title") or f"Request failed with status {status}")
    error = _BY_NAME.get(kind)
    for words, own in _SDK_ADVICE:
        detail = words.sub(own, detail)
    if error is not None and issubclass(error, ProblemError):
        back = error(detail, status=status, problem=problem)
        back.extensions = {name: value for name, value in document.items() if name not in _PROBLEM_MEMBERS}
        return back
    return SandboxAgentError(detail, status=status, problem=problem)
