"""The provider of microsandbox: microVMs on this machine, from an image, without a daemon."""

from __future__ import annotations

import contextlib
import posixpath
import socket
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers.remote import (
    Address,
    CommandOutput,
    RemoteOptions,
    RemoteProvider,
    SandboxListing,
)
from sandbox_agent.providers.service import Service, ServiceFailure

if TYPE_CHECKING:
    from microsandbox import Sandbox

_IMAGE = "python:3.13-slim"
# MiB
_MEMORY = 2048
_CPUS = 2
_HOST = "127.0.0.1"


class MicrosandboxProvider(RemoteProvider[None]):
    """Runs each sandbox in a microVM of this machine. Created by ``microsandbox``."""

    name: str = "microsandbox"
    service: ClassVar[Service] = Service(
        "microsandbox",
        "microsandbox",
        "MSB_HOME",
        "create={...}",
        module="microsandbox",
        # The machine does not refuse a request for now.
        tries=1,
    )
    options_type: ClassVar[type[RemoteOptions]] = RemoteOptions
    default_home: ClassVar[str] = "/root"
    # Its configuration is a file of this machine, which keeps what is set at its creation.
    has_env_file: ClassVar[bool] = True

    def __init__(self, image: str | None = None, **options: Unpack[RemoteOptions]) -> None:
        """Store the options. See ``microsandbox`` for the arguments."""
        super().__init__(options)
        self._image = image or _IMAGE

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncGenerator[None]:
        yield  # the SDK has no client

    async def _create_sandbox(self, client: None, name: str, metadata: Mapping[str, str]) -> str:
        from microsandbox import Sandbox
        from microsandbox.types import PortBinding

        # It is the sandbox's from here on, unless another program is faster: then the start fails.
        with socket.create_server((_HOST, 0)) as free:
            port: int = free.getsockname()[1]
        arguments: dict[str, Any] = self._native(
            {
                "name": name,
                "image": self._image,
                "memory": _MEMORY,
                "cpus": _CPUS,
                "idle_timeout": float(self._timeout),
                "ports": [PortBinding.tcp(port, self._agent_port, bind=_HOST)],
            },
            labels=metadata,
        )
        name = arguments.pop("name")
        # It outlives this program.
        arguments["detached"] = True
        sandbox = await Sandbox.create(name, **arguments)
        await sandbox.detach()
        return name

    async def _get(self, sandbox_id: str) -> Sandbox:
        """Return a sandbox that runs."""
        from microsandbox import Sandbox

        return await (await Sandbox.get(sandbox_id)).connect()

    async def _destroy_sandbox(self, client: None, sandbox_id: str) -> None:
        from microsandbox import Sandbox

        await (await Sandbox.get(sandbox_id)).destroy(force=True)

    async def _wake_sandbox(self, client: None, sandbox_id: str) -> bool:
        from microsandbox import Sandbox, SandboxStatus

        found = await Sandbox.get(sandbox_id)
        if found.status == SandboxStatus.RUNNING:
            return False
        if found.status == SandboxStatus.PAUSED:
            await found.resume()
            return False
        await (await found.start(detached=True)).detach()
        return True

    async def _write_file(self, client: None, sandbox_id: str, path: str, content: bytes) -> None:
        sandbox = await self._get(sandbox_id)
        await sandbox.exec("mkdir", ["-p", posixpath.dirname(path)])
        await sandbox.fs.write(path, content)

    async def _read_file(self, client: None, sandbox_id: str, path: str) -> bytes:
        return await (await self._get(sandbox_id)).fs.read(path)

    async def _run(self, client: None, sandbox_id: str, command: str) -> CommandOutput:
        output = await (await self._get(sandbox_id)).exec("sh", ["-c", command])
        return CommandOutput(
            output.exit_code,
            output.stderr_bytes.decode(errors="replace"),
            output.stdout_bytes.decode(errors="replace"),
        )

    async def _find_address(self, client: None, sandbox_id: str) -> Address:
        from microsandbox import Sandbox

        config: dict[str, Any] = (await Sandbox.get(sandbox_id)).config()
        for each in config["network"]["ports"]:
            if each["guest_port"] == self._agent_port:
                return Address(f"http://{_HOST}:{each['host_port']}")
        raise SandboxAgentError(
            f"sandbox '{self.name}/{sandbox_id}' does not publish port {self._agent_port}: pass the "
            "agent_port with which it was created"
        )

    async def _renew(self, client: None, sandbox_id: str) -> None:
        from microsandbox import Sandbox

        await (await Sandbox.get(sandbox_id)).touch()

    async def _pause_sandbox(self, client: None, sandbox_id: str) -> None:
        # Stopped and not paused: a sandbox that is paused keeps its memory, but not across a restart
        # of the machine.
        from microsandbox import Sandbox

        await (await Sandbox.get(sandbox_id)).stop()

    async def _list_sandboxes(self, client: None, metadata: Mapping[str, str]) -> list[SandboxListing]:
        from microsandbox import Sandbox

        found: list[SandboxListing] = []
        cursor: str | None = None
        while True:
            page = await Sandbox.list_with(labels=dict(metadata), cursor=cursor)
            for each in page.sandboxes:
                created = each.created_at
                when = "" if created is None else datetime.fromtimestamp(created / 1000, UTC).isoformat()
                found.append(SandboxListing(each.name, _shown(each.config()["image"]), each.status, when))
            cursor = page.next_cursor
            if cursor is None:
                return found

    def _describe(self, error: Exception) -> ServiceFailure | None:
        from microsandbox import errors

        text = f"{type(error).__name__}: {error}"
        match error:
            case errors.PathNotFoundError():
                return ServiceFailure(text, 404, is_about_file=True)
            case errors.SandboxNotFoundError():
                return ServiceFailure(text, 404)
            case errors.SandboxAlreadyExistsError():
                return ServiceFailure(text, 409)
            case errors.MicrosandboxError():
                return ServiceFailure(text, 0)
            case _:
                return None


def microsandbox(image: str | None = None, **options: Unpack[RemoteOptions]) -> MicrosandboxProvider:
    """Return a provider that runs each sandbox in a microVM of this machine.

    Its ids are ``microsandbox/<name>``. The arguments that are not listed are those of ``e2b``.

    Args:
        image: An image with Python 3.11 or uv, or with ``sandbox-agent`` of this version. None for Python's.
        timeout: Seconds that the microVM keeps running without a client, 3600 by default. While a client is
            connected, it is renewed. Then the microVM stops, keeps its files, and starts again with the
            next client.
        create: More arguments of ``microsandbox.Sandbox.create``, such as ``{"memory": 4096}`` (in MiB) or
            ``{"network": Network(...)}``, or a function that gets all arguments and returns those to use.

    Raises:
        ImportError: The extra ``microsandbox`` is not installed.
        ValueError: The workspace is not a folder, or the timeout is not greater than 0.
    """
    return MicrosandboxProvider(image, **options)


def _shown(image: Mapping[str, Mapping[str, Any]] | str) -> str:
    """Return the name of an image in a configuration, such as ``{"Bind": {"path": "/rootfs"}}``."""
    if isinstance(image, str):
        return image
    values = [value for entry in image.values() for value in entry.values()]
    return next((value for value in values if isinstance(value, str)), "")
