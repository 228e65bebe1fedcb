"""The provider of Daytona: sandboxes at daytona.io, or at a Daytona of your own."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack

from sandbox_agent.errors import SandboxDestroyedError
from sandbox_agent.providers.remote import (
    Address,
    CommandOutput,
    RemoteOptions,
    RemoteProvider,
    SandboxListing,
)
from sandbox_agent.providers.service import Service, ServiceFailure, retry_after

if TYPE_CHECKING:
    from daytona import AsyncDaytona, AsyncSandbox

# Seconds. Daytona's own default would end a slow installation.
_COMMAND_TIMEOUT = 1800
# Of a start while another program has started the sandbox.
_CONFLICT = (400, 409)
# None for its waits: the provider has a limit of its own.
_NO_LIMIT = 0


class DaytonaOptions(RemoteOptions, total=False):
    """The options of ``daytona()``, which explains them."""

    image: str | None
    pause: Literal["stop", "pause"]
    client: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Connection:
    """A client of Daytona's SDK, and the sandboxes that it has found."""

    client: AsyncDaytona
    sandboxes: dict[str, AsyncSandbox] = field(default_factory=dict[str, "AsyncSandbox"])


class DaytonaProvider(RemoteProvider[Connection]):
    """Runs each sandbox at Daytona. Created by ``daytona``."""

    name: str = "daytona"
    service: ClassVar[Service] = Service(
        "Daytona",
        "daytona",
        "DAYTONA_API_KEY",
        "client={'api_key': ...}",
        module="daytona",
        client="AsyncDaytona",
    )
    options_type: ClassVar[type[RemoteOptions]] = DaytonaOptions
    default_home: ClassVar[str] = "/home/daytona"

    def __init__(self, snapshot: str | None = None, **options: Unpack[DaytonaOptions]) -> None:
        """Store the options. See ``daytona`` for the arguments."""
        super().__init__(options)
        self._snapshot = snapshot
        self._image = options.get("image")
        if snapshot is not None and self._image is not None:
            raise ValueError("pass a snapshot or an image, not both")
        self._pause = options.get("pause", "stop")
        if self._pause not in ("stop", "pause"):
            raise ValueError(f"pause must be 'stop' or 'pause', not {self._pause!r}")
        self._client = dict(options.get("client") or {})

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncGenerator[Connection]:
        from daytona import AsyncDaytona, DaytonaConfig

        # It loads certificates, several times.
        async with await asyncio.to_thread(AsyncDaytona, DaytonaConfig(**self._client)) as client:
            yield Connection(client)

    async def _create_sandbox(self, client: Connection, name: str, metadata: Mapping[str, str]) -> str:
        from daytona import CreateSandboxFromImageParams, CreateSandboxFromSnapshotParams

        arguments = self._native(
            {
                "name": name,
                "env_vars": self._env,
                # Minutes.
                "auto_stop_interval": math.ceil(self._timeout / 60),
                **({"snapshot": self._snapshot} if self._image is None else {"image": self._image}),
            },
            labels=metadata,
        )
        if "image" in arguments:
            params = CreateSandboxFromImageParams(**arguments)
        else:
            params = CreateSandboxFromSnapshotParams(**arguments)
        sandbox = await client.client.create(params, timeout=_NO_LIMIT)
        client.sandboxes[sandbox.id] = sandbox
        return sandbox.id

    async def _get(self, client: Connection, sandbox_id: str) -> AsyncSandbox:
        from daytona import SandboxState

        if sandbox_id not in client.sandboxes:
            sandbox = await client.client.get(sandbox_id)
            if sandbox.state in (SandboxState.DESTROYED, SandboxState.DESTROYING):
                raise SandboxDestroyedError(sandbox_id, self.name)
            client.sandboxes[sandbox_id] = sandbox
        return client.sandboxes[sandbox_id]

    async def _destroy_sandbox(self, client: Connection, sandbox_id: str) -> None:
        await (await self._get(client, sandbox_id)).delete()

    async def _wake_sandbox(self, client: Connection, sandbox_id: str) -> bool:
        from daytona import DaytonaError, SandboxState

        sandbox = await self._get(client, sandbox_id)
        if sandbox.state == SandboxState.STARTED:
            return False
        try:
            await self._resume(sandbox)
        except DaytonaError as error:
            if error.status_code not in _CONFLICT:
                raise
            client.sandboxes.pop(sandbox_id)
            sandbox = await self._get(client, sandbox_id)
            if not (sandbox.state == SandboxState.STARTED or _is_starting(sandbox)):
                raise
            # Another program has started it meanwhile.
            await sandbox.wait_for_sandbox_start(_NO_LIMIT)
        return True

    async def _resume(self, sandbox: AsyncSandbox) -> None:
        from daytona import SandboxState

        if _is_starting(sandbox):
            await sandbox.wait_for_sandbox_start(_NO_LIMIT)
        elif sandbox.state == SandboxState.ERROR and sandbox.recoverable:
            await sandbox.recover(_NO_LIMIT)
        else:
            if sandbox.state == SandboxState.STOPPING:
                await sandbox.wait_for_sandbox_stop(_NO_LIMIT)
            await sandbox.start(_NO_LIMIT)

    async def _write_file(self, client: Connection, sandbox_id: str, path: str, content: bytes) -> None:
        await (await self._get(client, sandbox_id)).fs.upload_file(content, path)

    async def _read_file(self, client: Connection, sandbox_id: str, path: str) -> bytes:
        return await (await self._get(client, sandbox_id)).fs.download_file(path)

    async def _run(self, client: Connection, sandbox_id: str, command: str) -> CommandOutput:
        sandbox = await self._get(client, sandbox_id)
        result = await sandbox.process.exec(command, timeout=_COMMAND_TIMEOUT)
        return CommandOutput(result.exit_code, result.result)

    async def _find_address(self, client: Connection, sandbox_id: str) -> Address:
        link = await (await self._get(client, sandbox_id)).get_preview_link(self._agent_port)
        headers = {"X-Daytona-Preview-Token": link.token, "X-Daytona-Skip-Preview-Warning": "true"}
        return Address(link.url.rstrip("/"), headers)

    async def _renew(self, client: Connection, sandbox_id: str) -> None:
        await (await self._get(client, sandbox_id)).refresh_activity()

    async def _pause_sandbox(self, client: Connection, sandbox_id: str) -> None:
        sandbox = await self._get(client, sandbox_id)
        if self._pause == "pause":
            await sandbox.pause(_NO_LIMIT)
        else:
            await sandbox.stop(_NO_LIMIT)

    async def _list_sandboxes(self, client: Connection, metadata: Mapping[str, str]) -> list[SandboxListing]:
        from daytona import ListSandboxesQuery

        return [
            SandboxListing(
                item.id,
                item.snapshot or "",
                item.state.value if item.state else "",
                item.created_at or "",
            )
            async for item in client.client.list(ListSandboxesQuery(labels=dict(metadata)))
        ]

    def _describe(self, error: Exception) -> ServiceFailure | None:
        from daytona import DaytonaAuthenticationError, DaytonaError, DaytonaFileNotFoundError
        from daytona.common.errors import DaytonaConnectionError, DaytonaTimeoutError

        text = str(error)
        match error:
            case DaytonaFileNotFoundError():
                return ServiceFailure(text, 404, is_about_file=True)
            case DaytonaAuthenticationError():
                return ServiceFailure(text, 401)
            case DaytonaConnectionError():
                return ServiceFailure(text, None)
            case DaytonaTimeoutError():
                return ServiceFailure(text, error.status_code or 408)
            case DaytonaError():
                return ServiceFailure(text, error.status_code or 0, retry_after(error.headers))
            case _:
                return None


