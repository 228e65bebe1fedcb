"""The command line with sandboxes in containers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import anyio
import pytest

from sandbox_agent import SandboxAgent
from tests.support import shell_agent
from tests.support.engines import IMAGE, Engine

pytestmark = [pytest.mark.anyio, pytest.mark.sandboxes]


async def run(engine: Engine, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a command of ours against an engine."""
    env = {**os.environ, "DOCKER_HOST": "unix:///missing", "CONTAINER_HOST": "unix:///missing"}
    env["DOCKER_HOST" if engine.name == "docker" else "CONTAINER_HOST"] = engine.host
    command = [sys.executable, "-m", "sandbox_agent.cli.main", *arguments]
    return await anyio.run_process(command, cwd=cwd, env=env, check=False)


async def test_sandboxes_are_listed_looked_into_and_destroyed(engine: Engine) -> None:
    async with SandboxAgent.start(sandbox=engine.provider()) as sdk:
        sandbox_id = str(sdk.sandbox_id)
        listed = await run(engine, "sandboxes", "list", "--engine", engine.name)
        assert sandbox_id.encode() in listed.stdout
        assert (
            b'"state":"running"'
            in (await run(engine, "sandboxes", "list", "--engine", engine.name, "--json")).stdout
        )
        assert b"sandbox-agent listens on" in (await run(engine, "sandboxes", "logs", sandbox_id)).stdout
        done = await run(engine, "sandboxes", "exec", sandbox_id, "--", "sh", "-c", "id -u; exit 3")
        assert (done.returncode, done.stdout) == (3, b"1000\n")
        assert (await run(engine, "sandboxes", "destroy", sandbox_id)).returncode == 0
        assert (
            sandbox_id.encode()
            not in (await run(engine, "sandboxes", "list", "--engine", engine.name)).stdout
        )
    assert b"no longer exists" in (await run(engine, "sandboxes", "logs", sandbox_id)).stderr


async def test_run_has_the_working_directory_as_its_workspace(engine: Engine) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary)
        (project / "agent.py").write_bytes(await anyio.Path(shell_agent.__file__).read_bytes())
        os.chown(project, 1000, 1000)
        arguments = ["--agent", "shell", "--agent-command", "shell=python3 /workspace/agent.py"]
        prompt = "pwd; echo made > file"
        options = ["--sandbox", engine.name, "--image", IMAGE]
        done = await run(engine, "run", prompt, *arguments, *options, cwd=project)
        assert done.stdout.decode().strip() == "/workspace\n[0]", done.stderr
        assert (project / "file").read_text() == "made\n"


async def test_an_image_is_built_with_a_name(engine: Engine) -> None:
    options = ["--engine", engine.name, "--base", IMAGE, "--network", "host", "--quiet"]
    done = await run(engine, "image", "build", "--tag", "sandbox-agent-built:1", *options)
    assert done.stdout == b"sandbox-agent-built:1\n", done.stderr
    async with SandboxAgent.start(sandbox=engine.provider(image="sandbox-agent-built:1")) as sdk:
        assert (await sdk.get_health()).status == "ok"
        await sdk.destroy_sandbox()
