"""Installations with a node and an npm that need no network; see tests/real_agent for the real ones."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sandbox_agent.agents.acp_registry import read_registry
from sandbox_agent.agents.catalogue import CATALOGUE, Agent, use_agents
from sandbox_agent.agents.info import agent_info
from sandbox_agent.agents.install import npm as npm_module
from sandbox_agent.agents.install.installed import agent_folder, read_installation
from sandbox_agent.agents.install.installer import Progress, Versions, install, uninstall, update
from sandbox_agent.agents.install.npm import Lock, read_lock
from sandbox_agent.agents.install.pypi import read_requirements
from sandbox_agent.agents.launch import agent_ids, launcher_path, resolve
from sandbox_agent.errors import (
    AgentNotInstalledError,
    ConflictError,
    InstallFailedError,
    InvalidRequestError,
    UnsupportedAgentError,
)
from tests.agents.conftest import Machine
from tests.agents.install.fake_npm import FakeNpm

pytestmark = pytest.mark.anyio

INSTALL = """
import anyio, sys
from sandbox_agent.agents.install.installer import install
anyio.run(install, sys.argv[1])
"""
PLATFORMS = ("linux-x64", "linux-arm64", "darwin-x64", "darwin-arm64")
INITIALIZE = b'{"jsonrpc":"2.0","id":7,"method":"initialize","params":{"protocolVersion":1}}\n'


def lock_of(agent_id: str) -> Lock:
    lock = read_lock(agent_id)
    assert lock is not None, "no lockfile for this platform"
    return lock


def folders(agent_id: str) -> list[str]:
    return sorted(path.name for path in agent_folder(agent_id).iterdir() if path.is_dir())


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def answer(agent_id: str) -> bytes:
    return subprocess.run(resolve(agent_id).argv, input=INITIALIZE, capture_output=True, check=True).stdout


async def test_an_installed_agent_answers_and_has_its_version(machine: Machine, npm: FakeNpm) -> None:
    seen: list[Progress] = []
    result = await install("codex", on_progress=seen.append)
    assert not result.already_installed
    assert resolve("codex").argv == [str(launcher_path("codex"))]
    assert b'"id": 7' in answer("codex")
    info = agent_info("codex")
    assert (info.installed, info.version) == (True, "9.9.9")
    assert (info.package, info.pinned_version) == ("@agentclientprotocol/codex-acp", "2.6.0")
    assert [each.phase for each in seen] == ["installing"] * (len(seen) - 2) + ["starting", "installed"]
    # Of the native program, one of the four platforms' packages is installed.
    assert seen[-3].done == seen[-3].total == len(lock_of("codex").packages) - 1 - 3


@pytest.mark.parametrize(
    ("bins", "works"),
    [
        ({"pi": "x.js"}, True),
        ({"pi": "x.js", "codex-acp": "y.js"}, False),
        ({"missing": "x.js"}, False),
        (7, False),
    ],
)
async def test_the_only_command_of_a_package_is_used_if_none_is_named(
    machine: Machine, npm: FakeNpm, bins: Any, works: bool
) -> None:
    npm.behave(bin=bins)
    document = {
        "agents": [{"id": "tool", "version": "1", "distribution": {"npx": {"package": "@s/tool@1.2.3"}}}]
    }
    use_agents(read_registry(json.dumps(document).encode()))
    try:
        if works:
            await install("tool")
            assert b'"id": 7' in answer("tool")
        else:
            with pytest.raises(InstallFailedError, match="have no command"):
                await install("tool")
    finally:
        use_agents({})


async def test_npm_gets_the_lockfile_and_runs_no_scripts_but_the_listed(
    machine: Machine, npm: FakeNpm
) -> None:
    await install("codex")
    await install("opencode")
    codex, opencode, rebuild = npm.calls
    assert codex[0][:2] == opencode[0][:2] == ["ci", "--ignore-scripts"]
    assert rebuild[0] == ["rebuild", "--ignore-scripts=false", "opencode-ai"]
    installed = read_installation("codex")
    assert installed is not None
    assert (Path(installed.folder) / "package-lock.json").read_text().count("sha512-") == len(
        lock_of("codex").packages
    ) - 1


async def test_what_the_lockfile_lacks_is_installed_besides_it_in_the_exact_version(
    machine: Machine, npm: FakeNpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npm_module, "current_platform", lambda: "linux-arm64")
    await install("opencode")
    installed = read_installation("opencode")
    assert npm.calls[0][0][:2] == ["install", "--ignore-scripts"]
    assert installed is not None
    manifest = json.loads((Path(installed.folder) / "package.json").read_text())
    assert manifest["optionalDependencies"] == {
        "opencode-linux-arm64": manifest["dependencies"]["opencode-ai"]
    }
    assert '"sha512-' in (Path(installed.folder) / "package-lock.json").read_text()


async def test_the_servers_secrets_do_not_reach_npm_nor_keys_the_scripts(
    machine: Machine, npm: FakeNpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOX_AGENT_TOKEN", "secret-token")
    keys = {"OPENAI_API_KEY", "CLAUDE_API_KEY", "DASHSCOPE_API_KEY", "GH_TOKEN"}
    for name in keys:
        monkeypatch.setenv(name, "sk-secret")
    await install("opencode")
    ci, rebuild = (set(names) for _, _, names in npm.calls)
    assert "SANDBOX_AGENT_TOKEN" not in ci | rebuild
    assert keys <= ci
    assert not keys & rebuild


async def test_node_and_the_listed_commands_are_first_on_the_agents_path_and_nothing_else_is(
    machine: Machine, npm: FakeNpm
) -> None:
    await install("pi")
    first = Path(npm.calls[0][1])
    assert f'"path": "{first}"'.encode() in answer("pi")
    assert names_in(first) == ["node", "pi"]
    assert (first / "node").resolve() == machine.path / "node"
    assert (first / "pi").is_file()


async def test_an_agent_is_installed_once(machine: Machine, npm: FakeNpm) -> None:
    first = await install("codex")
    second = await install("codex")
    assert (second.already_installed, second.installation) == (True, first.installation)
    assert len(npm.calls) == 1


async def test_a_reinstallation_replaces_the_agent_and_keeps_the_files_of_the_last_one(
    machine: Machine, npm: FakeNpm
) -> None:
    await install("codex")
    (first,) = folders("codex")
    npm.behave(version="10.0.0")
    await install("codex", reinstall=True)
    assert agent_info("codex").version == "10.0.0"
    assert first in folders("codex")  # a running agent may use them
    await install("codex", reinstall=True)
    assert len(folders("codex")) == 2
    assert first not in folders("codex")


async def test_another_version_is_installed_without_the_lockfile_and_updated_to_the_pin(
    machine: Machine, npm: FakeNpm
) -> None:
    await install("codex", versions=Versions(acp="2.5.0"))
    installed = read_installation("codex")
    assert installed is not None
    assert installed.packages == {"@agentclientprotocol/codex-acp": "2.5.0"}
    assert npm.calls[0][0][0] == "install"
    assert (await install("codex")).already_installed
    result = await update("codex")
    assert result is not None
    assert not result.already_installed
    assert npm.calls[1][0][0] == "ci"
    again = await update("codex")
    assert again is not None
    assert again.already_installed


async def test_the_version_of_the_agents_own_package_is_chosen_where_it_is_another(
    machine: Machine, npm: FakeNpm
) -> None:
    await install("pi", versions=Versions(native="0.74.2"))
    installed = read_installation("pi")
    assert installed is not None
    assert installed.packages == {"pi-acp": "0.0.34", "@earendil-works/pi-coding-agent": "0.74.2"}
    with pytest.raises(InvalidRequestError, match="part of @agentclientprotocol/codex-acp"):
        await install("codex", versions=Versions(native="1.0.0"))


@pytest.mark.parametrize(
    "version",
    ["", "latest", "1", "latest version", "1.0.0 x", "1.0 || 2.0", "--help", "../x", "file:x", "^1.0.0"],
)
async def test_a_version_that_is_not_exact_is_refused(machine: Machine, npm: FakeNpm, version: str) -> None:
    with pytest.raises(InvalidRequestError, match="exact version"):
        await install("codex", versions=Versions(acp=version))
    assert npm.calls == []


async def test_an_agent_whose_files_were_deleted_is_installed_again(machine: Machine, npm: FakeNpm) -> None:
    first = (await install("codex")).installation
    assert first is not None
    shutil.rmtree(first.folder)
    assert not (await install("codex")).already_installed
    assert b'"id": 7' in answer("codex")


async def test_an_update_installs_nothing_that_is_not_installed(machine: Machine, npm: FakeNpm) -> None:
    assert await update("codex") is None
    assert npm.calls == []


async def test_an_uninstalled_agent_leaves_no_file(machine: Machine, npm: FakeNpm) -> None:
    await install("codex")
    assert await uninstall("codex")
    assert not launcher_path("codex").exists()
    assert folders("codex") == []
    with pytest.raises(AgentNotInstalledError, match="sandbox-agent agents install codex"):
        resolve("codex")
    assert not await uninstall("codex")


async def test_a_launcher_of_another_program_is_kept(machine: Machine, npm: FakeNpm) -> None:
    launcher = machine.launcher("codex")
    text = launcher.read_text()
    assert (await install("codex")).already_installed
    for attempt in (
        install("codex", reinstall=True),
        install("codex", versions=Versions()),
        uninstall("codex"),
    ):
        with pytest.raises(ConflictError, match="delete it"):
            await attempt
    assert launcher.read_text() == text
    assert npm.calls == []


async def test_what_cannot_be_installed_says_so(machine: Machine, npm: FakeNpm) -> None:
    assert (await install("mock")).already_installed
    with pytest.raises(InvalidRequestError, match="cursor-acp"):
        await install("cursor")
    with pytest.raises(UnsupportedAgentError):
        await install("nope")
    with pytest.raises(UnsupportedAgentError):
        await uninstall("../evil")


async def test_npms_reason_is_in_the_error_without_secrets_and_paths(
    machine: Machine, npm: FakeNpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPM_TOKEN", "npm_0123456789")
    reason = (
        f"npm error code E401\nnpm error npm_0123456789 //me:pass@host {machine.data}/sandbox-agent/x\x1b[1m"
    )
    npm.behave(fail=reason)
    logged: list[str] = []
    with pytest.raises(InstallFailedError) as caught:
        await install("codex", on_log=logged.append)
    assert str(caught.value) == (
        "install failed: npm ci ended with 1: code E401; *** //***@host $XDG_DATA_HOME/sandbox-agent/x"
    )
    assert logged == ["npm error code E401", "npm error *** //***@host $XDG_DATA_HOME/sandbox-agent/x"]
    assert folders("codex") == []
    assert "codex" not in [agent for agent in agent_ids() if agent_info(agent).installed]


async def test_an_agent_that_does_not_answer_is_not_installed(machine: Machine, npm: FakeNpm) -> None:
    await install("codex")
    before = launcher_path("codex").read_text()
    npm.behave(broken=True)
    with pytest.raises(InstallFailedError, match=r"ended without an ACP response.*no such module"):
        await install("codex", reinstall=True)
    assert launcher_path("codex").read_text() == before
    assert b'"id": 7' in answer("codex")


async def test_packages_without_the_command_are_not_installed(machine: Machine, npm: FakeNpm) -> None:
    with pytest.raises(InstallFailedError, match="no command gemini"):
        await install("gemini")
    assert not launcher_path("gemini").exists()


async def test_an_old_node_is_named_with_the_extra(machine: Machine, npm: FakeNpm) -> None:
    FakeNpm(machine.path, node="18.20.1")
    with pytest.raises(
        InstallFailedError, match=r"needs Node.js 20 or newer.*18.20.1.*sandbox-agent-py\[node\]"
    ):
        await install("codex")
    (machine.path / "npm").unlink()
    with pytest.raises(InstallFailedError, match="sandbox-agent-py"):
        await install("pi")


async def test_a_launcher_whose_node_is_gone_says_how_to_repair_it(machine: Machine, npm: FakeNpm) -> None:
    await install("codex")
    launcher = launcher_path("codex")
    launcher.write_text(launcher.read_text().replace(str(machine.data / "sandbox-agent/agents"), "/nowhere"))
    run = await anyio.run_process([launcher], check=False)
    assert run.returncode == 127
    assert b"agents install codex --reinstall" in run.stderr


async def test_a_folder_with_odd_characters_is_no_problem(
    machine: Machine, npm: FakeNpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(machine.home / 'it\'s a $HOME; "x"'))
    await install("pi")
    assert b'"id": 7' in answer("pi")


def hanging(npm: FakeNpm, tmp_path: Path) -> Path:
    fifo = tmp_path / "hang"
    os.mkfifo(fifo)
    npm.behave(hang=str(fifo))
    return fifo


async def reached(fifo: Path) -> None:
    """Wait until npm is in the middle of its work."""
    await anyio.to_thread.run_sync(fifo.read_text)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_an_installation_that_is_cut_off_counts_for_nothing_and_leaves_no_process(
    machine: Machine, npm: FakeNpm, tmp_path: Path, number: signal.Signals
) -> None:
    fifo = hanging(npm, tmp_path)
    child = await anyio.open_process([sys.executable, "-c", INSTALL, "codex"])
    async with child:
        await reached(fifo)
        child.send_signal(number)
        await child.wait()
    assert not agent_info("codex").installed
    # npm was ended, although it ignores its parent: its end of the FIFO is closed.
    with anyio.fail_after(20):
        await anyio.to_thread.run_sync(_wait_without_reader, fifo)
    npm.behave()
    await install("codex")
    assert len(folders("codex")) == 1
    assert b'"id": 7' in answer("codex")


def _wait_without_reader(fifo: Path) -> None:
    while True:
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return


async def test_a_second_process_waits_and_finds_the_agent_installed(
    machine: Machine, npm: FakeNpm, tmp_path: Path
) -> None:
    fifo = hanging(npm, tmp_path)
    seen: list[Progress] = []
    waiting = anyio.Event()

    def on_progress(progress: Progress) -> None:
        seen.append(progress)
        if progress.phase == "waiting":
            waiting.set()

    with anyio.fail_after(60):
        async with await anyio.open_process([sys.executable, "-c", INSTALL, "codex"]) as child:
            await reached(fifo)
            async with anyio.create_task_group() as tasks:

                async def second() -> None:
                    assert (await install("codex", on_progress=on_progress)).already_installed

                tasks.start_soon(second)
                await waiting.wait()
                await anyio.to_thread.run_sync(fifo.write_text, "")
            assert await child.wait() == 0
    assert [progress.phase for progress in seen] == ["waiting", "installed"]
    assert len(npm.calls) == 1


async def test_a_cancelled_installation_leaves_nothing(
    machine: Machine, npm: FakeNpm, tmp_path: Path
) -> None:
    fifo = hanging(npm, tmp_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(install, "codex")
        await reached(fifo)
        tasks.cancel_scope.cancel()
    assert folders("codex") == []
    assert not agent_info("codex").installed


async def test_an_npm_that_hangs_is_ended(
    machine: Machine, npm: FakeNpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging(npm, tmp_path)
    monkeypatch.setattr("sandbox_agent.agents.install.command.COMMAND_SECONDS", 0.5)
    with pytest.raises(InstallFailedError, match=r"npm ci did not end within 0\.5 s"):
        await install("codex")
    assert folders("codex") == []


async def test_an_agent_that_never_answers_is_not_installed(
    machine: Machine, npm: FakeNpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm.behave(agent="#!/bin/sh\necho a line that is no answer\nexec sleep 1000\n")
    monkeypatch.setattr("sandbox_agent.agents.install.probe.PROBE_SECONDS", 0.5)
    with pytest.raises(InstallFailedError, match=r"codex did not answer within 0\.5 s"):
        await install("codex")
    assert folders("codex") == []


async def test_a_lock_that_another_process_keeps_is_an_error(
    machine: Machine, npm: FakeNpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    await install("codex")
    monkeypatch.setattr("sandbox_agent.agents.install.installer.LOCK_SECONDS", 0.5)
    with (agent_folder("codex") / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InstallFailedError, match="another process has been installing codex"):
            await install("codex")
    assert (await install("codex")).already_installed


async def test_a_data_folder_that_cannot_be_written_is_an_error(
    machine: Machine, npm: FakeNpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = machine.home / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(blocked))
    with pytest.raises(InstallFailedError, match="cannot be written"):
        await install("codex")


@pytest.mark.parametrize(
    "agent", [agent for agent in CATALOGUE.values() if agent.npm], ids=lambda agent: agent.id
)
def test_a_lockfile_has_the_pins_of_the_catalogue_and_a_hash_for_every_package(agent: Agent) -> None:
    lock = lock_of(agent.id)
    assert agent.npm is not None
    assert lock.packages[""]["dependencies"] == agent.npm.packages
    for name, version in agent.npm.packages.items():
        assert lock.packages[f"node_modules/{name}"]["version"] == version
    for path, entry in lock.packages.items():
        if path:
            assert entry["integrity"].startswith("sha512-"), path
            assert entry["resolved"].startswith("https://registry.npmjs.org/"), path


@pytest.mark.parametrize(
    "agent", [agent for agent in CATALOGUE.values() if agent.npm], ids=lambda agent: agent.id
)
def test_a_lockfile_has_the_programs_of_all_platforms_or_names_them_as_missing(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, set[str]] = {}
    for platform in PLATFORMS:
        monkeypatch.setattr(npm_module, "current_platform", lambda platform=platform: platform)
        lock = lock_of(agent.id)
        system, machine = platform.split("-")
        names = {
            path.rpartition("node_modules/")[2]
            for path, entry in lock.packages.items()
            if system in entry.get("os", ()) and machine in entry.get("cpu", ())
        }
        assert not names & lock.missing.keys()
        assert all(re.fullmatch(r"[0-9][0-9a-z.-]*", version) for version in lock.missing.values())
        # "@openai/codex-linux-x64" is the program of "@openai/codex" for that platform.
        programs = [re.fullmatch(rf"(.+?)-?{system}.*", name) for name in {*names, *lock.missing}]
        found[platform] = {match[1] for match in programs if match is not None}
    assert len({frozenset(programs) for programs in found.values()}) == 1, found


def test_the_docs_name_the_agents_whose_lockfile_lacks_programs() -> None:
    folder = files("sandbox_agent.agents.install").joinpath("locks")
    partly: set[str] = set()
    for agent in CATALOGUE.values():
        if agent.npm is not None:
            missing = json.loads(folder.joinpath(f"{agent.id}.json").read_bytes())["missing"]
            assert missing["linux-x64"] == {}
            partly |= {agent.title} if any(missing[platform] for platform in PLATFORMS) else set()
    page = " ".join((Path(__file__).parents[3] / "docs/agents.md").read_text().split())
    named = re.search(r"but for the programs of ([^.]+?) on Linux on arm64 and on macOS", page)
    assert named is not None
    names = {name for name in partly if name.split()[0] in named[1]}
    assert names == partly
    assert len(re.split(", | and ", named[1])) == len(partly)


@pytest.mark.parametrize("agent", [agent for agent in CATALOGUE.values() if agent.pypi], ids=lambda a: a.id)
def test_the_requirements_have_the_pin_of_the_catalogue_and_a_hash_for_every_package(agent: Agent) -> None:
    lines = read_requirements(agent.id).splitlines()
    assert agent.pypi is not None
    for name, version in {**agent.pypi.packages, **agent.pypi.also}.items():
        assert len([line for line in lines if line.startswith(f"{name}=={version} --hash")]) == 1
    for line in lines:
        assert re.fullmatch(r"[a-z0-9._-]+==\S+( ; [^#]+)?( --hash=sha256:[0-9a-f]{64})+", line), line
