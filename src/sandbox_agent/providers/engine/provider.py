"""The providers that run sandboxes in containers of Docker and Podman."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Unpack

import httpx2

from sandbox_agent.errors import SandboxAgentError, SandboxDestroyedError
from sandbox_agent.keywords import check_keywords
from sandbox_agent.providers.base import SandboxProvider, finish
from sandbox_agent.providers.engine.api import EngineApi
from sandbox_agent.providers.engine.container import (
    DEFAULT_IMAGE,
    LABEL,
    PORT,
    PROXY_LABEL,
    SECRET_FILE,
    SECRET_FOLDER,
    SECRET_LABEL,
    SOCKET,
    SOCKET_LABEL,
    WORKSPACE,
    ContainerOptions,
    EngineOptions,
    Pause,
    Pull,
    Secret,
    container_body,
    find_user,
    folders_archive,
    make_socket_folder,
    secret_archive,
    socket_folder,
)
from sandbox_agent.providers.engine.endpoints import EngineName
from sandbox_agent.providers.engine.images import ensure_image, split_tag
from sandbox_agent.providers.engine.install import install_server, installed_image
from sandbox_agent.providers.engine.reaper import remove_leftovers, remove_sandbox
from sandbox_agent.providers.engine.sidecar import start_proxy, wait_proxy, wake_proxy
from sandbox_agent.providers.mounts import checked_mount, existing_path
from sandbox_agent.providers.unix_transport import UnixTransport

# Of a container; anything else would be another path of the engine's API.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
# Until a new container's server answers.
START_TIMEOUT = 60.0
_POLL_INTERVAL = 0.02
_PROBE_TIMEOUT = 5.0
_LOG_LINES = 20
# How often another port is chosen because a program took it before the container could.
_PORT_TRIES = 5
# Seconds that the server has to end by itself, with ``pause="stop"``.
_STOP_GRACE = 10
# How often a container is woken up, and seconds between two tries.
_WAKE_TRIES = 5
_WAKE_DELAY = 0.2
_MAX_LIFETIME = 3600.0
# Of a commit, which copies what the container has written.
_SNAPSHOT_TIMEOUT = 600.0


class _NoServerError(SandboxAgentError):
    """The image lacks the server."""


class EngineProvider(SandboxProvider):
    """Runs each sandbox in a container. The base of ``DockerProvider`` and ``PodmanProvider``."""

    default_cwd: str | None = WORKSPACE
    _engine: ClassVar[EngineName]

    def __init__(self, image: str | None = None, **options: Unpack[EngineOptions]) -> None:
        """Store the options. See ``docker`` for the arguments."""
        check_keywords(options, EngineOptions, self.name)
        workspace = options.get("workspace")
        self._options = ContainerOptions(
            image=image or DEFAULT_IMAGE,
            env=dict(options.get("env") or {}),
            mounts=[checked_mount(mount) for mount in options.get("mounts", ())],
            workspace=None if workspace is None else existing_path(workspace, "workspace"),
            network=options.get("network", "bridge"),
            allow_hosts=None if (hosts := options.get("allow_hosts")) is None else list(hosts),
            memory=options.get("memory", "2g"),
            cpus=options.get("cpus", 2),
            pids=options.get("pids", 512),
            user=options.get("user"),
            read_only=options.get("read_only", False),
            runtime=options.get("runtime"),
            gpus=options.get("gpus"),
            ports=list(options.get("ports", ())),
            max_lifetime=options.get("max_lifetime", _MAX_LIFETIME),
            agent_commands=dict(options.get("agent_commands") or {}),
            args=list(options.get("args", ())),
            create=options.get("create"),
        )
        self._options.check()
        pull, pause = options.get("pull", "missing"), options.get("pause", "pause")
        if pull not in ("missing", "always", "never"):
            raise ValueError(f"pull must be 'missing', 'always' or 'never', not {pull!r}")
        if pause not in ("pause", "stop"):
            raise ValueError(f"pause must be 'pause' or 'stop', not {pause!r}")
        self._pull: Pull = pull
        self._pause: Pause = pause
        self._host = options.get("host")
        self._secrets: dict[str, Secret] = {}

    def _api(self) -> EngineApi:
        return EngineApi(self._engine, self._host)

    async def create(self) -> str:
        """Start a container and return its name when its server responds.

        Containers of programs that were killed are removed first, if they have ended by ``max_lifetime``.
        Where the image lacks the server, it is installed, and the engine keeps the result as an image.

        Raises:
            SandboxAgentError: There is no engine, it lacks the image, it refused the container, or the server
                in it did not start. The message ends with the container's last output.
        """
        api = self._api()
        self._check_reachable(api)
        user = await asyncio.to_thread(find_user, self._options)
        image = await ensure_image(api, self._options.image, self._pull)
        await remove_leftovers(api)
        options = self._options
        if await api.find_image(installed := installed_image(image)) is not None:
            options = replace(options, image=installed)
        try:
            return await self._create(api, options, user)
        except _NoServerError:
            if options.image == installed:
                raise
            installed = await install_server(api, options, image)
        return await self._create(api, replace(options, image=installed), user)

    async def _create(self, api: EngineApi, options: ContainerOptions, user: str) -> str:
        name = f"sandbox-agent-{secrets.token_hex(6)}"
        secret = Secret.make(self._options.env)
        self._secrets[name] = secret
        try:
            await finish(self._make(api, options, name, user, secret))
            await self._wait_responding(api, name, secret.token)
            if options.allow_hosts is not None:
                await wait_proxy(api, name)
        except BaseException:
            await finish(self._remove(api, name))
            raise
        return name

    def _check_reachable(self, api: EngineApi) -> None:
        options = self._options
        if not options.has_network and (sys.platform != "linux" or api.endpoint.path is None):
            raise SandboxAgentError(
                "network='none' and allow_hosts need an engine on this Linux machine, as the server is "
                "reached over a Unix socket in a shared folder: use network='bridge', or the name of an "
                "internal network"
            )
        if not api.endpoint.is_local:
            raise SandboxAgentError(
                f"the engine at {api.endpoint.url} is another machine, and a sandbox's port is only open on "
                "that machine's 127.0.0.1: run this program there, or start a server there and use "
                "SandboxAgent.connect()"
            )

    async def _make(
        self, api: EngineApi, options: ContainerOptions, name: str, user: str, secret: Secret
    ) -> None:
        """Create and start the container."""
        if not options.has_network:
            await asyncio.to_thread(make_socket_folder, socket_folder(name), user)
        if options.allow_hosts is not None:
            await start_proxy(api, options, name, user)
        for last in range(_PORT_TRIES - 1, -1, -1):
            body = container_body(options, name, user, secret)
            await api.request("POST", "/containers/create", params={"name": name}, body=body)
            if not options.read_only:
                folders = folders_archive(user, workspace=options.workspace is None)
                await api.put_files(name, "/", folders)
            await api.put_files(name, SECRET_FOLDER, secret_archive(secret.text))
            try:
                await api.start(name, secret.text)
                return
            except SandboxAgentError as error:
                if not last or not _is_port_taken(error):
                    raise
            await api.remove(name)

    async def _wait_responding(self, api: EngineApi, name: str, token: str) -> None:
        url, transport = await self.get_url(name), await self.get_transport(name)
        transport = transport or httpx2.AsyncHTTPTransport(verify=False)  # no TLS, and no proxy
        headers = {"Authorization": f"Bearer {token}"}
        try:
            async with (
                asyncio.timeout(START_TIMEOUT),
                httpx2.AsyncClient(transport=transport, headers=headers, timeout=_PROBE_TIMEOUT) as client,
            ):
                while True:
                    with contextlib.suppress(httpx2.TransportError):
                        answer = await client.get(f"{url}/v1/health")
                        if answer.status_code < 500:
                            return
                    found = await self._inspect(api, name)
                    if not found["State"]["Running"]:
                        raise await self._exit_error(api, name, found)
                    await asyncio.sleep(_POLL_INTERVAL)
        except TimeoutError:
            raise SandboxAgentError(
                f"the server in container {name} did not respond within {START_TIMEOUT:g} s: "
                f"{(await api.logs(name, _LOG_LINES)).strip()}"
            ) from None

    async def _exit_error(self, api: EngineApi, name: str, found: dict[str, Any]) -> SandboxAgentError:
        code, log = found["State"]["ExitCode"], (await api.logs(name, _LOG_LINES)).strip()
        if code == 127:  # of sh: it did not find a command
            return _NoServerError(
                f"the image '{found['Config']['Image']}' has no sandbox-agent server: {log}"
            )
        return SandboxAgentError(
            f"the container {name} exited with code {code} at its start: {log or 'without any output'}"
        )

    async def _inspect(self, api: EngineApi, name: str) -> dict[str, Any]:
        """Return what the engine knows about a sandbox's container.

        Raises:
            SandboxDestroyedError: It does not exist.
            SandboxAgentError: It is not a sandbox of this package.
        """
        found = await api.inspect(name) if _NAME.fullmatch(name) else None
        if found is None:
            raise SandboxDestroyedError(name, self.name)
        labels: dict[str, str] = found["Config"].get("Labels") or {}
        if labels.get(LABEL) != "1":
            raise SandboxAgentError(
                f"the container '{name}' is not a sandbox of this package: use another id"
            )
        return found

    async def destroy(self, sandbox_id: str, /) -> None:
        """Remove the container and its volumes. Does nothing if it no longer exists."""
        api = self._api()
        with contextlib.suppress(SandboxDestroyedError):
            await self._inspect(api, sandbox_id)
            await finish(self._remove(api, sandbox_id))

    async def _remove(self, api: EngineApi, name: str) -> None:
        try:
            await remove_sandbox(api, name)
        finally:
            self._secrets.pop(name, None)

    async def get_url(self, sandbox_id: str, /) -> str:
        """Return the URL of the server's port on this machine, or one for the transport without a network."""
        api = self._api()
        found = await self._inspect(api, sandbox_id)
        if found["Config"]["Labels"].get(SOCKET_LABEL):
            return "http://sandbox"
        return f"http://{_published(found, PORT, api.endpoint.host)}"

    async def get_address(self, sandbox_id: str, port: int, /) -> str:
        """Return the ``host:port`` of this machine at which a port of ``ports=`` is reached.

        Raises:
            SandboxAgentError: The port is not published.
        """
        api = self._api()
        return _published(await self._inspect(api, sandbox_id), port, api.endpoint.host)

    async def get_transport(self, sandbox_id: str, /) -> httpx2.AsyncBaseTransport | None:
        """Return the transport to the server's socket if the sandbox has no network."""
        found = await self._inspect(self._api(), sandbox_id)
        folder = found["Config"]["Labels"].get(SOCKET_LABEL)
        if not folder:
            return None
        init: int = found["State"]["Pid"]
        return UnixTransport(Path(folder, SOCKET), lambda connection: _check_peer(connection, init))

    async def get_token(self, sandbox_id: str, /) -> str:
        """Return the sandbox's token, which another process reads from the container as root."""
        return (await self._secret(self._api(), sandbox_id)).token

    async def _secret(self, api: EngineApi, name: str) -> Secret:
        if name not in self._secrets:
            found = await self._inspect(api, name)
            content = await api.read_file(name, f"{SECRET_FOLDER}/{SECRET_FILE}")
            secret = Secret(content.decode())
            if secret.digest != found["Config"]["Labels"].get(SECRET_LABEL):
                raise SandboxAgentError(
                    f"the token of sandbox '{self.name}/{name}' was changed: destroy the sandbox"
                )
            self._secrets[name] = secret
        return self._secrets[name]

    async def reconnect(self, sandbox_id: str, /) -> None:
        """Find a container and wake it up: one that is paused continues, one that is stopped starts.

        Raises:
            SandboxDestroyedError: It no longer exists.
        """
        await self.ensure_server(sandbox_id)

    async def ensure_server(self, sandbox_id: str, /) -> None:
        """Start the container again if it ended, as it does with its server. Its files are kept.

        Raises:
            SandboxDestroyedError: It no longer exists.
        """
        api = self._api()
        for tries_left in reversed(range(_WAKE_TRIES)):
            try:
                await self._wake(api, sandbox_id)
                return
            except SandboxAgentError as error:
                # Podman may answer with the state of before: it is asked again.
                if not tries_left or "container state improper" not in str(error):
                    raise
                await asyncio.sleep(_WAKE_DELAY)

    async def _wake(self, api: EngineApi, sandbox_id: str) -> None:
        found = await self._inspect(api, sandbox_id)
        state = found["State"]
        if state.get("Paused") or state["Status"] == "paused":
            await api.request("POST", f"/containers/{sandbox_id}/unpause")
            return
        labels, user = found["Config"]["Labels"], found["Config"]["User"]
        if labels.get(PROXY_LABEL):
            await wake_proxy(api, sandbox_id, user)
        if not state["Running"]:
            secret = await self._secret(api, sandbox_id)
            if folder := labels.get(SOCKET_LABEL):
                await asyncio.to_thread(make_socket_folder, Path(folder), user)
            if state["Status"] != "created":
                await api.wait_exited(sandbox_id)
            await finish(api.start(sandbox_id, secret.text))
        if labels.get(PROXY_LABEL):
            await wait_proxy(api, sandbox_id)

    async def pause(self, sandbox_id: str, /) -> None:
        """Freeze all processes of the container, or stop it with ``pause="stop"``.

        Raises:
            SandboxDestroyedError: It no longer exists.
        """
        api = self._api()
        state = (await self._inspect(api, sandbox_id))["State"]
        if not state["Running"] or state.get("Paused"):
            return
        if self._pause == "stop":
            await api.request("POST", f"/containers/{sandbox_id}/stop", params={"t": str(_STOP_GRACE)})
        else:
            await api.request("POST", f"/containers/{sandbox_id}/pause")

    async def snapshot(self, sandbox_id: str, /, tag: str | None = None) -> str:
        """Save the container's files as an image, and return its name for ``image=``.

        The image has neither the sandbox's token and variables nor what is mounted, such as the workspace.

        Args:
            sandbox_id: The raw id.
            tag: The image's name, or None for ``sandbox-agent-snapshot:<random>``.
        """
        api = self._api()
        await self._inspect(api, sandbox_id)
        repository, version = split_tag(tag or f"sandbox-agent-snapshot:{secrets.token_hex(6)}")
        params = {
            "container": sandbox_id,
            "repo": repository,
            "tag": version,
            "pause": "true",
            "changes": f"LABEL {LABEL}=snapshot",
        }
        await api.request("POST", "/commit", params=params, body={}, timeout=_SNAPSHOT_TIMEOUT)
        return f"{repository}:{version}"

    async def logs(self, sandbox_id: str, /, lines: int | None = None) -> str:
        """Return the output of the server, or its last lines."""
        api = self._api()
        await self._inspect(api, sandbox_id)
        return await api.logs(sandbox_id, lines)

    async def list_sandboxes(self) -> list[dict[str, Any]]:
        """Return the engine's description of each sandbox's container, also of those that do not run."""
        return await self._api().list_containers(f"{LABEL}=1")

    async def execute(self, sandbox_id: str, command: Sequence[str], /) -> tuple[int, bytes]:
        """Run a command in the container. Return its exit code and its output."""
        api = self._api()
        await self._inspect(api, sandbox_id)
        return await api.execute(sandbox_id, command)


