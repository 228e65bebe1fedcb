import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sandbox_agent.agents.catalogue import CATALOGUE
from sandbox_agent.agents.info import agent_info, credentials_available
from sandbox_agent.errors import UnsupportedAgentError
from sandbox_agent.wire.api import ServerStatusInfo
from tests.agents.conftest import Machine

# How this file was made is in its "$comment".
PEER: list[dict[str, Any]] = json.loads((Path(__file__).parent / "golden/agents-0.4.2.json").read_text())[
    "agents"
]
# What this server adds.
ADDED = {"package", "pinnedVersion"}
# The peer says that their credentials are there, wherever they are.
KEYLESS_ON_PEER = {"pi", "cursor"}
# Their capabilities are what was observed (scripts/observe_agents.py), not what the peer says.
OBSERVED: dict[str, set[str]] = {
    "claude": {
        *("planMode", "images", "fileAttachments", "sessionLifecycle", "errorEvents", "reasoning", "status"),
        *("commandExecution", "fileChanges", "itemStarted"),
    },
    "codex": {"planMode"},
    "opencode": {
        *("planMode", "permissions", "reasoning", "status", "commandExecution", "fileChanges"),
    },
    "pi": {"reasoning", "status", "commandExecution", "fileChanges"},
}
SECRET = "sk-very-secret"


def encoded(agent_id: str, **more: Any) -> dict[str, Any]:
    info = json.loads(msgspec.json.encode(msgspec.structs.replace(agent_info(agent_id), **more)))
    for added in ("authMethods", "permissionModes", "credentialVariables"):  # the peer has none
        info.pop(added, None)
    return info


def test_the_catalogue_begins_with_the_peers_agents() -> None:
    assert list(CATALOGUE)[: len(PEER)] == [agent["id"] for agent in PEER]
    assert [agent.id for agent in CATALOGUE.values()] == list(CATALOGUE)


@pytest.mark.parametrize("peer", PEER, ids=lambda peer: peer["id"])
def test_an_agent_that_is_not_here_looks_as_on_the_peer(machine: Machine, peer: dict[str, Any]) -> None:
    ours = encoded(peer["id"], config_options=CATALOGUE[peer["id"]].config_options)
    if peer["id"] == "mock":  # ours is built in, and its options are its own
        peer = peer | {"installed": True, "version": "1.0.0", "configOptions": ours["configOptions"]}
    theirs, seen = peer["capabilities"], ours["capabilities"]
    assert {name for name in theirs if theirs[name] != seen[name]} == OBSERVED.get(peer["id"], set())
    peer = peer | {"capabilities": seen}
    if peer["id"] in KEYLESS_ON_PEER:
        peer = peer | {"credentialsAvailable": False}
    assert {name: value for name, value in ours.items() if name not in ADDED} == peer


def test_config_options_are_a_fresh_copy() -> None:
    for agent in CATALOGUE.values():
        agent.config_options.append({"id": "mine"})
        assert {"id": "mine"} not in agent.config_options


def test_an_installed_agent_has_its_path(machine: Machine) -> None:
    launcher = machine.launcher("codex")
    info = encoded("codex")
    assert (info["installed"], info["path"]) == (True, str(launcher))
    assert set(info) == {"id", "installed", "credentialsAvailable", "capabilities", "path", *ADDED}


@pytest.mark.parametrize("name", ["codex-acp", "@scope/codex-acp"])
def test_an_agent_from_npm_has_its_version(machine: Machine, name: str) -> None:
    package = machine.home / "node_modules" / name
    script = machine.executable(package / "dist" / "index.js")
    (package / "package.json").write_text(json.dumps({"name": name, "version": "2.6.0"}))
    (machine.path / "codex-acp").symlink_to(script)
    assert encoded("codex")["version"] == "2.6.0"


@pytest.mark.parametrize("manifest", ["", "[]", "{", '{"version": 3}'])
def test_an_agent_with_a_broken_manifest_has_no_version(machine: Machine, manifest: str) -> None:
    package = machine.home / "node_modules" / "codex-acp"
    (machine.path / "codex-acp").symlink_to(machine.executable(package / "index.js"))
    (package / "package.json").write_text(manifest)
    assert "version" not in encoded("codex")


def test_a_manifest_outside_node_modules_is_not_the_agents(machine: Machine) -> None:
    (machine.path / "package.json").write_text('{"version": "9.9.9"}')
    machine.command("codex-acp")
    assert "version" not in encoded("codex")


