"""An agent of the server's own user finds the server's token nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from sandbox_agent import SandboxAgent, local
from tests.server.talk import envelope, talk
from tests.support.servers import ServerProcess, free_port, our_server, put_launcher
from tests.support.unprivileged import unprivileged

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc"),
]

# Not written anywhere but in what a test passes on.
TOKEN = "-".join(["found", "nowhere", "0123456789"])
DEBUG = {"SANDBOX_AGENT_ALLOW_DEBUGGER": "1"}
# Looks for a word, its argument spelt backwards, in its ancestors: its keeper, the warden and the server.
SPY = """
import json, os, sys
sys.stdin.readline()
word, found, pid = sys.argv[2][::-1].encode(), [], os.getppid()
for kind in ("keeper", "warden", "server", *sys.argv[3:]):
    for name in ("cmdline", "environ", "mem"):
        try:
            data = b""
            if name == "mem":
                with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
                    for line in maps:
                        if " rw" in line:
                            begin, end = (int(each, 16) for each in line.split()[0].split("-"))
                            memory.seek(begin)
                            data += memory.read(end - begin)
            else:
                with open(f"/proc/{pid}/{name}", "rb") as file:
                    data = file.read()
            found.append([kind, name, "here" if word in data else "not here"])
        except PermissionError:
            found.append([kind, name, "refused"])
    with open(f"/proc/{pid}/stat") as file:
        pid = int(file.read().rpartition(")")[2].split()[1])
with open(sys.argv[1], "w") as file:
    json.dump(found, file)
if sys.argv[3:]:
    sys.exit("seen")
print('{"id": 1, "result": null}', flush=True)
sys.stdin.read()
"""


class Seen(NamedTuple):
    """What a spy saw of a file of a process."""

    process: str
    file: str
    what: str


def server_of(folder: Path, *options: str, env: Mapping[str, str]) -> ServerProcess:
    """Return a server of an ordinary user with the token, and the agent ``spy``."""
    port = free_port()
    command = [sys.executable, "-m", "sandbox_agent.cli.main", "server", "--port", str(port), *options]
    put_spy(folder)
    variables = {"XDG_DATA_HOME": str(folder / "data"), **env}
    return ServerProcess(
        unprivileged(*command), port=port, log=folder / "server.log", env=variables, token=TOKEN
    )


def put_spy(folder: Path, *programs: str) -> None:
    """Put the spy where servers find it. It also looks at as many ancestors of the server as are named."""
    program = folder / "spy.py"
    program.write_text(SPY)
    command = [sys.executable, "-S", str(program), str(folder / "seen"), TOKEN[::-1], *programs]
    put_launcher(folder / "data", "spy", command)


async def spy(server: ServerProcess) -> list[Seen]:
    """Start the agent and return what it saw."""
    async with talk(server, open_=False) as talking:
        response = await talking.post(envelope("look", request_id=1), agent="spy")
        assert response.status_code == 200, response.text
    return [Seen(*each) for each in json.loads((server.log.parent / "seen").read_text())]


def pass_token(folder: Path, how: str) -> tuple[Sequence[str], Mapping[str, str]]:
    """Return options and variables with the token."""
    (folder / "token").write_text(f"{TOKEN}\n")
    (folder / "token").chmod(0o600)
    options = {
        "separate": ["--token", TOKEN],
        "joined": [f"--token={TOKEN}"],
        "short": [f"-t{TOKEN}"],
        "file": ["--token-file", str(folder / "token")],
        "variable": [],
    }
    return options[how], {"SANDBOX_AGENT_TOKEN": TOKEN} if how == "variable" else {}


WAYS = ["separate", "joined", "short", "file", "variable"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.soak_with("short", "joined", "separate")
async def test_an_agent_reads_the_token_of_no_process(tmp_path: Path, how: str) -> None:
    options, env = pass_token(tmp_path, how)
    with server_of(tmp_path, *options, env=env) as server:
        assert await spy(server) == [
            Seen(process, file, "not here" if file == "cmdline" else "refused")
            for process in ("keeper", "warden", "server")
            for file in ("cmdline", "environ", "mem")
        ]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.soak_with("short", "joined", "separate")
async def test_only_the_server_has_the_token_and_only_in_its_memory(tmp_path: Path, how: str) -> None:
    """With a debugger allowed, the spy sees everything: the other test would notice a token."""
    options, env = pass_token(tmp_path, how)
    with server_of(tmp_path, *options, env={**env, **DEBUG}) as server:
        assert await spy(server) == [
            Seen(process, file, "here" if (process, file) == ("server", "mem") else "not here")
            for process in ("keeper", "warden", "server")
            for file in ("cmdline", "environ", "mem")
        ]


def test_the_command_that_starts_a_server_hides_its_memory(tmp_path: Path) -> None:
    put_spy(tmp_path, "run")
    command = [sys.executable, "-m", "sandbox_agent", "run", "hello", "--agent", "spy"]
    env = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data")}
    subprocess.run(unprivileged(*command), env=env, capture_output=True, timeout=60)
    seen = [Seen(*each) for each in json.loads((tmp_path / "seen").read_text())]
    assert {each.process for each in seen if each.what == "refused"} == {"keeper", "warden", "server", "run"}
    assert len([each for each in seen if each.what == "refused"]) == 8


# Shows its command line when the options are read.
SHOW = """
import sys
from sandbox_agent.cli import main, mirror, remote, server, stores
def show(*_, **__):
    print(open("/proc/self/cmdline").read())
    sys.exit()
