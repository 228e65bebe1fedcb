"""The provider of E2B: sandboxes in microVMs at e2b.dev, or at an E2B of your own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack

from sandbox_agent.providers.base import finish
from sandbox_agent.providers.remote import (
    Address,
    CommandOutput,
    RemoteOptions,
    RemoteProvider,
    SandboxListing,
)
from sandbox_agent.providers.service import Service, ServiceFailure

if TYPE_CHECKING:
    from e2b import AsyncCommandHandle, AsyncSandbox


# Finds a sandbox whose id was lost with a response, in its metadata.
_NAME_KEY = "sandbox-agent-name"


class E2BOptions(RemoteOptions, total=False):
    """The options of ``e2b()``, which explains them."""

    on_timeout: Literal["pause", "kill"]
    client: Mapping[str, Any] | None


class E2BProvider(RemoteProvider[None]):
    """Runs each sandbox at E2B. Created by ``e2b``."""

    name: str = "e2b"
    # Its SDK repeats what it may.
    service: ClassVar[Service] = Service(
        "E2B", "e2b", "E2B_API_KEY", "client={'api_key': ...}", module="e2b", tries=1
    )
    options_type: ClassVar[type[RemoteOptions]] = E2BOptions
    default_home: ClassVar[str] = "/home/user"

    def __init__(self, template: str | None = None, **options: Unpack[E2BOptions]) -> None:
        """Store the options. See ``e2b`` for the arguments."""
        super().__init__(options)
        self._template = template
        self._on_timeout = options.get("on_timeout", "pause")
        self._client = dict(options.get("client") or {})
        self._sandboxes: dict[str, AsyncSandbox] = {}

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncGenerator[None]:
        yield  # each call of the SDK has a client of its own

    async def _create_sandbox(self, client: None, name: str, metadata: Mapping[str, str]) -> str:
        from e2b import AsyncSandbox

        options = self._native(
            {
                # The SDK repeats the request, also if E2B may have created the sandbox.
                "idempotency_key": name,
                "template": self._template,
                "timeout": self._timeout,
                "lifecycle": {"on_timeout": self._on_timeout},
                "envs": self._env,
            },
            metadata={**metadata, _NAME_KEY: name},
        )
        sandbox = await AsyncSandbox.create(**options, **self._client)
        self._sandboxes[sandbox.sandbox_id] = sandbox
        return sandbox.sandbox_id

    async def _find_lost(self, client: None, name: str) -> Sequence[str]:
        return [item.id for item in await self._list_sandboxes(client, {_NAME_KEY: name})]

    async def _destroy_sandbox(self, client: None, sandbox_id: str) -> None:
        from e2b import AsyncSandbox

        self._sandboxes.pop(sandbox_id, None)
        await AsyncSandbox.kill(sandbox_id, **self._client)

    async def _wake_sandbox(self, client: None, sandbox_id: str) -> bool:
        from e2b import AsyncSandbox

        sandbox = await AsyncSandbox.connect(sandbox_id, self._timeout, **self._client)
        self._sandboxes[sandbox_id] = sandbox
        return False

    async def _sandbox(self, sandbox_id: str) -> AsyncSandbox:
        if sandbox_id not in self._sandboxes:
            await self._wake_sandbox(None, sandbox_id)
        return self._sandboxes[sandbox_id]

    async def _write_file(self, client: None, sandbox_id: str, path: str, content: bytes) -> None:
        files: Any = (await self._sandbox(sandbox_id)).files  # its types are incomplete
        await files.write(path, content, use_octet_stream=True)

    async def _read_file(self, client: None, sandbox_id: str, path: str) -> bytes:
        sandbox = await self._sandbox(sandbox_id)
        return bytes(await sandbox.files.read(path, "bytes"))

    async def _run(self, client: None, sandbox_id: str, command: str) -> CommandOutput:
        from e2b import CommandExitException

        sandbox = await self._sandbox(sandbox_id)
        handles: list[AsyncCommandHandle] = []

        async def start() -> None:
            # The default timeout would end the command, such as an installation, after 60 s.
            handles.append(await sandbox.commands.run(command, background=True, timeout=0))

        try:
            # The SDK leaves the stream of a command open whose start is cancelled.
            await finish(start())
            result = await handles[0].wait()
        except CommandExitException as error:
            return CommandOutput(error.exit_code, error.stderr or "", error.stdout or "")
        except BaseException:
            for handle in handles:
                await finish(handle.disconnect())
            raise
        return CommandOutput(0, result.stderr, result.stdout)

    async def _find_address(self, client: None, sandbox_id: str) -> Address:
        sandbox = await self._sandbox(sandbox_id)
        own: str | None = self._client.get("sandbox_url")
        headers: dict[str, str] = {}
        if own:
            headers |= {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": str(self._agent_port)}
        if sandbox.traffic_access_token:
            headers["e2b-traffic-access-token"] = sandbox.traffic_access_token
        return Address(own.rstrip("/") if own else f"https://{sandbox.get_host(self._agent_port)}", headers)

    async def _renew(self, client: None, sandbox_id: str) -> None:
        await (await self._sandbox(sandbox_id)).set_timeout(self._timeout)

    async def _pause_sandbox(self, client: None, sandbox_id: str) -> None:
        from e2b import AsyncSandbox

        self._sandboxes.pop(sandbox_id, None)
        await AsyncSandbox.pause(sandbox_id, **self._client)

    async def _list_sandboxes(self, client: None, metadata: Mapping[str, str]) -> list[SandboxListing]:
        from e2b import AsyncSandbox, SandboxQuery

        found: list[SandboxListing] = []
        pages = AsyncSandbox.list(SandboxQuery(metadata=dict(metadata)), **self._client)
        while pages.has_next:
            for item in await pages.next_items():
                shown = item.name or item.template_id
                found.append(
                    SandboxListing(item.sandbox_id, shown, item.state.value, item.started_at.isoformat())
                )
        return found

    def _describe(self, error: Exception) -> ServiceFailure | None:
        import httpx
        from e2b import (
            AuthenticationException,
            FileNotFoundException,
            RateLimitException,
            SandboxException,
            SandboxNotFoundException,
        )
        from e2b.exceptions import SandboxNotRunningException, ServiceBusyException

        text = str(error)
        match error:
            case FileNotFoundException():
                return ServiceFailure(text, 404, is_about_file=True)
            case SandboxNotFoundException() | SandboxNotRunningException():
                return ServiceFailure(text, 404)
            case AuthenticationException():
                return ServiceFailure(text, 401)
            case RateLimitException() | ServiceBusyException():
                return ServiceFailure(text, 429)
            case SandboxException():
                return ServiceFailure(f"{type(error).__name__}: {error}", error.status_code or 0)
            case httpx.HTTPError():
                return ServiceFailure(f"{type(error).__name__}: {error}", None)
            case _:
                return None


def e2b(template: str | None = None, **options: Unpack[E2BOptions]) -> E2BProvider:
    """Return a provider that runs sandboxes at E2B. Its sandbox ids are ``e2b/<id of the sandbox>``.

    If the template has no ``sandbox-agent`` of this version, it is installed when the sandbox is created, for
    which the template needs Python 3.11 or uv. The default working directory is ``workspace`` in the home.

    Args:
        template: The template's name or id, or None for that of E2B's SDK.
        env: Variables of all processes in the sandbox, such as the keys of agents.
        workspace: A folder of this machine whose content is copied into the working directory, with ``.git``
            and what ``.gitignore`` names.
        install_agents: Agents to install when the server starts.
        timeout: Seconds that the sandbox keeps running without a client, 3600 by default. While a client is
            connected, it is renewed.
        on_timeout: What E2B then does: "pause", the default, or "kill". A sandbox that is paused continues
            with the next request.
        agent_port: The server's port in the sandbox, 2468 by default.
        home: The home of the template's user.
        args: More arguments of the server.
        create: More arguments of ``e2b.AsyncSandbox.create``, or a function that gets all arguments and
            returns those to use.
        client: Arguments of each call of E2B's SDK, such as ``api_key`` (default: the variable
            ``E2B_API_KEY``) and ``domain``.

    Raises:
        ImportError: The extra ``e2b`` is not installed.
        ValueError: The workspace is not a folder, or the timeout is not greater than 0.
    """
    return E2BProvider(template, **options)
