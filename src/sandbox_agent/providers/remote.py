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
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypedDict, TypeVar

import httpx2

from sandbox_agent.errors import SandboxAgentError, SandboxDestroyedError
from sandbox_agent.keywords import check_keywords
from sandbox_agent.providers.base import SandboxProvider, finish
from sandbox_agent.providers.own_wheel import run_with_wheel
from sandbox_agent.providers.renewing_transport import RenewingTransport
from sandbox_agent.providers.service import Service, ServiceFailure, limited, was_refused
from sandbox_agent.providers.start_script import StartScript, package_version

logger: logging.Logger = logging.getLogger("sandbox_agent.providers")

_C = TypeVar("_C")
_T = TypeVar("_T")

# What a service shows of a sandbox, to find those of this package.
METADATA: dict[str, str] = {"sandbox-agent": "1"}
# Seconds until the server responds at the service's URL, once it responds in the sandbox.
ROUTE_TIMEOUT = 30.0
_PROBE_INTERVAL = 0.2
_PROBE_TIMEOUT = 10.0
# Renewals in the time of the timeout.
_RENEWALS = 4
# Seconds for a call of the service, such as the start of a sandbox, whose image may have to be built.
# Commands in the sandbox have no limit.
CALL_TIMEOUT = 600.0
# Seconds. A renewal delays a request: the service answers it quickly, or not.
_RENEW_TIMEOUT = 10.0

CreateOptions = Mapping[str, Any] | Callable[[dict[str, Any]], Mapping[str, Any]]


class RemoteOptions(TypedDict, total=False):
    """The options that all services share. ``e2b()`` explains them."""

    env: Mapping[str, str] | None
    workspace: str | os.PathLike[str] | None
    install_agents: Sequence[str]
    timeout: int
    agent_port: int
    home: str
    args: Sequence[str]
    create: CreateOptions | None


@dataclass(frozen=True, slots=True)
class CommandOutput:
    """What a command in a sandbox left.

    Attributes:
        exit_code: Its exit code.
        stderr: Its standard error, or all of its output where a service does not tell them apart.
        stdout: Its standard output.
    """

    exit_code: int
    stderr: str
    stdout: str = ""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server of a sandbox is reached.

    Attributes:
        url: Its base URL.
        headers: Headers that the service needs.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class SandboxListing:
    """A sandbox in a list.

    Attributes:
        id: Its raw id.
        image: Its template, image or snapshot, as far as the service says.
        state: The service's word for its state.
        created: When it was created, as far as the service says.
    """

    id: str
    image: str
    state: str
    created: str


