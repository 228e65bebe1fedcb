"""The provider of Vercel: sandboxes in microVMs at vercel.com."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import httpx2

from sandbox_agent.providers.remote import (
    Address,
    CommandOutput,
    RemoteOptions,
    RemoteProvider,
    SandboxListing,
)
from sandbox_agent.providers.service import Service, ServiceFailure, retry_after

if TYPE_CHECKING:
    from vercel.sandbox import SandboxClient

_SECOND = timedelta(seconds=1)


class VercelOptions(RemoteOptions, total=False):
    """The options of ``vercel()``, which explains them."""

    client: Mapping[str, Any] | None


class VercelProvider(RemoteProvider["SandboxClient"]):
    """Runs each sandbox at Vercel. Created by ``vercel``."""

    name: str = "vercel"
    service: ClassVar[Service] = Service(
        "Vercel",
        "vercel",
        "VERCEL_TOKEN",
        "client={'credentials_factory': ...}",
        module="vercel.sandbox",
    )
    options_type: ClassVar[type[RemoteOptions]] = VercelOptions
    default_home: ClassVar[str] = "/vercel/sandbox"

    def __init__(self, image: str | None = None, **options: Unpack[VercelOptions]) -> None:
        """Store the options. See ``vercel`` for the arguments."""
        super().__init__(options)
        self._image = image
        self._client = dict(options.get("client") or {})

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncGenerator[SandboxClient]:
        from vercel.sandbox import SandboxClient, SandboxServiceOptions

        options = SandboxServiceOptions(**self._client)
        client = SandboxClient.create(options=options)
        try:
            yield client
        finally:
            await client.aclose()

    async def _create_sandbox(self, client: SandboxClient, name: str, metadata: Mapping[str, str]) -> str:
        arguments = self._native(
            {
                "name": name,
                "image": self._image,
                "ports": [self._agent_port],
                "execution_time_limit": timedelta(seconds=self._timeout),
                "persistent": True,
                "env": self._env,
            },
            tags=metadata,
        )
        return (await client.create_sandbox(**arguments)).name

    async def _destroy_sandbox(self, client: SandboxClient, sandbox_id: str) -> None:
        # Not its snapshots: the one that it was made from may be among them.
        await (await client.get_sandbox(name=sandbox_id)).destroy()

    async def _wake_sandbox(self, client: SandboxClient, sandbox_id: str) -> bool:
        from vercel.sandbox import SandboxStatus

        sandbox = await client.get_sandbox(name=sandbox_id)
        if sandbox.status is SandboxStatus.RUNNING:
            return False
        await client.resume_sandbox(name=sandbox_id)
        return True

    async def _write_file(self, client: SandboxClient, sandbox_id: str, path: str, content: bytes) -> None:
        await (await client.get_sandbox(name=sandbox_id)).fs.write_bytes(path, content)

    async def _read_file(self, client: SandboxClient, sandbox_id: str, path: str) -> bytes:
        return await (await client.get_sandbox(name=sandbox_id)).fs.read_bytes(path)

    async def _run(self, client: SandboxClient, sandbox_id: str, command: str) -> CommandOutput:
        sandbox = await client.get_sandbox(name=sandbox_id)
        ended = await sandbox.run_process("sh", ["-c", command], capture_output=True)
        return CommandOutput(ended.returncode, ended.stderr or "", ended.stdout or "")

    async def _find_address(self, client: SandboxClient, sandbox_id: str) -> Address:
        sandbox = await client.get_sandbox(name=sandbox_id)
        for route in sandbox.routes:
            if route.port == self._agent_port:
                return Address(route.url.rstrip("/"))
        raise self._unpublished(sandbox_id)

    async def _renew(self, client: SandboxClient, sandbox_id: str) -> None:
        # Vercel adds to the time that is left.
        session = (await client.get_sandbox(name=sandbox_id)).current_session
        if session is None or session.execution_time_limit is None:
            return
        now = datetime.now(UTC)
        begun = session.started_at or session.requested_at
        used = timedelta(0) if begun is None else now - _time(begun)
        left = session.execution_time_limit - used
        missing = timedelta(seconds=self._timeout) - left
        if missing >= _SECOND:
            await session.extend_execution_time_limit(missing)

    async def _pause_sandbox(self, client: SandboxClient, sandbox_id: str) -> None:
        await (await client.get_sandbox(name=sandbox_id)).stop()

    async def _list_sandboxes(
        self, client: SandboxClient, metadata: Mapping[str, str]
    ) -> list[SandboxListing]:
        from vercel.sandbox import SandboxQueryByCreatedAt, TagFilter

        [(key, value)] = metadata.items()
        query = SandboxQueryByCreatedAt(tag=TagFilter(key=key, value=value))
        return [
            SandboxListing(
                item.name,
                item.image or "",
                item.status or "",
                "" if item.created_at is None else _time(item.created_at).isoformat(),
            )
            async for item in client.query_sandboxes(query=query)
        ]

    def _describe(self, error: Exception) -> ServiceFailure | None:
        from vercel.sandbox import (
            SandboxApiError,
            SandboxCredentialsError,
            SandboxError,
            SandboxFilesystemWriteError,
            SandboxPathNotFoundError,
        )

        text = str(error)
        match error:
            case SandboxPathNotFoundError():
                return ServiceFailure(text, 404, is_about_file=True)
            case SandboxFilesystemWriteError(cause=SandboxApiError() as cause):
                return self._describe(cause)
            case SandboxApiError():
                return ServiceFailure(text, error.status_code, retry_after(error.response.headers))
            case SandboxCredentialsError():
                return ServiceFailure(text, 401)
            case SandboxError():
                return ServiceFailure(f"{type(error).__name__}: {text}", 0)
            case httpx2.TransportError():
                return ServiceFailure(f"{type(error).__name__}: {text}", None)
            case _:
                return None


def vercel(image: str | None = None, **options: Unpack[VercelOptions]) -> VercelProvider:
    """Return a provider that runs sandboxes at Vercel. Its ids are ``vercel/<name of the sandbox>``.

    The arguments that are not listed are those of ``e2b``.

    Args:
        image: An image of Vercel's registry, or None for Vercel's default.
        timeout: Seconds that the sandbox keeps running without a client, 3600 by default. While a client is
            connected, it is renewed, as far as your plan allows. Then Vercel stops the sandbox, which keeps
            its files and starts again with the next request.
        create: More arguments of ``vercel.sandbox.create_sandbox``, or a function that gets all arguments
            and returns those to use.
        client: Arguments of ``vercel.sandbox.SandboxServiceOptions``, such as ``credentials_factory``
            (default: the variables ``VERCEL_TOKEN``, ``VERCEL_TEAM_ID`` and ``VERCEL_PROJECT_ID``, or
            Vercel's OIDC token) and ``region``.

    Raises:
        ImportError: The extra ``vercel`` is not installed.
        ValueError: An argument is invalid.
    """
    return VercelProvider(image, **options)


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
