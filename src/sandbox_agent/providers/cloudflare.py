"""The provider of Cloudflare: containers behind a Worker of your own, which the docs have."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Mapping
from typing import ClassVar, Unpack

import httpx2
import msgspec

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers.http_service import HTTPProvider
from sandbox_agent.providers.remote import Address, CommandOutput, RemoteOptions
from sandbox_agent.providers.service import Service

_URL_VARIABLE = "CLOUDFLARE_SANDBOX_URL"
_KEY_VARIABLE = "CLOUDFLARE_SANDBOX_API_KEY"
# The server's own token is in the header Authorization.
_KEY_HEADER = "X-Sandbox-Key"
# Seconds, for a container that starts and for a file. A command has no limit.
_TIMEOUT = 120.0


class CloudflareOptions(RemoteOptions, total=False):
    """The options of ``cloudflare()``, which explains them."""

    api_key: str | None


class CloudflareProvider(HTTPProvider):
    """Runs each sandbox in a container at Cloudflare. Created by ``cloudflare``."""

    name: str = "cloudflare"
    service: ClassVar[Service] = Service("The Worker", "cloudflare", _KEY_VARIABLE, "api_key=...")
    options_type: ClassVar[type[RemoteOptions]] = CloudflareOptions
    default_home: ClassVar[str] = "/root"
    has_env_file: ClassVar[bool] = True

    def __init__(self, url: str | None = None, **options: Unpack[CloudflareOptions]) -> None:
        """Store the options. See ``cloudflare`` for the arguments."""
        super().__init__(options)
        url = url or os.environ.get(_URL_VARIABLE)
        if not url or httpx2.URL(url).scheme not in ("http", "https"):
            raise ValueError(
                "url must be that of your Worker, such as https://sandboxes.example.workers.dev, not "
                f"{url!r}: pass it, or set {_URL_VARIABLE}"
            )
        self._url = url.rstrip("/")
        self._key = options.get("api_key") or os.environ.get(_KEY_VARIABLE, "")

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncGenerator[httpx2.AsyncClient]:
        if not self._key:
            raise SandboxAgentError(
                f"cloudflare() needs the Worker's key: set {_KEY_VARIABLE}, or pass api_key="
            )
        async with httpx2.AsyncClient(
            base_url=f"{self._url}/v1/sandbox/", headers={_KEY_HEADER: self._key}, timeout=_TIMEOUT
        ) as client:
            yield client

    async def _create_sandbox(
        self, client: httpx2.AsyncClient, name: str, metadata: Mapping[str, str]
    ) -> str:
        body = self._native({"timeout": self._timeout, "enableInternet": True}, metadata=metadata)
        await self._send(client, "PUT", name, json=body)
        return name

    async def _destroy_sandbox(self, client: httpx2.AsyncClient, sandbox_id: str) -> None:
        await self._send(client, "DELETE", sandbox_id)

    async def _wake_sandbox(self, client: httpx2.AsyncClient, sandbox_id: str) -> bool:
        await self._send(client, "POST", f"{sandbox_id}/timeout", json={"timeout": self._timeout})
        return False

    async def _write_file(
        self, client: httpx2.AsyncClient, sandbox_id: str, path: str, content: bytes
    ) -> None:
        await self._send(client, "PUT", f"{sandbox_id}/file", params={"path": path}, content=content)

    async def _read_file(self, client: httpx2.AsyncClient, sandbox_id: str, path: str) -> bytes:
        return await self._send(client, "GET", f"{sandbox_id}/file", params={"path": path})

    async def _run(self, client: httpx2.AsyncClient, sandbox_id: str, command: str) -> CommandOutput:
        content = await self._send(
            client, "POST", f"{sandbox_id}/exec", json={"command": command}, timeout=None
        )
        output = msgspec.json.decode(content)
        return CommandOutput(output["exitCode"], output["stderr"], output["stdout"])

    async def _find_address(self, client: httpx2.AsyncClient, sandbox_id: str) -> Address:
        await self._send(client, "GET", sandbox_id)  # it exists
        url = f"{self._url}/v1/sandbox/{sandbox_id}/port/{self._agent_port}"
        return Address(url, {_KEY_HEADER: self._key})

    async def _renew(self, client: httpx2.AsyncClient, sandbox_id: str) -> None:
        await self._wake_sandbox(client, sandbox_id)


def cloudflare(url: str | None = None, **options: Unpack[CloudflareOptions]) -> CloudflareProvider:
    """Return a provider that runs sandboxes in containers at Cloudflare. Its ids are ``cloudflare/<name>``.

    It needs the Worker of docs/sandboxes/cloudflare.md in your account. The arguments that are not listed are
    those of ``e2b``.

    Args:
        url: The URL of your Worker, or None for the variable ``CLOUDFLARE_SANDBOX_URL``.
        api_key: The Worker's key, or None for the variable ``CLOUDFLARE_SANDBOX_API_KEY``.
        timeout: Seconds that the container keeps running without a client, 3600 by default. While a client
            is connected, it is renewed. Then the container ends, with its files.
        create: More fields of the request that the Worker gets, such as ``{"enableInternet": False}``, or a
            function that gets all fields and returns those to send.

    Raises:
        ValueError: An argument is invalid.
    """
    return CloudflareProvider(url, **options)
