"""Which variables an agent inherits."""

from __future__ import annotations

import json

import pytest

from sandbox_agent.agents.catalogue import CATALOGUE
from sandbox_agent.agents.environment import AgentEnvironment
from sandbox_agent.runtime.user import User

SECRETS = {
    "SANDBOX_AGENT_TOKEN": "token-1",
    "SANDBOX_AGENT_STORE": "postgres://a:b@c/d",
    "SANDBOX_AGENT_STORE_KEY": "key",
    "SANDBOX_AGENT_MIRROR": "redis://:b@c",
    "SANDBOX_AGENT_LIFELINE": "3",
}
PASSWORDS = {"PGPASSWORD": "b", "PGHOST": "c", "REDISCLI_AUTH": "b"}
NEEDED = {
    "PATH": "/bin",
    "HOME": "/home/me",
    "LANG": "C",
    "LC_ALL": "C",
    "TZ": "UTC",
    "TERM": "xterm",
    "TMPDIR": "/tmp",
    "XDG_CONFIG_HOME": "/home/me/.config",
    "SSH_AUTH_SOCK": "/run/ssh",
    "https_proxy": "http://proxy",
    "NO_PROXY": "localhost",
    "SSL_CERT_FILE": "/etc/ca.pem",
    "NODE_EXTRA_CA_CERTS": "/etc/ca.pem",
}
OTHERS = {"DEPLOY_KEY": "k", "FROM_THE_SANDBOX": "1", "LCX": "no", "XPATH": "no", "path": "no"}


def variables(
    monkeypatch: pytest.MonkeyPatch, *names: dict[str, str], agent: str = "mock", **options: object
) -> dict[str, str]:
    """Return what an agent inherits from a server with these variables."""
    environ = {name: value for group in names for name, value in group.items()}
    monkeypatch.setattr("os.environ", environ)
    return AgentEnvironment(**options).variables(agent)  # pyright: ignore[reportArgumentType]


def test_by_default_an_agent_inherits_all_but_the_servers_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    found = variables(monkeypatch, SECRETS, PASSWORDS, NEEDED, OTHERS)
    assert found == {**NEEDED, **OTHERS}


def test_strictly_an_agent_inherits_what_programs_need(monkeypatch: pytest.MonkeyPatch) -> None:
    found = variables(monkeypatch, SECRETS, PASSWORDS, NEEDED, OTHERS, policy="strict")
    assert found == NEEDED


def test_an_agent_inherits_the_keys_and_addresses_that_the_catalogue_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {
        "ANTHROPIC_API_KEY": "1",
        "ANTHROPIC_BASE_URL": "2",
        "CLAUDE_CONFIG_DIR": "3",
        "OPENAI_API_KEY": "4",
        "OPENAI_BASE_URL": "5",
        "GEMINI_API_KEY": "6",
        "AWS_SECRET_ACCESS_KEY": "7",
    }

    def inherited(agent: str) -> str:
        found = variables(monkeypatch, keys, agent=agent, policy="strict")
        return "".join(value for name, value in found.items() if name in keys)

    assert inherited("claude") == "123"
    assert inherited("codex") == "45"
    assert inherited("gemini") == "6"
    trust = "GEMINI_CLI_TRUST_WORKSPACE"
    assert variables(monkeypatch, agent="gemini")[trust] == "true"
    assert variables(monkeypatch, {trust: "false"}, agent="gemini")[trust] == "false"
    assert variables(monkeypatch, agent="goose")["GOOSE_MODE"] == "approve"
    assert variables(monkeypatch, {"GOOSE_MODE": "auto"}, agent="goose")["GOOSE_MODE"] == "auto"
    assert variables(monkeypatch, agent="pi")["PI_OFFLINE"] == "1"
    assert inherited("not-in-the-catalogue") == inherited("mock") == ""