def _is_starting(sandbox: AsyncSandbox) -> bool:
    from daytona import SandboxState

    return sandbox.state in (
        SandboxState.CREATING,
        SandboxState.PENDING_BUILD,
        SandboxState.BUILDING_SNAPSHOT,
        SandboxState.PULLING_SNAPSHOT,
        SandboxState.STARTING,
        SandboxState.RESTORING,
        SandboxState.RESUMING,
    )


def daytona(snapshot: str | None = None, **options: Unpack[DaytonaOptions]) -> DaytonaProvider:
    """Return a provider that runs sandboxes at Daytona. Its ids are ``daytona/<id of the sandbox>``.

    The arguments that are not listed are those of ``e2b``.

    Args:
        snapshot: The snapshot's name, or None for Daytona's default.
        image: An image of containers to build the sandbox from, instead of a snapshot.
        timeout: Seconds that the sandbox keeps running without a client, 3600 by default, rounded up to
            minutes. While a client is connected, it is renewed. Then Daytona stops the sandbox, which keeps
            its files and starts again with the next request.
        pause: What ``pause_sandbox`` does: "stop", the default, or "pause", which keeps the memory and which
            only Daytona's virtual machines can do.
        create: More arguments of ``daytona.CreateSandboxFromSnapshotParams`` or, for an image,
            ``CreateSandboxFromImageParams``, or a function that gets all arguments and returns those to use.
        client: Arguments of ``daytona.DaytonaConfig``, such as ``api_key`` (default: the variable
            ``DAYTONA_API_KEY``), ``api_url`` and ``target``.

    Raises:
        ImportError: The extra ``daytona`` is not installed.
        ValueError: An argument is invalid.
    """
    return DaytonaProvider(snapshot, **options)
