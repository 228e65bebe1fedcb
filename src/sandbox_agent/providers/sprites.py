"""The provider of Sprites: virtual machines at sprites.dev, by its HTTP API."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Mapping
from typing import Any, ClassVar, Unpack
from urllib.parse import quote, urlencode

import httpx2
import msgspec

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers.http_service import RawOutput, SocketProvider, open_socket, run_command
from sandbox_agent.providers.remote import Address, RemoteOptions, SandboxListing
from sandbox_agent.providers.service import Service

_URL = "https://api.sprites.dev"
_VARIABLE = "SPRITE_TOKEN"
# The label of the sandboxes of this package; another one has the version.
_LABEL = "sandbox-agent"
# What Sprites starts with the machine, and whose port the machine's URL leads to.
_SERVICE = "sandbox-agent"
# Seconds, for a machine that starts. A command has no limit.
_TIMEOUT = 120.0
# Sandboxes in a page of the list.
_PAGE = 100
_STDIN_END = b"\x04"


class SpritesOptions(RemoteOptions, total=False):
    """The options of ``sprites()``, which explains them."""

    api_key: str | None
    url: str


class SpritesProvider(SocketProvider):
    """Runs each sandbox in a virtual machine of Sprites. Created by ``sprites``."""

    name: str = "sprites"
    service: ClassVar[Service] = Service("Sprites", "sprites", _VARIABLE, "api_key=...", module="websockets")
    options_type: ClassVar[type[RemoteOptions]] = SpritesOptions
    default_home: ClassVar[str] = "/home/sprite"
    # A command's variables are in the URL of its request.
    has_env_file: ClassVar[bool] = True
    never_ends: ClassVar[bool] = True
    has_timeout: ClassVar[bool] = False

    def __init__(self, **options: Unpack[SpritesOptions]) -> None:
        """Store the options. See ``sprites`` for the arguments."""
        super().__init__(options)
        self._key = options.get("api_key") or os.environ.get(_VARIABLE, "")
        self._url = options.get("url", _URL).rstrip("/")

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"}

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncGenerator[httpx2.AsyncClient]:
        if not self._key:
            raise SandboxAgentError(f"sprites() needs a token: set {_VARIABLE}, or pass api_key=")
        async with httpx2.AsyncClient(
            base_url=f"{self._url}/v1/", headers=self._headers, timeout=_TIMEOUT
        ) as client:
            yield client

    async def _create_sandbox(
        self, client: httpx2.AsyncClient, name: str, metadata: Mapping[str, str]
    ) -> str:
        # The server's own token protects it; the URL's other protection needs the token of the account.
        body = self._native({"name": name}, url_settings={"auth": "public"})
        version = f"{_LABEL}-{metadata['sandbox-agent-version']}"
        body["labels"] = [*(body.get("labels") or []), _LABEL, version]
        await self._send(client, "POST", "sprites", json=body)
        return body["name"]

    async def _get(self, client: httpx2.AsyncClient, sandbox_id: str) -> dict[str, Any]:
        return msgspec.json.decode(await self._send(client, "GET", _path(sandbox_id)), type=dict[str, Any])

    async def _destroy_sandbox(self, client: httpx2.AsyncClient, sandbox_id: str) -> None:
        await self._send(client, "DELETE", _path(sandbox_id))

    async def _wake_sandbox(self, client: httpx2.AsyncClient, sandbox_id: str) -> bool:
        # It wakes up by itself with a request or a command. If it is cold, it has no processes.
        return (await self._get(client, sandbox_id)).get("status") == "cold"

    async def _execute(
        self, client: httpx2.AsyncClient, sandbox_id: str, command: str, stdin: bytes = b""
    ) -> RawOutput:
        words = ["sh", "-c", command]
        query = urlencode([*(("cmd", word) for word in words), ("path", words[0]), ("stdin", "true")])
        url = f"{self._url}/v1/{_path(sandbox_id)}/exec?{query}"
        async with open_socket(url, self._headers) as socket:
            return await run_command(socket, lambda code: code[0] if code else 0, stdin, _STDIN_END)

    async def _start_server(self, client: httpx2.AsyncClient, sandbox_id: str) -> None:
        # A service starts again with the machine, and a command's processes do not. The service ends
        # when its first process does, which is why that one waits.
        await self._run_script(client, sandbox_id, "install")
        command = f"{self._start_command()}; exec sleep infinity"
        body = {"cmd": "sh", "args": ["-c", command], "http_port": self._agent_port}
        path = f"{_path(sandbox_id)}/services/{_SERVICE}"
        await self._call(sandbox_id, lambda: self._send(client, "PUT", path, json=body))
        await super()._start_server(client, sandbox_id)

    async def _find_address(self, client: httpx2.AsyncClient, sandbox_id: str) -> Address:
        return Address(str((await self._get(client, sandbox_id))["url"]).rstrip("/"))

    async def _pause_sandbox(self, client: httpx2.AsyncClient, sandbox_id: str) -> None:
        await self._get(client, sandbox_id)  # it exists, and sleeps when nothing is connected

    async def _list_sandboxes(
        self, client: httpx2.AsyncClient, metadata: Mapping[str, str]
    ) -> list[SandboxListing]:
        found: list[SandboxListing] = []
        query: dict[str, Any] = {"max_results": _PAGE, "bulk_load": "true"}
        while True:
            page = msgspec.json.decode(await self._send(client, "GET", "sprites", params=query))
            found += [
                SandboxListing(item["name"], "", item.get("status", ""), item.get("created_at") or "")
                for item in page["sprites"]
                if _LABEL in (item.get("labels") or [])
            ]
            if not page.get("has_more"):
                return found
            query["continuation_token"] = page["next_continuation_token"]


def sprites(**options: Unpack[SpritesOptions]) -> SpritesProvider:
    """Return a provider that runs sandboxes at Sprites. Its ids are ``sprites/<name of the sprite>``.

    The arguments that are not listed are those of ``e2b``. There is no ``timeout``: a sprite without
    connections sleeps, keeps its files, and wakes up with the next request.

    Args:
        api_key: The token of Sprites, or None for the variable ``SPRITE_TOKEN``.
        url: The URL of the API.
        create: More fields of the request that creates a sprite, such as ``{"config": {"ram_mb": 4096}}``,
            or a function that gets all fields and returns those to send.

    Raises:
        ImportError: The extra ``sprites`` is not installed.
        TypeError: There is no such argument.
        ValueError: The workspace is not a folder.
    """
    return SpritesProvider(**options)


def _path(name: str) -> str:
    return f"sprites/{quote(name, safe='')}"
