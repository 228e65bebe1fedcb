"""What an agent in a jail can reach, tried by an agent that runs shell commands."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from sandbox_agent import (
    JailProvider,
    Limits,
    Mount,
    SandboxAgent,
    SandboxAgentError,
    SandboxDestroyedError,
    Session,
    jail,
)
from sandbox_agent.cgroups import PREFIX, find_parents
from sandbox_agent.wire.acp import AgentMessageChunk, TextContent
from tests.interop.leftovers import Leftovers
from tests.support import shell_agent
from tests.support.cgroups import needs_cgroups
from tests.support.servers import put_launcher

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.sandboxes,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="JAIL NOT TESTED: bwrap is not on PATH"),
]

SECRET = "a secret of the host"


class Shell:
    """A session with an agent in a jail that runs commands."""

    def __init__(self, sdk: SandboxAgent, session: Session) -> None:
        self.sdk, self.session = sdk, session

    async def run(self, command: str) -> str:
        """Run a command and return its output, which ends with its exit code in brackets."""
        said = ""
        async for event in self.session.stream(command):
            if isinstance(event.update, AgentMessageChunk) and isinstance(event.update.content, TextContent):
                said += event.update.content.text
        return said.rsplit("\n\n", 1)[-1]


def folders() -> list[Path]:
    """Return the folders of jails."""
    return list(Path(tempfile.gettempdir()).glob("sandbox-agent-jail-*"))


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with a secret, and the agent in the data folder."""
    home = tmp_path / "host-home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id").write_text(SECRET)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("DEPLOY_KEY", SECRET)
    program = tmp_path / "data/sandbox-agent/bin/shell_agent.py"
    put_launcher(tmp_path / "data", "shell", [sys.executable, str(program)])
    shutil.copy(shell_agent.__file__, program)
    with tempfile.TemporaryDirectory() as temporary:  # its path is short enough for a socket
        monkeypatch.setattr(tempfile, "tempdir", temporary)
        yield tmp_path


@contextlib.asynccontextmanager
async def jailed(**options: Any) -> AsyncGenerator[Shell]:
    """An agent in a jail."""
    async with SandboxAgent.start(sandbox=jail(log="silent", **options)) as sdk:
        try:
            yield Shell(sdk, await sdk.create_session(agent="shell"))
        finally:
            await sdk.destroy_sandbox()


@pytest.mark.parametrize("network", [True, False])
async def test_the_workspace_is_shared_and_the_home_is_empty(host: Path, *, network: bool) -> None:
    workspace = host / "project"
    workspace.mkdir()
    (workspace / "in").write_text("from the host")
    async with jailed(workspace=workspace, network=network) as shell:
        assert await shell.run("pwd; cat in; echo made > out; ls ~") == "/workspace\nfrom the host[0]"
        assert (workspace / "out").read_text() == "made\n"
        assert await shell.run("id -un; echo $HOME; touch ~/x /tmp/x && echo written") == (
            "agent\n/home/agent\nwritten\n[0]"
        )
    assert sorted(path.name for path in workspace.iterdir()) == ["in", "out"]


async def test_files_of_the_host_are_not_there(host: Path) -> None:
    async with jailed() as shell:
        found = await shell.run(
            f"cat {host}/host-home/.ssh/id; cat /root/.ssh/*; cat /etc/shadow; ls /home /mnt"
        )
        assert SECRET not in found
        assert "root:" not in found
        found = await shell.run(
            "grep -rls 'a secret of' / --exclude-dir=proc --exclude-dir=sys --exclude-dir=usr"
        )
        assert found in ("[1]", "[2]")
        assert "/root" not in await shell.run("cat /etc/passwd")


async def test_the_system_and_programs_are_read_only(host: Path) -> None:
    paths = [
        "/x",
        "/usr/x",
        "/etc/x",
        f"{sys.prefix}/x",
        f"{host}/data/sandbox-agent/bin/x",
        "/run/x",
        "/dev/x",
    ]
    async with jailed() as shell:
        for path in paths:
            assert (await shell.run(f"touch {path} 2>/dev/null")).endswith("[1]"), path
        await shell.run("rm -rf /usr /etc /bin")
        assert await shell.run("true") == "[0]"


