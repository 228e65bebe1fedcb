"""Credentials on this machine: of the environment, and of the files in which agents store their logins.

Places, order and names are those of the published server (``sandbox-agent credentials``).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from sandbox_agent.wire.jsonrpc import members

AuthType = Literal["api_key", "oauth"]

_KEYS = {"anthropic": ("ANTHROPIC_API_KEY", "CLAUDE_API_KEY"), "openai": ("OPENAI_API_KEY", "CODEX_API_KEY")}
_OAUTH = {"anthropic": ("CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN")}
# The variables that hold a provider's key, for programs that read one of them.
VARIABLES: dict[str, tuple[str, ...]] = _KEYS
# All variables of the environment in which credentials are looked for.
KEY_VARIABLES = frozenset(name for names in (*_KEYS.values(), *_OAUTH.values()) for name in names)
_CLAUDE_KEYS = ("primaryApiKey", "apiKey", "anthropicApiKey", "customApiKey")
# Credential files are small, but a user's ~/.claude.json can be several megabytes.
_MAX_BYTES = 32 * 1024 * 1024
_SHOWN = 4


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """A key or token.

    Attributes:
        provider: Whose service it is for: "anthropic", "openai", or a name that OpenCode uses.
        source: Where it was found: "environment", or the agent that stored it.
        auth_type: "api_key", or "oauth" for the token of a login.
        api_key: The key or token.
        expires_at: When it expires, in seconds since the Unix epoch; None if that is not known.
    """

    provider: str
    source: str
    auth_type: AuthType
    api_key: str
    expires_at: float | None = None

    @property
    def is_expired(self) -> bool:
        """Whether it has expired."""
        return self.expires_at is not None and self.expires_at <= time.time()

    @property
    def redacted(self) -> str:
        """The key with only its first and last characters, and none of a short key."""
        key = self.api_key
        return f"{key[:_SHOWN]}...{key[-_SHOWN:]}" if len(key) > 3 * _SHOWN else "***"


def find_credentials(
    home: Path, variables: Mapping[str, str] = os.environ, *, oauth: bool = True
) -> list[Credential]:
    """Return all credentials that are found, the best of each provider first.

    Args:
        home: The user's home folder.
        variables: The environment.
        oauth: Include the tokens of logins.
    """
    found = [
        *_of_environment(variables, _KEYS, "api_key"),
        *_of_environment(variables, _OAUTH, "oauth"),
        *_of_claude(home),
        *_of_codex(home),
        *_of_opencode(home),
        *_of_amp(home),
    ]
    usable = [each for each in found if oauth or each.auth_type == "api_key"]
    # A token that has expired is worse than any other credential.
    return sorted(usable, key=lambda each: each.is_expired)


def is_expired_login(stored: object) -> bool:
    """Return whether a stored login has expired and its agent cannot renew it."""
    login = members(stored)
    ends = [_expiry(login, "expiresAt", "refreshToken"), _expiry(login, "expires", "refresh")]
    return any(each is not None and each <= time.time() for each in ends)


def _of_environment(
    variables: Mapping[str, str], names: Mapping[str, tuple[str, ...]], auth_type: AuthType
) -> Iterator[Credential]:
    for provider, keys in names.items():
        for name in keys:
            if value := variables.get(name):
                yield Credential(provider=provider, source="environment", auth_type=auth_type, api_key=value)


def _of_claude(home: Path) -> Iterator[Credential]:
    for name in (".claude.json.api", ".claude.json"):
        key = _first(_read(home / name), _CLAUDE_KEYS)
        if key:
            yield Credential(provider="anthropic", source="claude-code", auth_type="api_key", api_key=key)
    for name in (".claude/.credentials.json", ".claude-oauth-credentials.json"):
        login = members(_read(home / name).get("claudeAiOauth"))
        token = _first(login, ("accessToken",))
        if token:
            yield Credential(
                provider="anthropic",
                source="claude-code",
                auth_type="oauth",
                api_key=token,
                expires_at=_expiry(login, "expiresAt", "refreshToken"),
            )


def _of_codex(home: Path) -> Iterator[Credential]:
    stored = _read(home / ".codex/auth.json")
    if key := _first(stored, ("OPENAI_API_KEY",)):
        yield Credential(provider="openai", source="codex", auth_type="api_key", api_key=key)
    if token := _first(members(stored.get("tokens")), ("access_token",)):
        yield Credential(provider="openai", source="codex", auth_type="oauth", api_key=token)


def _of_opencode(home: Path) -> Iterator[Credential]:
    for provider, entry in _read(home / ".local/share/opencode/auth.json").items():
        login = members(entry)
        if login.get("type") == "api" and (key := _first(login, ("key",))):
            yield Credential(provider=provider, source="opencode", auth_type="api_key", api_key=key)
        elif login.get("type") == "oauth" and (token := _first(login, ("access",))):
            yield Credential(
                provider=provider,
                source="opencode",
                auth_type="oauth",
                api_key=token,
                expires_at=_expiry(login, "expires", "refresh"),
            )


def _of_amp(home: Path) -> Iterator[Credential]:
    stored = _read(home / ".amp/config.json")
    if key := _first(stored, ("anthropic_api_key", "anthropicApiKey", "apiKey", "api_key", "token")):
        yield Credential(provider="anthropic", source="amp", auth_type="api_key", api_key=key)


def _read(path: Path) -> dict[str, Any]:
    try:
        content: object = json.loads(path.read_bytes()) if path.stat().st_size <= _MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    return members(content)


def _first(stored: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    values = (stored.get(name) for name in names)
    return next((value for value in values if isinstance(value, str) and value), None)


def _expiry(login: Mapping[str, Any], name: str, refresh: str) -> float | None:
    """Return when a login ends: milliseconds or RFC 3339; None if its agent can renew it."""
    value: object = login.get(name)
    if login.get(refresh):
        return None
    if isinstance(value, int | float):
        return value / 1000
    try:
        return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else None
    except ValueError:
        return None
