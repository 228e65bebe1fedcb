"""The proxy of a sandbox with allowed hosts: a container of its own, beside one that has no network.

Both see a folder of this machine: the proxy listens on a socket in it, and the sandbox cannot write to it.
The proxy lives as long as the sandbox's server: the engine starts it again when it was killed, and it ends by
itself when no server is connected to it any more.
"""

from __future__ import annotations

import asyncio
import shlex
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers.egress_process import PROXY_VARIABLES
from sandbox_agent.providers.engine.api import EngineApi
from sandbox_agent.providers.engine.container import (
    HOME,
    PROXY_FOLDER,
    PROXY_LABEL,
    PROXY_SOCKET,
    SECRET_FILE,
    SECRET_FOLDER,
    VERSION,
    VERSION_LABEL,
    ContainerOptions,
    hardened,
    make_socket_folder,
    proxy_folder,
    secret_archive,
)

# Of the sandbox, in the labels of its proxy's container.
SANDBOX_LABEL = "sandbox-agent.proxy-of"
# Seconds after which a proxy ends to which no server is connected. One that starts takes less: the provider
# gives up after 60.
ALONE = 120
_MEMORY = 256 * 1024 * 1024
_PIDS = 128
_POLL_INTERVAL = 0.02
# A proxy that fails as often at its start has failed.
_RESTARTS = 2
_START_TIMEOUT = 30.0
_LOG_LINES = 20
_SCRIPT = f"""\
[ ! -f {SECRET_FOLDER}/{SECRET_FILE} ] || . {SECRET_FOLDER}/{SECRET_FILE}
exec sandbox-agent egress-proxy --uds {PROXY_FOLDER}/{PROXY_SOCKET} "$@"
"""


def _name(sandbox: str) -> str:
    return f"{sandbox}-proxy"


async def start_proxy(api: EngineApi, options: ContainerOptions, sandbox: str, user: str) -> None:
    """Make a sandbox's proxy and start it.

    Raises:
        SandboxAgentError: The engine refused it.
    """
    folder = proxy_folder(sandbox)
    await asyncio.to_thread(make_socket_folder, folder, user)
    body = _body(options, sandbox, user, folder)
    await api.request("POST", "/containers/create", params={"name": _name(sandbox)}, body=body)
    if text := _exports(options.env):
        # Of the proxies through which this one reaches the hosts; a URL may have a password.
        await api.put_files(_name(sandbox), SECRET_FOLDER, secret_archive(text, user))
    await api.request("POST", f"/containers/{_name(sandbox)}/start")


async def wait_proxy(api: EngineApi, sandbox: str) -> None:
    """Wait until a sandbox's proxy listens.

    Raises:
        SandboxAgentError: It has exited, or did not listen in time.
    """
    try:
        async with asyncio.timeout(_START_TIMEOUT):
            while True:
                found = await api.inspect(_name(sandbox))
                if found is None or found["State"]["Status"] == "exited" or found["RestartCount"] > _RESTARTS:
                    raise TimeoutError
                if await _listens(_folder(found) / PROXY_SOCKET):
                    return
                await asyncio.sleep(_POLL_INTERVAL)
    except TimeoutError:
        log = (await api.logs(_name(sandbox), _LOG_LINES)).strip()
        raise SandboxAgentError(
            f"the proxy for allow_hosts, container {_name(sandbox)}, did not start: {log or 'without output'}"
        ) from None


async def wake_proxy(api: EngineApi, sandbox: str, user: str) -> None:
    """Start a sandbox's proxy again if it has ended.

    Raises:
        SandboxAgentError: It was removed, or the engine refused it.
    """
    found = await api.inspect(_name(sandbox))
    if found is None:
        raise SandboxAgentError(
            f"the sandbox cannot reach its allowed hosts any more, because the container {_name(sandbox)} of "
            "its proxy was removed: destroy the sandbox and create another one"
        )
    if not found["State"]["Running"]:
        await asyncio.to_thread(make_socket_folder, _folder(found), user)
        await api.request("POST", f"/containers/{_name(sandbox)}/start")


async def remove_proxy(api: EngineApi, sandbox: str) -> None:
    """Remove a sandbox's proxy and the folder of its socket, if there are any."""
    found = await api.inspect(_name(sandbox))
    try:
        await api.remove(_name(sandbox))
    finally:
        folder = proxy_folder(sandbox) if found is None else _folder(found)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def remove_lonely_proxies(api: EngineApi) -> None:
    """Remove the proxies without a sandbox that have ended, or that a killed program has not started.

    Raises:
        SandboxAgentError: The engine refused it.
    """
    for item in await api.list_containers(SANDBOX_LABEL):
        sandbox = item["Labels"][SANDBOX_LABEL]
        is_old = item["Created"] + ALONE < time.time()
        is_left = item["State"] == "exited" or (item["State"] == "created" and is_old)
        if is_left and await api.inspect(sandbox) is None:
            await remove_proxy(api, sandbox)


def _folder(found: Mapping[str, Any]) -> Path:
    return Path(found["Config"]["Labels"][PROXY_LABEL])


async def _listens(path: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    return True


def _exports(env: Mapping[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(env[name])}\n" for name in PROXY_VARIABLES if name in env)


def _body(options: ContainerOptions, sandbox: str, user: str, folder: Path) -> dict[str, Any]:
    return {
        "Image": options.image,
        "User": user,
        "WorkingDir": "/",
        "Env": [f"HOME={HOME}"],
        "Entrypoint": ["/bin/sh", "-c", _SCRIPT, "sandbox-agent"],
        "Cmd": [
            f"--exit-when-alone={ALONE}",
            *(f"--allow-host={host}" for host in options.allow_hosts or ()),
        ],
        "Volumes": {SECRET_FOLDER: {}},
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {SANDBOX_LABEL: sandbox, VERSION_LABEL: VERSION, PROXY_LABEL: str(folder)},
        "HostConfig": {
            **hardened(_MEMORY, _PIDS),
            "NetworkMode": options.network,
            "ReadonlyRootfs": True,
            "Mounts": [{"Type": "bind", "Source": str(folder), "Target": PROXY_FOLDER, "ReadOnly": False}],
            # It ends with 0 if nothing needs it.
            "RestartPolicy": {"Name": "on-failure"},
        },
    }