async def test_an_environment_in_the_workspace_is_read_only(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Path(sys.prefix).parent
    async with jailed(workspace=workspace) as shell:
        name = Path(sys.prefix).name
        assert (await shell.run(f"ls {name}/bin/python >/dev/null; touch {name}/x")).endswith("[1]")


async def test_a_program_deep_in_the_workspace_cannot_be_replaced(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = host / "work" / "project" / "node" / "bin" / "node"
    (node.parents[1] / "include" / "node").mkdir(parents=True)
    node.parent.mkdir()
    node.write_text("good")
    node.chmod(0o755)
    monkeypatch.setenv("PATH", f"{node.parent}:{os.environ['PATH']}")
    (host / "link").symlink_to(host / "work")
    mounts = [Mount(host / "link", "/data", writable=True)]
    async with jailed(workspace=host / "link", mounts=mounts) as shell:
        for folder in ("/workspace", "/data"):
            assert not (await shell.run(f"mv {folder}/project {folder}/old")).endswith("[0]")
            assert not (await shell.run(f"rm -rf {folder}/project")).endswith("[0]")
            assert not (await shell.run(f"echo bad > {folder}/project/node/bin/node")).endswith("[0]")
        assert await shell.run("echo new > /workspace/project/file") == "[0]"
    assert node.read_text() == "good"
    assert (host / "work" / "project" / "file").read_text() == "new\n"


async def test_a_program_of_node_in_the_home_does_not_show_the_home(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = host / "host-home" / "bin" / "node"
    node.parent.mkdir()
    node.write_text("#!/bin/sh\necho node\n")
    node.chmod(0o755)
    monkeypatch.setenv("PATH", f"{node.parent}:{os.environ['PATH']}")
    async with jailed() as shell:
        assert await shell.run("node") == "node\n[0]"
        assert SECRET not in await shell.run(f"cat {host}/host-home/.ssh/id")


async def test_an_environment_that_has_the_home_is_refused(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(host))
    with pytest.raises(SandboxAgentError, match="has your home: use a virtual environment"):
        await jail(log="silent").create()
    assert not folders()


async def test_what_an_agent_leaves_in_its_home_is_deleted() -> None:
    code = "import os; [(os.mkdir('d'), os.chdir('d')) for _ in range(1500)]"
    async with jailed() as shell:
        assert await shell.run(f'cd ~ && {sys.executable} -c "{code}"') == "[0]"
        assert await shell.run("mkdir -p ~/mod/x && touch ~/mod/x/f && chmod -R a-w ~/mod") == "[0]"
    assert not folders()


async def test_a_socket_that_an_agent_puts_in_its_place_is_not_used() -> None:
    async with jailed(network=False) as shell:
        with socket.socket(socket.AF_UNIX) as listener:
            short = Path(tempfile.gettempdir()) / "s"
            listener.bind(str(short))
            listener.listen()
            listener.setblocking(False)
            socket_path = "/run/sandbox-agent/server.sock"
            assert (
                await shell.run(f"mv {socket_path} {socket_path}.old; ln -s {short} {socket_path}") == "[0]"
            )
            provider = shell.sdk.sandbox
            assert provider is not None
            raw_id = str(shell.sdk.sandbox_id).removeprefix("jail/")
            transport = await provider.get_transport(raw_id)
            async with httpx2.AsyncClient(transport=transport) as client:
                with pytest.raises(httpx2.ConnectError, match="is not its server"):
                    await client.get("http://sandbox/v1/health", headers={"Authorization": "Bearer secret"})
            assert await shell.run(f"mv {socket_path}.old {socket_path}") == "[0]"


async def test_mounts_are_read_only_unless_they_say_otherwise(host: Path) -> None:
    for name in ("read", "write"):
        (host / name).mkdir()
        (host / name / "file").write_text(name)
    mounts = [Mount(host / "read", "/data/read"), Mount(host / "write", "/data/write", writable=True)]
    async with jailed(mounts=mounts) as shell:
        assert await shell.run("cat /data/*/file") == "readwrite[0]"
        assert (await shell.run("echo new > /data/write/file; echo new > /data/read/file")).endswith("[2]")
    assert (host / "write" / "file").read_text() == "new\n"
    assert (host / "read" / "file").read_text() == "read"


async def test_processes_of_the_host_are_not_there() -> None:
    async with jailed() as shell, await anyio.open_process(["sleep", "600"]) as other:
        try:
            assert (await shell.run(f"kill -9 {other.pid} {os.getpid()}")).endswith("[1]")
            found = await shell.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
            assert "-m pytest" not in found
            assert "sleep 600" not in found
            assert other.returncode is None
        finally:
            other.kill()


async def test_there_are_no_privileges() -> None:
    async with jailed() as shell:
        found = await shell.run("grep -E 'CapEff|CapPrm|CapInh|CapAmb|NoNewPrivs' /proc/self/status")
        values = dict(line.split(":\t") for line in found.removesuffix("[0]").strip().splitlines())
        assert values.pop("NoNewPrivs") == "1"
        assert {int(value, 16) for value in values.values()} == {0}
        assert not (await shell.run("unshare --user --map-root-user true 2>&1")).endswith("[0]")
        assert not (await shell.run("mount -t tmpfs x /tmp")).endswith("[0]")


async def test_the_environment_has_no_secrets_of_the_host() -> None:
    async with jailed(env={"GIVEN": "given"}) as shell:
        found = await shell.run("env; cat /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'")
        assert "GIVEN=given" in found
        assert SECRET not in found
        raw_id = str(shell.sdk.sandbox_id).removeprefix("jail/")
        assert shell.sdk.sandbox is not None
        token = await shell.sdk.sandbox.get_token(raw_id)
        assert token
        assert token not in found


@pytest.mark.parametrize("network", [True, False])
async def test_a_jail_without_a_network_reaches_nothing(*, network: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with jailed(network=network) as shell:
            code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)"
            assert (await shell.run(f'{sys.executable} -c "{code}" 2>/dev/null')) == (
                "[0]" if network else "[1]"
            )
            found = await shell.run("cat /proc/net/dev")
            devices = {line.split(":")[0].strip() for line in found.splitlines() if ":" in line}
            assert network or devices == {"lo"}


async def test_an_agent_cannot_kill_or_stop_the_server() -> None:
    async with jailed() as shell:
        await shell.run("kill -9 1; kill -STOP 1")
        assert await shell.run("echo still here") == "still here\n[0]"


@pytest.mark.parametrize("network", [True, False])
async def test_a_server_that_is_killed_is_started_again_with_its_home(*, network: bool) -> None:
    async with jailed(network=network) as shell:
        await shell.run("echo kept > ~/state")
        provider = shell.sdk.sandbox
        assert isinstance(provider, JailProvider)
        pid = provider.pid(str(shell.sdk.sandbox_id).removeprefix("jail/"))
        assert pid is not None
        os.killpg(pid, signal.SIGKILL)
        assert await shell.run("cat ~/state") == "kept\n[0]"


async def test_destroying_ends_all_processes_and_deletes_the_folder() -> None:
    marked = Leftovers()
    async with jailed(env=marked.env) as shell:
        escape = "trap '' TERM HUP; echo > started; exec sleep 600"
        await shell.run(f'setsid sh -c "{escape}" >/dev/null 2>&1 & while [ ! -e started ]; do :; done')
        assert marked.find("sleep")
        assert folders()
    await marked.gone()
    assert not folders()


# Prints that the jail's agent works, and waits.
PROGRAM = """
import asyncio
from sandbox_agent import SandboxAgent, jail

async def main():
    async with SandboxAgent.start(sandbox=jail(log="silent", network=False)) as sdk:
        session = await sdk.create_session(agent="shell")
        await session.prompt("setsid sleep 600 >/dev/null 2>&1 &")
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_program_that_is_killed_leaves_no_process_and_the_next_jail_deletes_its_folder() -> None:
    marked = Leftovers()
    env = {**os.environ, **marked.env, "TMPDIR": tempfile.gettempdir()}
    async with await anyio.open_process([sys.executable, "-c", PROGRAM], env=env, stderr=None) as program:
        assert program.stdout is not None
        assert (await program.stdout.receive()).strip() == b"ready"
        (left,) = folders()
        program.kill()
    await marked.gone()
    async with jailed():
        assert left not in folders()


def jail_groups() -> list[Path]:
    """Return the control groups of jails."""
    parents = set(find_parents(["memory", "pids", "cpu"]).values())
    return [group for parent in parents for group in parent.glob(f"{PREFIX}jail-*")]


def own_groups(program: int) -> set[Path]:
    """Return the groups of jails that a process started: others may run at the same time."""

    def is_own(pid: int) -> bool:
        while pid > 1 and pid != program:
            with contextlib.suppress(OSError):  # it has ended
                pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
                continue
            return False
        return pid > 1

    groups = {group: group / "cgroup.procs" for group in jail_groups()}
    return {group for group, pids in groups.items() if any(map(is_own, map(int, pids.read_text().split())))}


@needs_cgroups
async def test_what_runs_in_a_jail_cannot_exhaust_the_memory_and_pids_of_the_host() -> None:
    async with jailed(limits=Limits(memory="300m", pids=60, cpus=1.5)) as shell:
        own = own_groups(os.getpid())
        assert {group.parent for group in own} == set(find_parents(["memory", "pids", "cpu"]).values())
        hog = f"{sys.executable} -c 'held = bytearray(900 << 20)'"
        assert (await shell.run(hog)).endswith("[137]")
        forks = "for i in $(seq 200); do sleep 600 >/dev/null 2>&1 & done; echo all"
        assert "all" not in await shell.run(forks)
        (peak,) = [int(path.read_text()) for group in own for path in group.glob("pids.current")]
        assert peak <= 60
        quotas = [
            path for group in own for name in ("cpu.max", "cpu.cfs_quota_us") for path in group.glob(name)
        ]
        assert [path.read_text().split()[0] for path in quotas] == ["150000"]
    assert not own & set(jail_groups())


@needs_cgroups
async def test_an_agent_in_a_jail_cannot_leave_or_change_its_limits() -> None:
    async with jailed(limits=Limits(pids=60)) as shell:
        assert (await shell.run("ls /sys/fs/cgroup")).endswith("[2]")
        mounted = await shell.run(
            "mkdir -p /tmp/c && mount -t cgroup2 none /tmp/c; mount -t cgroup -o pids none /tmp/c"
        )
        assert not mounted.endswith("[0]")


@needs_cgroups
async def test_the_next_jail_removes_the_group_of_a_program_that_was_killed() -> None:
    marked = Leftovers()
    env = {**os.environ, **marked.env, "TMPDIR": tempfile.gettempdir()}
    limited = PROGRAM.replace("=jail(", "=jail(limits=Limits(pids=200), ").replace(
        ", jail\n", ", Limits, jail\n"
    )
    async with await anyio.open_process([sys.executable, "-c", limited], env=env, stderr=None) as program:
        assert program.stdout is not None
        assert (await program.stdout.receive()).strip() == b"ready"
        left = own_groups(program.pid)
        assert left
        program.kill()
    await marked.gone()
    async with jailed():
        assert not left & set(jail_groups())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hides control groups")
def test_limits_that_cannot_be_enforced_are_refused() -> None:
    code = "from sandbox_agent import Limits, jail; jail(limits=Limits(memory='1g'))"
    hidden = ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs none /sys/fs/cgroup; exec "$@"', "sh"]
    done = subprocess.run([*hidden, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "SandboxAgentError: jail(limits=...) needs a control group, and none can be created" in done.stderr


@pytest.mark.parametrize("wrong", [{"memory": "much"}, {"memory": 0}, {"pids": 0}, {"cpus": -1.0}])
def test_limits_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"invalid size|is not positive"):
        Limits(**wrong)


async def test_jails_at_the_same_time_have_nothing_in_common() -> None:
    async with jailed() as one, jailed(network=False) as two:
        await one.run("echo one > file; echo one > ~/file; echo one > /tmp/file")
        assert await two.run("ls ~ /tmp /workspace | grep file") == "[1]"


async def test_a_jail_is_found_again_by_its_provider_and_not_when_it_is_gone() -> None:
    provider = jail(log="silent", network=False)
    async with SandboxAgent.start(sandbox=provider) as sdk:
        sandbox_id = sdk.sandbox_id
    async with SandboxAgent.start(sandbox=provider, sandbox_id=sandbox_id) as sdk:
        assert (await sdk.get_health()).status == "ok"
        await sdk.destroy_sandbox()
    await provider.destroy(str(sandbox_id).removeprefix("jail/"))  # does nothing
    with pytest.raises(SandboxDestroyedError):
        await SandboxAgent.start(sandbox=provider, sandbox_id=sandbox_id)


async def test_run_has_the_working_directory_as_its_workspace(host: Path) -> None:
    (host / "project").mkdir()
    command = ["run", "pwd; echo made > file", "--agent", "shell", "--sandbox", "jail"]
    done = await anyio.run_process(
        [sys.executable, "-m", "sandbox_agent.cli.main", *command], cwd=host / "project"
    )
    assert done.stdout.decode().strip() == "/workspace\n[0]"
    assert (host / "project" / "file").read_text() == "made\n"
