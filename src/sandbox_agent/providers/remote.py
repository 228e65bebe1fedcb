"""The base of the providers whose sandboxes run at a service."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import secrets
import shlex
import tarfile
import time
import urllib.request
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers import start_script
from sandbox_agent.providers.base import SandboxProvider, finish
from sandbox_agent.providers.own_wheel import make_wheel
from sandbox_agent.providers.start_script import StartScript, package_version

logger: logging.Logger = logging.getLogger("sandbox_agent.providers")

# What a service shows of a sandbox, to find those of this package.
METADATA: dict[str, str] = {"sandbox-agent": "1"}
# Seconds until the server responds at the service's URL, once it responds in the sandbox.
ROUTE_TIMEOUT = 30.0
_PROBE_INTERVAL = 0.2
_PROBE_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class CommandOutput:
    """What a command in a sandbox left.

    Attributes:
        exit_code: Its exit code.
        stderr: Its standard error.
    """

    exit_code: int
    stderr: str


class RemoteProvider(SandboxProvider):
    """Starts the server in sandboxes of a service.

    A subclass says how a sandbox is created and destroyed there, and how files and commands reach it. Its
    methods raise the errors of this package: ``SandboxDestroyedError`` for a sandbox that no longer exists.
    """

    def __init__(
        self,
        *,
        home: str,
        workspace: str | os.PathLike[str] | None,
        install_agents: Sequence[str],
        agent_port: int,
        args: Sequence[str],
    ) -> None:
        """Store the options that all services share.

        Args:
            home: The home of the sandbox's user.
            workspace: A folder of this machine to copy into the sandbox, or None.
            install_agents: Agents to install before the server starts.
            agent_port: The server's port in the sandbox.
            args: More arguments of the server.

        Raises:
            ValueError: The workspace is not a folder.
        """
        if workspace is not None and not Path(workspace).is_dir():
            raise ValueError(f"workspace must be a folder of this machine, not '{os.fspath(workspace)}'")
        self.default_cwd: str | None = f"{home}/workspace"
        self._folder = f"{home}/.sandbox-agent"
        self._workspace = None if workspace is None else Path(workspace)
        self._agent_port = agent_port
        self._script: str = StartScript(
            port=agent_port,
            folder=self._folder,
            cwd=self.default_cwd,
            install_agents=tuple(install_agents),
            arguments=tuple(args),
        ).text()
        self._tokens: dict[str, str] = {}

    @abstractmethod
    async def _create_sandbox(self, metadata: Mapping[str, str]) -> str:
        """Create a sandbox at the service and return its id."""

    @abstractmethod
    async def _destroy_sandbox(self, sandbox_id: str) -> None:
        """Destroy a sandbox at the service. Does nothing if it no longer exists."""

    @abstractmethod
    async def _wake_sandbox(self, sandbox_id: str) -> None:
        """Find a sandbox and resume it if it is paused."""

    @abstractmethod
    async def _write_file(self, sandbox_id: str, path: str, content: bytes) -> None:
        """Write a file and the folders that it needs."""

    @abstractmethod
    async def _read_file(self, sandbox_id: str, path: str) -> bytes:
        """Return the content of a file."""

    @abstractmethod
    async def _run(self, sandbox_id: str, command: str) -> CommandOutput:
        """Run a command line in a shell, without a limit of time, and return when it has ended."""

    async def create(self) -> str:
        """Create a sandbox, start its server, and return the sandbox's id when the server responds.

        If anything fails, or this is cancelled, the sandbox is destroyed.

        Raises:
            SandboxAgentError: The service refused the sandbox, or the server did not start.
        """
        created: list[str] = []

        async def create_sandbox() -> None:
            created.append(
                await self._create_sandbox({**METADATA, "sandbox-agent-version": package_version()})
            )

        try:
            # The service may have created it when the request is cancelled: only its response has the id.
            await finish(create_sandbox())
            await self._set_up(created[0])
        except BaseException:
            for sandbox_id in created:
                await finish(self._abandon(sandbox_id))
            raise
        return created[0]

    async def _abandon(self, sandbox_id: str) -> None:
        try:
            await self.destroy(sandbox_id)
        except SandboxAgentError:  # the error that led here is the one to raise
            logger.exception("sandbox '%s/%s' is not used and could not be destroyed", self.name, sandbox_id)

    async def _set_up(self, sandbox_id: str) -> None:
        token = secrets.token_urlsafe(24)
        self._tokens[sandbox_id] = token
        await self._write_file(sandbox_id, f"{self._folder}/token", token.encode())
        await self._write_file(sandbox_id, f"{self._folder}/start.sh", self._script.encode())
        await self._make_workspace(sandbox_id)
        await self._start_server(sandbox_id)
        await self._wait_responding(sandbox_id)

    async def _make_workspace(self, sandbox_id: str) -> None:
        folder = shlex.quote(str(self.default_cwd))
        command = f"chmod 700 {shlex.quote(self._folder)} && mkdir -p {folder}"
        if self._workspace is not None:
            archive = f"{self._folder}/workspace.tar.gz"
            content = await asyncio.to_thread(_pack, self._workspace)
            await self._write_file(sandbox_id, archive, content)
            # Its files belong to the sandbox's user, also if that is root.
            archive = shlex.quote(archive)
            command += f" && tar --no-same-owner -xzf {archive} -C {folder} && rm {archive}"
        output = await self._run(sandbox_id, command)
        if output.exit_code:
            raise SandboxAgentError(
                f"the workspace could not be copied to {self.default_cwd} of sandbox "
                f"'{self.name}/{sandbox_id}': {output.stderr.strip()}"
            )

    async def _start_server(self, sandbox_id: str) -> None:
        command = f"sh {shlex.quote(f'{self._folder}/start.sh')}"
        output = await self._run(sandbox_id, command)
        if output.exit_code == start_script.NEEDS_WHEEL:
            name, wheel = await asyncio.to_thread(make_wheel)
            await self._write_file(sandbox_id, f"{self._folder}/{name}", wheel)
            output = await self._run(sandbox_id, command)
        if output.exit_code:
            raise SandboxAgentError(
                f"the server did not start in sandbox '{self.name}/{sandbox_id}' (exit code "
                f"{output.exit_code}): {output.stderr.strip() or 'without any output'}"
            )

    async def _wait_responding(self, sandbox_id: str) -> None:
        """Wait until the service's URL leads to the server."""
        url, transport = await self.get_url(sandbox_id), await self.get_transport(sandbox_id)
        answer = "no response"
        try:
            async with (
                asyncio.timeout(ROUTE_TIMEOUT),
                httpx2.AsyncClient(
                    transport=transport,
                    headers={"Authorization": f"Bearer {self._tokens[sandbox_id]}"},
                    timeout=_PROBE_TIMEOUT,
                ) as client,
            ):
                while True:
                    try:
                        response = await client.get(f"{url}/v1/agents")
                        if response.status_code == 200:
                            return
                        answer = f"status {response.status_code}"
                    except httpx2.TransportError as error:
                        answer = f"{type(error).__name__}: {error}"
                    await asyncio.sleep(_PROBE_INTERVAL)
        except TimeoutError:
            raise SandboxAgentError(
                f"the server runs in sandbox '{self.name}/{sandbox_id}', but did not respond at {url} within "
                f"{ROUTE_TIMEOUT:g} s: {answer}"
            ) from None

    async def destroy(self, sandbox_id: str, /) -> None:
        """Destroy the sandbox and everything in it. Does nothing if it no longer exists."""
        self._tokens.pop(sandbox_id, None)
        await self._destroy_sandbox(sandbox_id)

    async def get_token(self, sandbox_id: str, /) -> str:
        """Return the sandbox's token, which another process reads from the sandbox."""
        if sandbox_id not in self._tokens:
            content = await self._read_file(sandbox_id, f"{self._folder}/token")
            self._tokens[sandbox_id] = content.decode()
        return self._tokens[sandbox_id]

    async def reconnect(self, sandbox_id: str, /) -> None:
        """Find a sandbox and resume it if it is paused.

        Raises:
            SandboxDestroyedError: It no longer exists.
        """
        await self._wake_sandbox(sandbox_id)

    async def ensure_server(self, sandbox_id: str, /) -> None:
        """Resume the sandbox if it is paused, and start its server again if it does not run.

        Raises:
            SandboxDestroyedError: The sandbox no longer exists.
        """
        await self._wake_sandbox(sandbox_id)
        await self._start_server(sandbox_id)