remote.run_remote = mirror.run_remote = server.serve = stores.open_store = show
main.main()
"""
URL = f"postgres://me:{TOKEN}@127.0.0.1:1/none"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["server", "--port", "0", "--store", URL], "--store\0***"),
        (["server", f"--store={URL}", "--port=0", f"-t{TOKEN}"], "--port=0\0-t***"),
        (["tail", "x", f"--token={TOKEN}"], "--token=***"),
        (["mirror", "x", "--into", URL], "--into\0***"),
        (["sessions", "list", "--store", URL], "--store\0***"),
    ],
)
def test_the_command_line_shows_neither_tokens_nor_passwords(arguments: list[str], shown: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW, *arguments], capture_output=True, text=True, timeout=60
    )
    assert shown in done.stdout, done.stderr
    assert TOKEN not in done.stdout


async def test_a_local_server_has_its_token_neither_in_its_arguments_nor_its_environment() -> None:
    provider = local(log="silent", token=TOKEN, env=DEBUG)
    async with SandboxAgent.start(sandbox=provider) as sdk:
        process = Path(f"/proc/{provider.pid((sdk.sandbox_id or '').removeprefix('local/'))}")
        assert await sdk.list_agents()
        seen = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        await sdk.destroy_sandbox()
    assert b"--token-file" in seen
    assert TOKEN.encode() not in seen


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o604])
async def test_a_token_file_that_others_may_read_is_a_warning(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\r\n")
    file.chmod(mode)
    server = server_of(tmp_path, "--token-file", str(file), env={"SANDBOX_AGENT_TOKEN": "another-one"})
    with server:
        assert (await spy(server))[0].process == "keeper"
    assert ("other users can read the token file" in server.log.read_text()) == (mode != 0o600)


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0", "<(cat token)"])
async def test_a_token_can_come_from_a_descriptor(tmp_path: Path, name: str) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    server = server_of(tmp_path, "--token-file", "HERE", env={})
    redirected = f'"${{@:1:$#-1}}" {name} < token'
    server.wrap(lambda command: ["bash", "-c", f'cd "{tmp_path}" && exec {redirected}', "bash", *command])
    with server:
        assert [each.what for each in await spy(server)].count("here") == 0
    assert "other users" not in server.log.read_text()


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (None, [], "can't be read: No such file"),
        (b"", [], "the token is empty: pass --token-file FILE"),
        (b"short\n", [], "at least 8"),
        (b"a token of\ntwo lines", [], "one line of printable ASCII"),
        (b"\xff\xfe\x00", [], "can't be read: it is not text"),
        (b"x" * 100_000, [], "one line of printable ASCII"),
        (b"a-good-token", ["--token", "another-token"], "exclude each other"),
    ],
)
def test_a_token_file_that_cannot_be_used_is_refused_at_the_start(
    tmp_path: Path, content: bytes | None, options: list[str], says: str
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    command = [sys.executable, "-m", "sandbox_agent", "server", "--port", "0", "--store", "memory"]
    done = subprocess.run(
        [*command, "--token-file", str(file), *options], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 64
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_without_a_token_says_who_can_use_it(tmp_path: Path) -> None:
    with our_server(tmp_path) as server:
        pass
    (line,) = [line for line in server.log.read_text().splitlines() if "no token" in line]
    assert "every process of this machine can use this server, also its agents" in line
