"""A session's policy: how it decides a permission request, and when one expires. No I/O."""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import translate
from functools import lru_cache
from typing import Any, Literal

import msgspec

from sandbox_agent.agents.catalogue import agent_modes
from sandbox_agent.engine import permissions as engine
from sandbox_agent.engine.permissions import PermissionMode, Verdict
from sandbox_agent.errors import InvalidRequestError, ModeNotSupportedError
from sandbox_agent.persist.store import SessionRow
from sandbox_agent.wire.jsonrpc import elements, members
from sandbox_agent.wire.sessions import CreateSessionRequest, PermissionRule

# What a create request may name: the modes, names of the 0.1 API, and "reject", which rejects everything.
PERMISSION_MODES: Mapping[str, PermissionMode | Literal["reject"]] = {
    **{mode: mode for mode in engine.PERMISSION_MODES},
    "acceptEdits": "accept_edits",
    "default": "ask",
    "bypass": "allow",
    "reject": "reject",
}
MAX_RULES = 1000
_MAX_GLOB = 4096
_ANY_DEPTH = "**"
# Above a century a timeout means "never", and would only overflow clocks.
_MAX_SECONDS = 3_153_600_000.0
_KINDS = frozenset(
    {"read", "edit", "delete", "move", "search", "execute", "think", "fetch", "switch_mode", "other"}
)
# The members of a tool's input in which agents name files.
_PATH_MEMBERS = (
    "path",
    "file_path",
    "filePath",
    "filepath",
    "abs_path",
    "absolute_path",
    "target_file",
    "notebook_path",
    "source",
    "destination",
    "paths",
    "files",
)

_settings = msgspec.json.Decoder(CreateSessionRequest)


class Policy(msgspec.Struct, frozen=True):
    """How a session's permission requests are answered.

    Attributes:
        mode: a permission mode, or "reject".
        rules: checked before the mode; the first that matches counts.
        directory: the start of relative paths and globs.
        timeout_seconds: how long a request may wait; None for no limit.
    """

    mode: PermissionMode | Literal["reject"] = "ask"
    rules: Sequence[PermissionRule] = ()
    directory: str | None = None
    timeout_seconds: float | None = None


def stored_request(row: SessionRow) -> CreateSessionRequest | None:
    """Return the request that a session was created with; None if there was none, or it can't be read."""
    try:
        return _settings.decode(row.settings) if row.settings is not None else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # by a newer version
        return None


def policy_of(row: SessionRow) -> Policy:
    """Return a session's policy. One that the server does not drive asks; so does one that can't be read."""
    settings = stored_request(row)
    if settings is None:
        return Policy()
    mode = row.permission_mode or settings.permission_mode or ""
    return Policy(
        PERMISSION_MODES.get(mode, "ask"),
        tuple(settings.permission_rules or ()),
        row.directory or settings.directory,
        settings.permission_timeout_seconds,
    )


def check_policy(request: CreateSessionRequest) -> None:
    """Check the policy in a request to create a session.

    Raises:
        ModeNotSupportedError: there is no such permission mode.
        InvalidRequestError: a rule or the timeout makes no sense.
    """
    if request.permission_mode and request.permission_mode not in PERMISSION_MODES:
        known = ", ".join(PERMISSION_MODES)
        raise ModeNotSupportedError(f"mode not supported: permissionMode must be one of {known}")
    try:
        engine.check_agreement(
            request.agent, request.agent_mode, permission_mode_of(request), agent_modes(request.agent)
        )
    except ValueError as error:
        raise InvalidRequestError(f"invalid request: {error}") from error
    rules = request.permission_rules or ()
    if len(rules) > MAX_RULES:
        raise InvalidRequestError(f"invalid request: there may be at most {MAX_RULES} permission rules")
    for number, rule in enumerate(rules):
        if rule.kind is not None and rule.kind not in _KINDS:
            raise InvalidRequestError(
                f"invalid request: permissionRules[{number}].kind must be one of {', '.join(sorted(_KINDS))}"
            )
        if rule.path is not None and not _is_glob(rule.path):
            raise InvalidRequestError(
                f"invalid request: permissionRules[{number}].path must be a glob of at most {_MAX_GLOB} "
                "characters without '..'"
            )
    seconds = request.permission_timeout_seconds
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise InvalidRequestError("invalid request: permissionTimeoutSeconds must be a number above 0")