class RenewingTransport(httpx2.AsyncHTTPTransport):
    """A transport that renews the sandbox's timeout while requests are sent and streams are read.

    It renews before a request or between two parts of a response, at most once per interval.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str], renew: Callable[[], Awaitable[object]], interval: float
    ) -> None:
        """Create a transport. The timeout is taken to be new.

        Args:
            url: The server's URL, to which the environment may name a proxy.
            headers: Headers that the service needs.
            renew: Sets the timeout. Its errors are logged: the request then shows what is wrong.
            interval: Seconds between renewals.
        """
        # A client with a transport ignores the environment's proxies.
        target = httpx2.URL(url)
        proxies = urllib.request.getproxies()
        proxy = proxies.get(target.scheme) or proxies.get("all")
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
        is_direct = bool(urllib.request.proxy_bypass(target.host))
        super().__init__(limits=limits, proxy=None if is_direct else proxy)
        self._headers = dict(headers)
        self._renew = renew
        self._interval = interval
        self._due: float = time.monotonic() + interval

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request."""
        request.headers.update(self._headers)
        await self._renew_if_due()
        response = await super().handle_async_request(request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _RenewingStream(response.stream, self._renew_if_due)
        return response

    async def _renew_if_due(self) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._interval
        try:
            await self._renew()
        except SandboxAgentError as error:
            logger.warning("the sandbox's timeout could not be renewed: %s", error)


class _RenewingStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, renew_if_due: Callable[[], Awaitable[None]]) -> None:
        self._stream = stream
        self._renew_if_due = renew_if_due

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            await self._renew_if_due()
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


def _pack(folder: Path) -> bytes:
    """Return a folder as a compressed tar archive, with everything in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for path in sorted(folder.iterdir()):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                archive.add(path, path.name)
    return buffer.getvalue()