class RemoteProvider(SandboxProvider, Generic[_C]):
    """Starts the server in sandboxes of a service.

    A subclass says with the service's SDK how a sandbox is created and destroyed, and how files and commands
    reach it. Its methods raise the errors of the SDK, and ``_describe`` says what they mean.
    """

    service: ClassVar[Service]
    # The arguments of the function that makes the provider.
    options_type: ClassVar[type[RemoteOptions]]
    default_home: ClassVar[str]
    # The service has no variables of a sandbox: they are in a file.
    has_env_file: ClassVar[bool] = False
    # The service ends no sandbox by itself, so that there is no option for when.
    never_ends: ClassVar[bool] = False
    # The service ends a sandbox after a time, which can be set again.
    has_timeout: ClassVar[bool] = True

    def __init__(self, options: RemoteOptions) -> None:
        """Store the options. See ``e2b`` for them.

        Raises:
            MissingExtraError: The service's SDK is not installed.
            TypeError: There is no such option.
            ValueError: The workspace is not a folder, or the timeout is not greater than 0.
        """
        self.service.check_installed()
        check_keywords(options, self.options_type, self.name, without=["timeout"] if self.never_ends else [])
        workspace = options.get("workspace")
        if workspace is not None and not Path(workspace).is_dir():
            raise ValueError(f"workspace must be a folder of this machine, not '{os.fspath(workspace)}'")
        self._timeout = options.get("timeout", 3600)
        if self._timeout <= 0:
            raise ValueError(f"timeout must be greater than 0 seconds, not {self._timeout}")
        home = options.get("home", self.default_home)
        self.default_cwd: str | None = f"{home}/workspace"
        self._folder = f"{home}/.sandbox-agent"
        self._workspace = None if workspace is None else Path(workspace)
        self._agent_port = options.get("agent_port", 2468)
        self._env = dict(options.get("env") or {})
        self._create = options.get("create")
        self._script: str = StartScript(
            port=self._agent_port,
            folder=self._folder,
            cwd=self.default_cwd,
            install_agents=tuple(options.get("install_agents", ())),
            arguments=tuple(options.get("args", ())),
        ).text()
        self._tokens: dict[str, str] = {}
        self._addresses: dict[str, Address] = {}

    @abstractmethod
    def _connect(self) -> AbstractAsyncContextManager[_C]:
        """Open the SDK's client for some calls."""

    @abstractmethod
    def _describe(self, error: Exception) -> ServiceFailure | None:
        """Say what an error of the SDK means. None for an error that is not the service's."""

    @abstractmethod
    async def _create_sandbox(self, client: _C, name: str, metadata: Mapping[str, str]) -> str:
        """Create a sandbox and return its id. The name is one that no other sandbox has."""

    async def _find_lost(self, client: _C, name: str) -> Sequence[str]:
        """Return the ids of the sandboxes that may have been created with this name, without a response."""
        return [name]

    @abstractmethod
    async def _destroy_sandbox(self, client: _C, sandbox_id: str) -> None:
        """Destroy a sandbox."""

    @abstractmethod
    async def _wake_sandbox(self, client: _C, sandbox_id: str) -> bool:
        """Find a sandbox and resume it if it is paused. Return whether its processes have ended."""

    @abstractmethod
    async def _write_file(self, client: _C, sandbox_id: str, path: str, content: bytes) -> None:
        """Write a file and the folders that it needs."""

    @abstractmethod
    async def _read_file(self, client: _C, sandbox_id: str, path: str) -> bytes:
        """Return the content of a file."""

    @abstractmethod
    async def _run(self, client: _C, sandbox_id: str, command: str) -> CommandOutput:
        """Run a command line in a shell, without a limit of time, and return when it has ended."""

    @abstractmethod
    async def _find_address(self, client: _C, sandbox_id: str) -> Address:
        """Return where the service publishes the server's port."""

    def _unpublished(self, sandbox_id: str) -> SandboxAgentError:
        return SandboxAgentError(
            f"sandbox '{self.name}/{sandbox_id}' does not publish port {self._agent_port}: pass the "
            "agent_port with which it was created"
        )

    async def _renew(self, client: _C, sandbox_id: str) -> None:
        """Set the sandbox's timeout again, if the service has one."""
        return

    async def _pause_sandbox(self, client: _C, sandbox_id: str) -> None:
        """Pause a sandbox."""
        await self._destroy_sandbox(client, sandbox_id)

    async def _list_sandboxes(self, client: _C, metadata: Mapping[str, str]) -> list[SandboxListing]:
        """Return the sandboxes that have this metadata."""
        raise SandboxAgentError(f"{self.service.title} does not list sandboxes: use the id of one")

    def _native(self, arguments: dict[str, Any], **forced: Any) -> dict[str, Any]:
        """Return the arguments of the SDK's create call: the user's, and those that the provider needs.

        Args:
            arguments: What the provider passes.
            forced: Mappings that are merged into the user's, such as the metadata.
        """
        if callable(self._create):
            arguments = dict(self._create({**arguments, **forced}))
        else:
            arguments = {**arguments, **(self._create or {})}
        return {
            **arguments,
            **{name: {**(arguments.get(name) or {}), **value} for name, value in forced.items()},
        }

    async def _call(self, sandbox_id: str | None, work: Callable[[], Awaitable[_T]]) -> _T:
        return await self.service.call(sandbox_id, work, self._describe, limit=CALL_TIMEOUT)

    async def _call_once(
        self, sandbox_id: str | None, work: Callable[[], Awaitable[_T]], limit: float | None = None
    ) -> _T:
        """Call the service, again only if it has refused the call."""
        return await self.service.call(sandbox_id, work, self._describe, is_repeatable=False, limit=limit)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncGenerator[_C]:
        await self.service.load()
        async with contextlib.AsyncExitStack() as stack:

            async def enter() -> _C:
                return await stack.enter_async_context(self._connect())

            yield await self._call(None, enter)

    async def create(self) -> str:
        """Create a sandbox, start its server, and return the sandbox's id when the server responds.

        If anything fails, or this is cancelled, the sandbox is destroyed.

        Raises:
            SandboxAgentError: The service refused the sandbox, or the server did not start.
        """
        name = f"sandbox-agent-{secrets.token_hex(8)}"
        created: list[str] = []
        metadata = {**METADATA, "sandbox-agent-version": package_version()}
        async with self._connected() as client:

            async def create_sandbox() -> None:
                created.append(await self._create_sandbox(client, name, metadata))

            try:
                # The service may have created it when the request is cancelled: only its response has the id.
                await self._call_once(None, lambda: finish(limited(create_sandbox, CALL_TIMEOUT)))
                await self._set_up(client, created[0])
            except BaseException as error:
                # Without a response there may be one of this name.
                if created or not was_refused(error):
                    await finish(self._abandon(client, name, created))
                raise
        return created[0]

    async def _abandon(self, client: _C, name: str, created: Sequence[str]) -> None:
        try:
            for sandbox_id in created or await self._call(None, lambda: self._find_lost(client, name)):
                await self._destroy(client, sandbox_id)
        except Exception:  # of any SDK: the error that led here is the one to raise
            shown = created[0] if created else name
            logger.exception("sandbox '%s/%s' is not used and could not be destroyed", self.name, shown)

    async def _set_up(self, client: _C, sandbox_id: str) -> None:
        token = secrets.token_urlsafe(24)
        self._tokens[sandbox_id] = token
        await self._put(client, sandbox_id, "token", token.encode())
        await self._put(client, sandbox_id, "start.sh", self._script.encode())
        if self.has_env_file:
            exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in self._env.items())
            await self._put(client, sandbox_id, "env.sh", exports.encode())
        await self._make_workspace(client, sandbox_id)
        await self._start_server(client, sandbox_id)
        await self._wait_responding(client, sandbox_id)

    async def _put(self, client: _C, sandbox_id: str, name: str, content: bytes) -> None:
        """Write a file of the server's folder."""
        path = f"{self._folder}/{name}"
        await self._call(sandbox_id, lambda: self._write_file(client, sandbox_id, path, content))

    async def _shell(self, client: _C, sandbox_id: str, command: str) -> CommandOutput:
        return await self._call_once(sandbox_id, lambda: self._run(client, sandbox_id, command))

    async def _make_workspace(self, client: _C, sandbox_id: str) -> None:
        folder = shlex.quote(str(self.default_cwd))
        command = f"chmod 700 {shlex.quote(self._folder)} && mkdir -p {folder}"
        if self._workspace is not None:
            content = await asyncio.to_thread(_pack, self._workspace)
            await self._put(client, sandbox_id, "workspace.tar.gz", content)
            # Its files belong to the sandbox's user, also if that is root.
            archive = shlex.quote(f"{self._folder}/workspace.tar.gz")
            command += f" && tar --no-same-owner -xzf {archive} -C {folder} && rm {archive}"
        output = await self._shell(client, sandbox_id, command)
        if output.exit_code:
            raise SandboxAgentError(
                f"the workspace could not be copied to {self.default_cwd} of sandbox "
                f"'{self.name}/{sandbox_id}': {output.stderr.strip()}"
            )

    async def _start_server(self, client: _C, sandbox_id: str) -> None:
        await self._run_script(client, sandbox_id)

    def _start_command(self, step: str = "") -> str:
        command = f"sh {shlex.quote(f'{self._folder}/start.sh')} {step}".rstrip()
        return f". {shlex.quote(f'{self._folder}/env.sh')} && {command}" if self.has_env_file else command

    async def _run_script(self, client: _C, sandbox_id: str, step: str = "") -> None:
        """Run the start script, which gets the wheel if it needs it.

        Args:
            client: The SDK's client.
            sandbox_id: The sandbox.
            step: "install" to start no server.
        """
        command = self._start_command(step)

        async def run() -> tuple[int, str]:
            output = await self._shell(client, sandbox_id, command)
            return output.exit_code, output.stderr

        async def put(name: str, content: bytes) -> None:
            await self._put(client, sandbox_id, name, content)

        code, said = await run_with_wheel(run, put)
        if code:
            raise SandboxAgentError(
                f"the server did not start in sandbox '{self.name}/{sandbox_id}' (exit code {code}): "
                f"{said.strip() or 'without any output'}"
            )

    async def _wait_responding(self, client: _C, sandbox_id: str) -> None:
        """Wait until the service's URL leads to the server."""
        address = await self._address(client, sandbox_id)
        answer = "no response"
        try:
            async with (
                asyncio.timeout(ROUTE_TIMEOUT),
                httpx2.AsyncClient(
                    transport=await self.get_transport(sandbox_id),
                    headers={"Authorization": f"Bearer {self._tokens[sandbox_id]}"},
                    timeout=_PROBE_TIMEOUT,
                ) as http,
            ):
                while True:
                    try:
                        response = await http.get(f"{address.url}/v1/agents")
                        if response.status_code == 200:
                            return
                        answer = f"status {response.status_code}"
                    except httpx2.TransportError as error:
                        answer = f"{type(error).__name__}: {error}"
                    await asyncio.sleep(_PROBE_INTERVAL)
        except TimeoutError:
            raise SandboxAgentError(
                f"the server runs in sandbox '{self.name}/{sandbox_id}', but did not respond at "
                f"{address.url} within {ROUTE_TIMEOUT:g} s: {answer}"
            ) from None

    async def destroy(self, sandbox_id: str, /) -> None:
        """Destroy the sandbox and everything in it. Does nothing if it no longer exists."""
        async with self._connected() as client:
            await self._destroy(client, sandbox_id)

    async def _destroy(self, client: _C, sandbox_id: str) -> None:
        self._tokens.pop(sandbox_id, None)
        self._addresses.pop(sandbox_id, None)
        with contextlib.suppress(SandboxDestroyedError):
            await self._call(sandbox_id, lambda: self._destroy_sandbox(client, sandbox_id))

    async def get_token(self, sandbox_id: str, /) -> str:
        """Return the sandbox's token, which another process reads from the sandbox."""
        if sandbox_id not in self._tokens:
            self._tokens[sandbox_id] = (await self._read(sandbox_id, "token")).decode()
        return self._tokens[sandbox_id]

    async def _read(self, sandbox_id: str, name: str) -> bytes:
        """Return the content of a file of the server's folder."""
        path = f"{self._folder}/{name}"
        async with self._connected() as client:
            return await self._call(sandbox_id, lambda: self._read_file(client, sandbox_id, path))

    async def _address(self, client: _C, sandbox_id: str) -> Address:
        if sandbox_id not in self._addresses:
            self._addresses[sandbox_id] = await self._call(
                sandbox_id, lambda: self._find_address(client, sandbox_id)
            )
        return self._addresses[sandbox_id]

    async def _known_address(self, sandbox_id: str) -> Address:
        if sandbox_id in self._addresses:
            return self._addresses[sandbox_id]
        async with self._connected() as client:
            return await self._address(client, sandbox_id)

    async def get_url(self, sandbox_id: str, /) -> str:
        """Return the URL at which the service publishes the server's port."""
        return (await self._known_address(sandbox_id)).url

    async def get_transport(self, sandbox_id: str, /) -> httpx2.AsyncBaseTransport:
        """Return a transport that renews the sandbox's timeout while it is used."""
        address = await self._known_address(sandbox_id)

        async def renew() -> None:
            async with self._connected() as client:
                await self._call_once(sandbox_id, lambda: self._renew(client, sandbox_id), _RENEW_TIMEOUT)

        interval = self._timeout / _RENEWALS if self.has_timeout else float("inf")
        return RenewingTransport(address.url, address.headers, renew, interval)

    async def reconnect(self, sandbox_id: str, /) -> None:
        """Find a sandbox and resume it if it is paused.

        Raises:
            SandboxDestroyedError: It no longer exists.
        """
        async with self._connected() as client:
            if await self._wake(client, sandbox_id):
                await self._start_server(client, sandbox_id)

    async def _wake(self, client: _C, sandbox_id: str) -> bool:
        self._addresses.pop(sandbox_id, None)  # another one, after a pause
        return await self._call(sandbox_id, lambda: self._wake_sandbox(client, sandbox_id))

    async def ensure_server(self, sandbox_id: str, /) -> None:
        """Resume the sandbox if it is paused, and start its server again if it does not run.

        Raises:
            SandboxDestroyedError: The sandbox no longer exists.
        """
        async with self._connected() as client:
            await self._wake(client, sandbox_id)
            await self._start_server(client, sandbox_id)

    async def pause(self, sandbox_id: str, /) -> None:
        """Pause the sandbox, or destroy it if the service cannot pause.

        Raises:
            SandboxDestroyedError: It no longer exists.
        """
        self._addresses.pop(sandbox_id, None)
        async with self._connected() as client:
            await self._call(sandbox_id, lambda: self._pause_sandbox(client, sandbox_id))

    async def list_sandboxes(self) -> list[SandboxListing]:
        """Return the sandboxes of this package at the service, also those of other programs.

        Raises:
            SandboxAgentError: The service does not list them, or failed.
        """
        async with self._connected() as client:
            return await self._call(None, lambda: self._list_sandboxes(client, METADATA))

    async def logs(self, sandbox_id: str, /, lines: int | None = None) -> str:
        """Return the output of the server, or its last lines. A sandbox that is paused is resumed.

        Raises:
            SandboxDestroyedError: The sandbox no longer exists.
        """
        await self.reconnect(sandbox_id)
        text = (await self._read(sandbox_id, "server.log")).decode(errors="replace")
        return text if lines is None else "".join(text.splitlines(keepends=True)[-lines:])

    async def execute(self, sandbox_id: str, command: Sequence[str], /) -> tuple[int, bytes]:
        """Run a command in the sandbox. Return its exit code and its output. One that is paused is resumed.

        Raises:
            SandboxDestroyedError: The sandbox no longer exists.
        """
        folder = shlex.quote(str(self.default_cwd))
        async with self._connected() as client:
            await self._wake(client, sandbox_id)
            output = await self._shell(client, sandbox_id, f"cd {folder} && {shlex.join(command)} 2>&1")
        return output.exit_code, (output.stdout or output.stderr).encode()


def _pack(folder: Path) -> bytes:
    """Return a folder as a compressed tar archive, with everything in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for path in sorted(folder.iterdir()):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                archive.add(path, path.name)
    return buffer.getvalue()