def test_what_the_server_knows_is_put_in(machine: Machine) -> None:
    info = encoded("mock", config_options=[], config_error="no", server_status=ServerStatusInfo("running", 5))
    assert (info["configOptions"], info["configError"]) == ([], "no")
    assert info["serverStatus"] == {"status": "running", "uptimeMs": 5}


def test_an_agent_outside_the_catalogue_has_info_when_it_has_a_launcher(machine: Machine) -> None:
    with pytest.raises(UnsupportedAgentError):
        agent_info("mine")
    machine.launcher("mine")
    info = encoded("mine")
    assert (info["installed"], info["credentialsAvailable"]) == (True, True)
    assert set(info["capabilities"]) == set(PEER[0]["capabilities"])


def assign(wanted: str) -> tuple[str, str]:
    name, _, value = wanted.partition("=")
    return name, value or SECRET


@pytest.mark.parametrize(
    ("agent_id", "names"),
    [(agent.id, names) for agent in CATALOGUE.values() for names in agent.credential_variables],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_credentials_are_found_in_the_environment_if_all_of_a_set_are_there(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, agent_id: str, names: tuple[str, ...]
) -> None:
    for left_out in names:
        variables = dict(assign(each) for each in names if each != left_out)
        assert not credentials_available(agent_id, variables)
        name, _, value = left_out.partition("=")
        assert not credentials_available(agent_id, {**variables, name: "other" if value else ""})
    for name, value in map(assign, names):
        monkeypatch.setenv(name, value)
    assert credentials_available(agent_id)


def test_an_agent_inherits_the_variables_of_its_sets() -> None:
    for agent in CATALOGUE.values():
        for name in {each.partition("=")[0] for names in agent.credential_variables for each in names}:
            assert any(fnmatch(name, each) for each in (*agent.credential_env, *agent.env)), (agent.id, name)
        in_sets = {each.partition("=")[0] for names in agent.credential_variables for each in names}
        assert set(agent.credential_env) <= in_sets, agent.id


@pytest.mark.parametrize(
    ("agent_id", "index"),
    [(agent.id, index) for agent in CATALOGUE.values() for index in range(len(agent.credential_files))],
)
def test_credentials_are_found_in_files(machine: Machine, agent_id: str, index: int) -> None:
    file = CATALOGUE[agent_id].credential_files[index]
    path = machine.home / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    assert not credentials_available(agent_id)
    if file.members:
        for useless in ("{", "[]", '{"theme": "dark"}', json.dumps({file.members[0]: None})):
            path.write_text(useless)
            assert not credentials_available(agent_id)
    path.write_text(json.dumps({file.members[0]: {"key": SECRET}} if file.members else "anything"))
    assert credentials_available(agent_id)


def test_a_folder_in_place_of_a_credentials_file_holds_none(machine: Machine) -> None:
    (machine.home / ".codex/auth.json").mkdir(parents=True)
    assert not credentials_available("codex")


def test_the_value_of_a_credential_is_in_no_answer(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert SECRET not in json.dumps([encoded(agent_id) for agent_id in CATALOGUE])


@pytest.mark.parametrize(
    ("login", "is_there"),
    [
        ({"accessToken": SECRET, "expiresAt": 1_700_000_000_000}, False),
        ({"accessToken": SECRET, "expiresAt": 1_700_000_000_000, "refreshToken": SECRET}, True),
        ({"accessToken": SECRET, "expiresAt": 99_000_000_000_000}, True),
        ({"accessToken": SECRET}, True),
    ],
)
def test_a_login_that_has_expired_and_cannot_be_renewed_is_none(
    machine: Machine, login: dict[str, Any], is_there: bool
) -> None:
    path = machine.home / ".claude/.credentials.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"claudeAiOauth": login}))
    assert credentials_available("claude") is is_there
    path = machine.home / ".local/share/opencode/auth.json"
    path.parent.mkdir(parents=True)
    entry = {"type": "oauth", "access": SECRET, "expires": login.get("expiresAt")}
    path.write_text(json.dumps({"anthropic": {**entry, "refresh": login.get("refreshToken")}}))
    assert credentials_available("opencode") is is_there


@pytest.mark.parametrize("agent_id", ["mock", "my-own"])
def test_an_agent_whose_credentials_are_its_own_matter_counts_as_having_them(
    machine: Machine, agent_id: str
) -> None:
    assert credentials_available(agent_id)
