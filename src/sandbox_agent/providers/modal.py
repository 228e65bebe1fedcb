"""The provider of Modal: sandboxes in gVisor containers at modal.com."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from sandbox_agent.errors import SandboxDestroyedError
from sandbox_agent.providers.remote import (
    Address,
    CommandOutput,
    RemoteOptions,
    RemoteProvider,
    SandboxListing,
)
from sandbox_agent.providers.service import Service, ServiceFailure

if TYPE_CHECKING:
    from modal import Sandbox

# Modal's longest, in seconds. It cannot be renewed.
_LIFETIME = 24 * 3600
_IMAGE = "node:24-trixie-slim"
_NAME_TAG = "sandbox-agent-name"


class ModalOptions(RemoteOptions, total=False):
    """The options of ``modal()``, which explains them."""

    app: str
    modal_client: Any  # its type is that of an extra


class ModalProvider(RemoteProvider[None]):
    """Runs each sandbox at Modal. Created by ``modal``."""

    name: str = "modal"
    service: ClassVar[Service] = Service(
        "Modal", "modal", "MODAL_TOKEN_ID (and MODAL_TOKEN_SECRET)", "modal_client=...", module="modal"
    )
    options_type: ClassVar[type[RemoteOptions]] = ModalOptions
    default_home: ClassVar[str] = "/root"
    # Connections through its tunnels keep a sandbox running.
    has_timeout: ClassVar[bool] = False

    def __init__(self, image: Any = None, **options: Unpack[ModalOptions]) -> None:
        """Store the options. See ``modal`` for the arguments."""
        super().__init__(options)
        self._image = image
        self._app = options.get("app", "sandbox-agent")
        self._modal_client = options.get("modal_client")

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncGenerator[None]:
        yield  # the SDK has one client for the program

    async def _create_sandbox(self, client: None, name: str, metadata: Mapping[str, str]) -> str:
        from modal import App, Image, Sandbox

        images: Any = Image  # the types of these calls are incomplete
        sandboxes: Any = Sandbox
        image = self._image
        if image is None:
            image = images.from_registry(_IMAGE, add_python="3.12").apt_install(
                "ca-certificates", "curl", "git"
            )
        elif isinstance(image, str):
            image = images.from_registry(image)
        app = await App.lookup.aio(self._app, client=self._modal_client, create_if_missing=True)
        arguments = self._native(
            {
                "app": app,
                "name": name,
                "image": image,
                "env": self._env,
                "timeout": _LIFETIME,
                "idle_timeout": self._timeout,
                "encrypted_ports": [self._agent_port],
            },
            tags=metadata,
        )
        arguments["tags"][_NAME_TAG] = arguments["name"]
        await sandboxes.create.aio("sleep", "infinity", client=self._modal_client, **arguments)
        return arguments["name"]

    async def _get(self, sandbox_id: str) -> Sandbox:
        from modal import Sandbox

        sandbox = await Sandbox.from_name.aio(self._app, sandbox_id, client=self._modal_client)
        if await sandbox.poll.aio() is not None:
            raise SandboxDestroyedError(sandbox_id, self.name)
        return sandbox

    async def _destroy_sandbox(self, client: None, sandbox_id: str) -> None:
        await (await self._get(sandbox_id)).terminate.aio()

    async def _wake_sandbox(self, client: None, sandbox_id: str) -> bool:
        await self._get(sandbox_id)
        return False

    async def _write_file(self, client: None, sandbox_id: str, path: str, content: bytes) -> None:
        await (await self._get(sandbox_id)).filesystem.write_bytes.aio(content, path)

    async def _read_file(self, client: None, sandbox_id: str, path: str) -> bytes:
        return await (await self._get(sandbox_id)).filesystem.read_bytes.aio(path)

    async def _run(self, client: None, sandbox_id: str, command: str) -> CommandOutput:
        process = await (await self._get(sandbox_id)).exec.aio("sh", "-c", command)
        stdout, stderr = await process.stdout.read.aio(), await process.stderr.read.aio()
        return CommandOutput(await process.wait.aio(), stderr, stdout)

    async def _find_address(self, client: None, sandbox_id: str) -> Address:
        tunnels = await (await self._get(sandbox_id)).tunnels.aio()
        if self._agent_port not in tunnels:
            raise self._unpublished(sandbox_id)
        return Address(tunnels[self._agent_port].url)

    async def _list_sandboxes(self, client: None, metadata: Mapping[str, str]) -> list[SandboxListing]:
        from modal import App, Sandbox
        from modal.exception import NotFoundError

        try:
            app = await App.lookup.aio(self._app, client=self._modal_client)
        except NotFoundError:  # nothing was created yet
            return []
        found: list[SandboxListing] = []
        tags = dict(metadata)
        async for each in Sandbox.list.aio(app_id=app.app_id, tags=tags, client=self._modal_client):
            name = (await each.get_tags.aio()).get(_NAME_TAG, "")
            found.append(SandboxListing(name, "", "running", ""))
        return found

    def _describe(self, error: Exception) -> ServiceFailure | None:
        from modal import exception

        text = str(error)
        match error:
            case exception.SandboxFilesystemNotFoundError():
                return ServiceFailure(text, 404, is_about_file=True)
            case exception.NotFoundError() | exception.SandboxTerminatedError():
                return ServiceFailure(text, 404)
            case exception.AuthError():
                return ServiceFailure(text, 401)
            case exception.PermissionDeniedError():
                return ServiceFailure(text, 403)
            case exception.AlreadyExistsError():
                return ServiceFailure(text, 409)
            case exception.InvalidError():
                return ServiceFailure(text, 400)
            case exception.ResourceExhaustedError():
                return ServiceFailure(text, 429)
            case exception.ServiceError():
                return ServiceFailure(text, 503)
            case exception.InternalError() | exception.InternalFailure():
                return ServiceFailure(text, 500)
            case exception.TimeoutError():
                return ServiceFailure(text, 408)
            case exception.ConnectionError():
                return ServiceFailure(text, None)
            case exception.Error():
                return ServiceFailure(f"{type(error).__name__}: {text}", 0)
            case _:
                return None


def modal(image: Any = None, **options: Unpack[ModalOptions]) -> ModalProvider:
    """Return a provider that runs sandboxes at Modal. Its ids are ``modal/<name of the sandbox>``.

    The arguments that are not listed are those of ``e2b``.

    Args:
        image: A ``modal.Image``, or the name of an image in a registry. None for one with Node.js and Python.
        app: The Modal app that the sandboxes belong to, which is created if necessary.
        timeout: Seconds that the sandbox keeps running without a client, 3600 by default. Then Modal ends it,
            with its files. It ends in any case a day after its start.
        create: More arguments of ``modal.Sandbox.create``, or a function that gets all arguments and returns
            those to use.
        modal_client: A ``modal.Client``, or None for the one of the variables ``MODAL_TOKEN_ID`` and
            ``MODAL_TOKEN_SECRET``, or of ``~/.modal.toml``.

    Raises:
        ImportError: The extra ``modal`` is not installed.
        ValueError: An argument is invalid.
    """
    return ModalProvider(image, **options)
