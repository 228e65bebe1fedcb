"""Starts an installed agent once and reads its response to ACP's ``initialize``."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from sandbox_agent.agents.install.command import credential_names, path_with, redact, spawned
from sandbox_agent.errors import InstallFailedError
from sandbox_agent.runtime.process import SpawnError
from sandbox_agent.runtime.warden import Warden
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, loads, members

# The first start of an agent on a loaded machine.
PROBE_SECONDS = 60.0
_MAX_LINE_BYTES = 1024 * 1024
_REQUEST: Final = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":1,"clientCapabilities":{}}}\n'
)


async def probe_agent(agent_id: str, argv: list[str], on_path: Path | None, warden: Warden) -> str | None:
    """Return the version that the agent reports, or None if it reports none.

    The agent gets an empty home folder and no credentials.

    Raises:
        InstallFailedError: It does not answer as ACP requires. The message has the end of its stderr.
    """
    home = Path(await anyio.to_thread.run_sync(lambda: tempfile.mkdtemp(prefix="sandbox-agent-")))
    env = {"HOME": str(home)}
    for name in ("DATA", "CONFIG", "CACHE", "STATE"):
        env[f"XDG_{name}_HOME"] = str(home / name.lower())
    if on_path is not None:
        env["PATH"] = path_with(on_path)
    answer: dict[str, Any] = {}
    stderr = ""
    try:
        with anyio.move_on_after(PROBE_SECONDS) as timeout:
            async with spawned(argv, home, warden, env, credential_names()) as process:
                with contextlib.suppress(BrokenPipeError):  # it has ended: its stderr says why
                    await process.write(_REQUEST)
                rest = b""
                while not answer and len(rest) < _MAX_LINE_BYTES and (data := await process.stdout.read()):
                    *lines, rest = (rest + data).split(b"\n")
                    answer = next((result for line in lines if (result := _result(line))), answer)
                if not answer:
                    await process.stop()
                    process.drain_stderr()
                stderr = process.stderr_tail
    except (OSError, SpawnError) as error:
        raise InstallFailedError(
            f"install failed: the installed {agent_id} cannot be started: {redact(str(error))}",
            agent=agent_id,
        ) from error
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(home, ignore_errors=True))
    if not answer:
        how = f"did not answer within {PROBE_SECONDS:g} s" if timeout.cancelled_caught else "ended"
        said = "; ".join(line for line in map(redact, stderr.splitlines()[-5:]) if line) or "nothing"
        raise InstallFailedError(
            f"install failed: the installed {agent_id} {how} without an ACP response to initialize. "
            f"Its stderr: {said}",
            agent=agent_id,
        )
    version = members(answer.get("agentInfo")).get("version")
    return version if isinstance(version, str) and version else None


def _result(line: bytes) -> dict[str, Any]:
    """Return the result in a line with the response, else an empty dict."""
    try:
        message = members(loads(line))
    except InvalidEnvelopeError:
        return {}
    result = members(message.get("result"))
    return result if message.get("id") == 1 and "protocolVersion" in result else {}
