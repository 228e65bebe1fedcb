"""The environment of an agent: what it inherits from the server, and what it never gets."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Literal, get_args

from sandbox_agent.agents.catalogue import CATALOGUE
from sandbox_agent.runtime.user import User

EnvPolicy = Literal["default", "strict"]
ENV_POLICIES: tuple[EnvPolicy, ...] = get_args(EnvPolicy)

# The server's own. With its token an agent could answer its own permission requests.
_OWN = (
    "SANDBOX_AGENT_TOKEN",
    "SANDBOX_AGENT_STORE",
    "SANDBOX_AGENT_STORE_KEY",
    "SANDBOX_AGENT_MIRROR",
    "SANDBOX_AGENT_LIFELINE",
)
# Clients of PostgreSQL and Redis, which the store's are, take passwords from these.
_STORE = ("PG*", "REDISCLI_AUTH")
_LONG_TOKEN = 16
# What programs need to run at all, to reach the network and to find their files.
_STRICT = (
    *(
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "LC_*",
        "TZ",
        "TERM",
        "TMPDIR",
        "XDG_*",
    ),
    "SSH_AUTH_SOCK",
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "NODE_USE_SYSTEM_CA", "REQUESTS_CA_BUNDLE"),
    *("CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH"),
)


@dataclass(frozen=True, slots=True)
class AgentEnvironment:
    """What agents inherit. All names may be patterns with ``*``.

    Attributes:
        policy: "default" for everything but secrets of the server, "strict" for a list of names: what
            programs need, and what the agent's entry in the catalogue names.
        allow: Names that agents inherit whatever the policy is, except the server's own secrets.
        deny: Names that agents do not inherit.
        token: The server's token: no variable that has this value, or contains a long token, is inherited.
        store_secrets: The store's URL and password: a variable that has one is not inherited unless
            ``allow`` names it.
        user: The user as whom agents run; None for the server's own.
    """

    policy: EnvPolicy = "default"
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)
    store_secrets: tuple[str, ...] = field(default=(), repr=False)
    user: User | None = None

    def variables(self, agent_id: str) -> dict[str, str]:
        """Return the variables of an agent: those that it inherits, and the defaults of its entry."""
        own, allowed, denied = _matcher(_OWN), _matcher(self.allow), _matcher((*self.deny, *_STORE))
        listed = _matcher((*_STRICT, *_catalogue_names(agent_id))) if self.policy == "strict" else None

        def inherits(name: str, value: str) -> bool:
            if own(name) or self._has_token(value):
                return False
            if allowed(name):
                return True
            if denied(name) or self._is_stores(value):
                return False
            if self.user is not None and name.startswith("XDG_"):
                return False  # folders of the server's user
            return listed is None or bool(listed(name))

        inherited = {name: value for name, value in os.environ.items() if inherits(name, value)}
        if self.user is not None:
            inherited |= {"HOME": self.user.home, "USER": self.user.name, "LOGNAME": self.user.name}
        agent = CATALOGUE.get(agent_id)
        return inherited if agent is None else {**agent.defaults, **inherited}

    def _has_token(self, value: str) -> bool:
        if self.token is None:
            return False
        # A short token may be a word that is in a path, too.
        return value == self.token or (len(self.token) >= _LONG_TOKEN and self.token in value)

    def _is_stores(self, value: str) -> bool:
        return any(value == secret or f":{secret}@" in value for secret in self.store_secrets)


def _catalogue_names(agent_id: str) -> tuple[str, ...]:
    agent = CATALOGUE.get(agent_id)
    return () if agent is None else (*agent.credential_env, *agent.env)


def _matcher(patterns: Iterable[str]) -> Callable[[str], object]:
    """Return a function that returns something true for names that match one of the patterns."""
    return re.compile("|".join(map(translate, patterns)) or r"(?!)").match


_is_secret = _matcher((*_OWN, *_STORE))


def is_server_secret(name: str) -> bool:
    """Return whether a variable is the server's own, or may hold a password of its store."""
    return bool(_is_secret(name))
