"""The provider of ComputeSDK: sandboxes of several services, through its gateway."""

from __future__ import annotations

import base64
import contextlib
import posixpath
import shlex
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers import renewing_transport
from sandbox_agent.providers.remote import Address, CommandOutput, RemoteOptions, RemoteProvider
from sandbox_agent.providers.service import Service, ServiceFailure

if TYPE_CHECKING:
    from computesdk import Compute, Sandbox

# Seconds. The SDK's own 30 s would end a slow installation.
_COMMAND_TIMEOUT = 1800.0
# Seconds, for a sandbox that starts. The SDK's own are 30.
_GATEWAY_TIMEOUT = 300.0


class ComputeSDKOptions(RemoteOptions, total=False):
    """The options of ``computesdk()``, which explains them."""

    client: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Connection:
    """A client of ComputeSDK, and the sandboxes that it has found, whose connections end with it."""

    client: Compute
    stack: contextlib.AsyncExitStack
    sandboxes: dict[str, Sandbox] = field(default_factory=dict[str, "Sandbox"])


class ComputeSDKProvider(RemoteProvider[Connection]):
    """Runs each sandbox at a service behind ComputeSDK. Created by ``computesdk``."""

    name: str = "computesdk"
    service: ClassVar[Service] = Service(
        "ComputeSDK", "computesdk", "COMPUTESDK_API_KEY", "client={'api_key': ...}", module="computesdk"
    )
    options_type: ClassVar[type[RemoteOptions]] = ComputeSDKOptions
    default_home: ClassVar[str] = "/home/user"

    def __init__(self, template: str | None = None, **options: Unpack[ComputeSDKOptions]) -> None:
        """Store the options. See ``computesdk`` for the arguments."""
        super().__init__(options)
        self._template = template
        self._client = dict(options.get("client") or {})
        self._extended: dict[str, float] = {}

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncGenerator[Connection]:
        from computesdk import Compute, create_config

        options: dict[str, Any] = {"timeout": _GATEWAY_TIMEOUT, **self._client}
        try:
            config = create_config(**options)
        except ValueError as error:
            raise SandboxAgentError(
                f"computesdk() is not configured: {error}. Set COMPUTESDK_API_KEY, and COMPUTESDK_PROVIDER "
                "with that service's own variables, or pass client={'api_key': ..., 'provider': ...}."
            ) from error
        async with Compute(config) as client, contextlib.AsyncExitStack() as stack:
            yield Connection(client, stack)

    async def _create_sandbox(self, client: Connection, name: str, metadata: Mapping[str, str]) -> str:
        from computesdk import CreateSandboxOptions

        arguments = self._native(
            {
                "name": name,
                "template_id": self._template,
                "envs": self._env,
                "timeout": self._timeout * 1000,
            },
            metadata=metadata,
        )
        sandbox = await client.client.sandbox.create(CreateSandboxOptions(**arguments))
        await self._remember(client, arguments["name"], sandbox)
        return arguments["name"]

    async def _remember(self, client: Connection, sandbox_id: str, sandbox: Sandbox) -> None:
        http = getattr(sandbox, "_client")  # noqa: B009 - it is private, and there is no other way
        http.timeout = _COMMAND_TIMEOUT
        client.sandboxes[sandbox_id] = await client.stack.enter_async_context(sandbox)
        self._extended.setdefault(sandbox_id, renewing_transport.clock())

    async def _get(self, client: Connection, sandbox_id: str) -> Sandbox:
        from computesdk import NotFoundError

        if sandbox_id not in client.sandboxes:
            sandbox = await client.client.sandbox.find(sandbox_id)
            if sandbox is None:
                raise NotFoundError(f"no sandbox is named {sandbox_id}")
            await self._remember(client, sandbox_id, sandbox)
        return client.sandboxes[sandbox_id]

    async def _destroy_sandbox(self, client: Connection, sandbox_id: str) -> None:
        self._extended.pop(sandbox_id, None)
        await (await self._get(client, sandbox_id)).destroy()

    async def _wake_sandbox(self, client: Connection, sandbox_id: str) -> bool:
        client.sandboxes.pop(sandbox_id, None)
        await self._get(client, sandbox_id)
        return False

    async def _write_file(self, client: Connection, sandbox_id: str, path: str, content: bytes) -> None:
        # The SDK's files are texts.
        sandbox = await self._get(client, sandbox_id)
        encoded, target = shlex.quote(f"{path}.base64"), shlex.quote(path)
        await self._check(client, sandbox_id, f"mkdir -p {shlex.quote(posixpath.dirname(path))}")
        await sandbox.filesystem.write_file(f"{path}.base64", base64.b64encode(content).decode())
        await self._check(client, sandbox_id, f"base64 -d <{encoded} >{target} && rm {encoded}")

    async def _check(self, client: Connection, sandbox_id: str, command: str) -> None:
        output = await self._run(client, sandbox_id, command)
        if output.exit_code:
            raise SandboxAgentError(
                f"a file could not be written in sandbox '{self.name}/{sandbox_id}': {output.stderr.strip()}"
            )

    async def _read_file(self, client: Connection, sandbox_id: str, path: str) -> bytes:
        from computesdk import NotFoundError

        sandbox = await self._get(client, sandbox_id)
        try:
            return (await sandbox.filesystem.read_file(path)).encode()
        except NotFoundError as error:
            raise FileNotFoundError(path) from error

    async def _run(self, client: Connection, sandbox_id: str, command: str) -> CommandOutput:
        result = await (await self._get(client, sandbox_id)).run_command(command)
        return CommandOutput(result.exit_code, result.stderr, result.stdout)

    async def _find_address(self, client: Connection, sandbox_id: str) -> Address:
        return Address(await (await self._get(client, sandbox_id)).get_url(self._agent_port))

    async def _renew(self, client: Connection, sandbox_id: str) -> None:
        sandbox = await self._get(client, sandbox_id)
        # The gateway adds to the time that is left.
        now = renewing_transport.clock()
        await sandbox.extend(int((now - self._extended[sandbox_id]) * 1000))
        self._extended[sandbox_id] = now

    def _describe(self, error: Exception) -> ServiceFailure | None:
        import httpx
        from computesdk import exceptions as errors

        text = str(error)
        match error:
            case FileNotFoundError():
                return ServiceFailure(text, 404, is_about_file=True)
            case errors.RateLimitError():
                return ServiceFailure(text, 429, error.retry_after)
            case errors.ConnectionError():
                return ServiceFailure(text, None)
            case errors.TimeoutError():
                return ServiceFailure(text, 408)
            case errors.ComputeSDKError():
                return ServiceFailure(text, error.status_code or 0)
            case httpx.TransportError():
                return ServiceFailure(f"{type(error).__name__}: {text}", None)
            case _:
                return None


def computesdk(template: str | None = None, **options: Unpack[ComputeSDKOptions]) -> ComputeSDKProvider:
    """Return a provider that runs sandboxes through ComputeSDK's gateway. Its ids are ``computesdk/<name>``.

    The arguments that are not listed are those of ``e2b``.

    Args:
        template: The template of the service behind the gateway, or None for its default.
        home: The home of the sandbox's user, ``/home/user`` by default. It depends on the service.
        create: More arguments of ``computesdk.CreateSandboxOptions``, or a function that gets all arguments
            and returns those to use.
        client: Arguments of ``computesdk.create_config``, such as ``api_key`` (default: the variable
            ``COMPUTESDK_API_KEY``), ``provider`` (``COMPUTESDK_PROVIDER``) and ``provider_headers``.

    Raises:
        ImportError: The extra ``computesdk`` is not installed.
        ValueError: An argument is invalid.
    """
    return ComputeSDKProvider(template, **options)