def permission_mode_of(request: CreateSessionRequest) -> PermissionMode | None:
    """Return the permission mode that a request names, None where it names none, or "reject"."""
    mode = PERMISSION_MODES.get(request.permission_mode or "")
    return None if mode == "reject" else mode


def expiry_of(row: SessionRow, requested_at: int) -> int | None:
    """Return when a request of the session expires, in milliseconds since the epoch; None: never."""
    seconds = policy_of(row).timeout_seconds if row.settings is not None else None
    if seconds is None or not 0 < seconds <= _MAX_SECONDS:
        return None
    return requested_at + max(round(seconds * 1000), 1)


def decide(policy: Policy, kind: str | None, paths: Iterable[str]) -> Verdict:
    """Return what the policy says.

    A rule with a path allows (or leaves to people) a request only if all of its paths match, and rejects
    it if any does; a request that names no path matches no such rule.

    ``kind`` is that of the tool call; None counts as "other".
    """
    kind = kind or "other"
    touched = [absolute(path, policy.directory) for path in paths]
    for rule in policy.rules:
        if rule.kind is not None and rule.kind != kind:
            continue
        if rule.path is None or _touches(rule, rule.path, touched, policy.directory):
            return rule.reply
    return "reject" if policy.mode == "reject" else engine.decide_by_mode(policy.mode, kind)


def _touches(rule: PermissionRule, glob: str, paths: Sequence[str], directory: str | None) -> bool:
    matches = [glob_matches(glob, path, directory) for path in paths]
    return any(matches) if rule.reply == "reject" else bool(matches) and all(matches)


def asked_paths(metadata: Mapping[str, Any], tool_call: Mapping[str, Any] | None = None) -> list[str]:
    """Return the paths of a permission request, each once: of its event's metadata, and of ACP's tool call.

    The event has no paths of the call's diffs.
    """
    call = tool_call or {}
    found = _strings(metadata.get("paths"))
    for location in elements(call.get("locations")):
        found += _strings(members(location).get("path"))
    for content in elements(call.get("content")):
        if members(content).get("type") == "diff":
            found += _strings(members(content).get("path"))
    for source in (metadata.get("raw_input"), call.get("rawInput")):
        for name in _PATH_MEMBERS:
            found += _strings(members(source).get(name))
    return [path for path in dict.fromkeys(found) if path]


def _is_glob(path: str) -> bool:
    return 0 < len(path) <= _MAX_GLOB and ".." not in path.split("/") and path.isprintable()


def _strings(value: object) -> list[str]:
    values = [value] if isinstance(value, str) else elements(value)
    return [each for each in values if isinstance(each, str)]


# The standard library's fnmatch matches the segments of a glob; it has no ``**``. wcmatch and pathspec do,
# but compile a whole pattern to one backtracking expression: with wcmatch 12, a pattern of 40 times ``**/a*``
# does not end, and would block the event loop. Here the time is bounded by the length of the pattern times
# that of the path.


def absolute(path: str, directory: str | None) -> str:
    """Return a path as an absolute one without ``.``, ``..`` and repeated slashes."""
    # normpath keeps two leading slashes, which have a meaning of their own in POSIX
    return posixpath.normpath("/" + posixpath.join(directory or "/", path).lstrip("/"))


def glob_matches(pattern: str, path: str, directory: str | None) -> bool:
    """Return whether an absolute, normalized path matches a glob.

    ``**`` matches any number of folders, also zero (``/work/**`` matches ``/work``); ``*`` and ``?`` match
    characters of one name. A pattern that starts with neither ``/`` nor ``**`` is relative to the directory.
    """
    if not pattern.startswith(("/", _ANY_DEPTH)):
        pattern = posixpath.join(directory or "/", pattern)
    return _match(_segments(pattern), _segments(path))


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment not in {"", "."}]


def _match(pattern: Sequence[str], names: Sequence[str]) -> bool:
    # The prefixes of the path that match the pattern so far; without backtracking, the time is bounded.
    reached = [True] + [False] * len(names)
    for part in pattern:
        if part == _ANY_DEPTH:
            for position in range(1, len(reached)):
                reached[position] = reached[position] or reached[position - 1]
        else:
            matches = _compiled(part).match
            reached = [False] + [
                reached[position] and matches(name) is not None for position, name in enumerate(names)
            ]
    return reached[-1]


@lru_cache(maxsize=512)
def _compiled(part: str) -> re.Pattern[str]:
    return re.compile(translate(part))