@pytest.mark.parametrize("agent", CATALOGUE)
def test_every_key_of_the_catalogue_arrives(monkeypatch: pytest.MonkeyPatch, agent: str) -> None:
    keys = dict.fromkeys(CATALOGUE[agent].credential_env, "key")
    found = variables(monkeypatch, keys, agent=agent, policy="strict")
    assert found == {**CATALOGUE[agent].defaults, **keys}


@pytest.mark.parametrize("policy", ["default", "strict"])
def test_what_is_allowed_arrives_unless_it_is_the_servers_own(
    monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    found = variables(
        monkeypatch,
        SECRETS,
        PASSWORDS,
        OTHERS,
        policy=policy,
        allow=("PG*", "DEPLOY_KEY", "SANDBOX_AGENT_*"),
        deny=("DEPLOY_*", "F*", "*path", "*PATH", "LCX"),
    )
    assert found == {"PGPASSWORD": "b", "PGHOST": "c", "DEPLOY_KEY": "k"}


@pytest.mark.parametrize("policy", ["default", "strict"])
def test_what_is_denied_does_not_arrive(monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    found = variables(monkeypatch, NEEDED, policy=policy, deny=("SSH_*", "TZ", "[A-Z]*_PROXY"))
    assert found == {name: NEEDED[name] for name in NEEDED if name not in ("SSH_AUTH_SOCK", "TZ", "NO_PROXY")}


def test_a_secret_under_another_name_does_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgres://me:pass-word@host/db"
    named = {
        "MY_TOKEN": "token-of-the-server",
        "DATABASE_URL": url,
        "SAME_PASSWORD": "redis://:pass-word@cache",
        "PASSWORD": "pass-word",
        "PATH": "/opt/pass-word/bin",
        "AUTHORIZATION": "Bearer token-of-the-server",
        "DOC": "/opt/token",
    }

    def inherited(*allow: str) -> list[str]:
        secrets = {"token": "token-of-the-server", "store_secrets": (url, "pass-word")}
        return sorted(variables(monkeypatch, named, **secrets, allow=allow))  # pyright: ignore[reportArgumentType]

    assert inherited() == ["DOC", "PATH"]
    assert inherited("DATABASE_URL", "MY_TOKEN", "AUTHORIZATION") == ["DATABASE_URL", "DOC", "PATH"]


def test_a_short_token_is_not_looked_for_in_other_values(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"PATH": "/opt/my-token/bin", "MY_TOKEN": "my-token"}
    assert variables(monkeypatch, named, token="my-token") == {"PATH": "/opt/my-token/bin"}


def test_another_user_has_its_own_home(monkeypatch: pytest.MonkeyPatch) -> None:
    user = User("agent", 1000, 1000, (1000,), "/home/agent")
    found = variables(monkeypatch, NEEDED, {"USER": "root"}, user=user)
    assert (found["HOME"], found["USER"], found["LOGNAME"]) == ("/home/agent", "agent", "agent")
    assert "XDG_CONFIG_HOME" not in found
    assert found["PATH"] == "/bin"
    found = variables(monkeypatch, NEEDED, user=user, allow=("XDG_*",))
    assert found["XDG_CONFIG_HOME"] == "/home/me/.config"


def test_secrets_are_not_shown() -> None:
    assert "12345" not in repr(AgentEnvironment(token="12345", store_secrets=("12345",)))


def test_an_agent_gets_the_defaults_of_its_entry_unless_the_environment_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (name,) = CATALOGUE["opencode"].defaults
    assert name == "OPENCODE_CONFIG_CONTENT"
    mode = json.loads(variables(monkeypatch, NEEDED, agent="opencode")[name])["agent"]["ask"]
    assert mode["permission"] == {"edit": "ask", "bash": "ask", "webfetch": "ask"}
    own = variables(monkeypatch, NEEDED, {name: "{}"}, agent="opencode", policy="strict")
    assert own[name] == "{}"
    assert name not in variables(monkeypatch, NEEDED, agent="claude")