def _published(found: Mapping[str, Any], port: int, engine_host: str) -> str:
    """Return the address at which a container's port is published."""
    running: dict[str, list[dict[str, str]] | None] = found["NetworkSettings"].get("Ports") or {}
    chosen: dict[str, list[dict[str, str]] | None] = found["HostConfig"].get("PortBindings") or {}
    # A container that does not run has only the second.
    for binding in running.get(f"{port}/tcp") or chosen.get(f"{port}/tcp") or ():
        host = binding.get("HostIp") or ""
        host = engine_host if host in ("", "0.0.0.0", "::") else host  # noqa: S104 - compared
        return f"[{host}]:{binding['HostPort']}" if ":" in host else f"{host}:{binding['HostPort']}"
    raise SandboxAgentError(f"port {port} of the sandbox is not published: pass ports=[{port}]")


def _is_port_taken(error: SandboxAgentError) -> bool:
    text = str(error).lower()
    return "already in use" in text or "already allocated" in text


def _check_peer(connection: socket.socket, init: int) -> None:
    """Check that the sandbox's server listens: an agent can put another socket in its place.

    Raises:
        OSError: The process that listens is not the first child of the container's init process.
    """
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, _, _ = struct.unpack("3i", found)
    # In the order of their creation; processes whose parent has ended come at the end.
    children = Path(f"/proc/{init}/task/{init}/children").read_text().split() if init else []
    if not children or int(children[0]) != pid:
        raise ConnectionRefusedError(f"process {pid} listens on the sandbox's socket, and is not its server")
