"""The provider of E2B: sandboxes in microVMs at e2b.dev, or at an E2B of your own."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import httpx2

from sandbox_agent.errors import SandboxAgentError, SandboxDestroyedError
from sandbox_agent.extras import MissingExtraError
from sandbox_agent.providers.remote import CommandOutput, RemoteProvider, RenewingTransport

if TYPE_CHECKING:
    from e2b import AsyncSandbox

# Seconds. A renewal delays a request: the service answers it quickly, or not.
_RENEW_TIMEOUT = 10.0
# Renewals in the time of the timeout.
_RENEWALS = 4

CreateOptions = Mapping[str, Any] | Callable[[dict[str, Any]], Mapping[str, Any]]


class E2BProvider(RemoteProvider):
    """Runs each sandbox at E2B. Created by ``e2b``."""

    name = "e2b"

    def __init__(
        self,
        template: str | None = None,
        *,
        env: Mapping[str, str] | None = None,
        workspace: str | os.PathLike[str] | None = None,
        install_agents: Sequence[str] = (),
        timeout: int = 3600,
        on_timeout: Literal["pause", "kill"] = "pause",
        agent_port: int = 2468,
        home: str = "/home/user",
        args: Sequence[str] = (),
        create: CreateOptions | None = None,
        client: Mapping[str, Any] | None = None,
    ) -> None:
        """Store the options. See ``e2b`` for the arguments."""
        if find_spec("e2b") is None:
            raise MissingExtraError(
                "e2b() needs the extra 'e2b': install it with pip install \"sandbox-agent-py[e2b]\""
            )
        super().__init__(
            home=home,
            workspace=workspace,
            install_agents=install_agents,
            agent_port=agent_port,
            args=args,
        )
        self._template = template
        self._env = dict(env or {})
        self._timeout = timeout
        self._on_timeout = on_timeout
        self._create = create
        self._client = dict(client or {})
        self._sandboxes: dict[str, AsyncSandbox] = {}

    async def _create_sandbox(self, metadata: Mapping[str, str]) -> str:
        from e2b import AsyncSandbox

        options: dict[str, Any] = {
            "template": self._template,
            "timeout": self._timeout,
            "lifecycle": {"on_timeout": self._on_timeout},
            "envs": self._env,
            "metadata": dict(metadata),
        }
        if callable(self._create):
            options = dict(self._create(options))
        else:
            options |= self._create or {}
        options["metadata"] = {**options.get("metadata", {}), **metadata}
        with _mapped(self.name, "a new sandbox"):
            sandbox = await AsyncSandbox.create(**options, **self._client)
        self._sandboxes[sandbox.sandbox_id] = sandbox
        return sandbox.sandbox_id

    async def _destroy_sandbox(self, sandbox_id: str) -> None:
        from e2b import AsyncSandbox

        self._sandboxes.pop(sandbox_id, None)
        with contextlib.suppress(SandboxDestroyedError), _mapped(self.name, sandbox_id):
            await AsyncSandbox.kill(sandbox_id, **self._client)

    async def _wake_sandbox(self, sandbox_id: str) -> None:
        from e2b import AsyncSandbox

        with _mapped(self.name, sandbox_id):
            sandbox = await AsyncSandbox.connect(sandbox_id, self._timeout, **self._client)
        self._sandboxes[sandbox_id] = sandbox

    async def _sandbox(self, sandbox_id: str) -> AsyncSandbox:
        if sandbox_id not in self._sandboxes:
            await self._wake_sandbox(sandbox_id)
        return self._sandboxes[sandbox_id]

    async def _write_file(self, sandbox_id: str, path: str, content: bytes) -> None:
        files: Any = (await self._sandbox(sandbox_id)).files  # its types are incomplete
        with _mapped(self.name, sandbox_id):
            await files.write(path, content, use_octet_stream=True)

    async def _read_file(self, sandbox_id: str, path: str) -> bytes:
        sandbox = await self._sandbox(sandbox_id)
        with _mapped(self.name, sandbox_id):
            return bytes(await sandbox.files.read(path, "bytes"))

    async def _run(self, sandbox_id: str, command: str) -> CommandOutput:
        from e2b import CommandExitException

        sandbox = await self._sandbox(sandbox_id)
        with _mapped(self.name, sandbox_id):
            try:
                # The default timeout would end the command, such as an installation, after 60 s.
                await sandbox.commands.run(command, timeout=0)
            except CommandExitException as error:
                return CommandOutput(error.exit_code, error.stderr or "")
        return CommandOutput(0, "")

    async def get_url(self, sandbox_id: str, /) -> str:
        """Return the URL under which E2B publishes the server's port."""
        sandbox = await self._sandbox(sandbox_id)
        own: str | None = self._client.get("sandbox_url")
        return own.rstrip("/") if own else f"https://{sandbox.get_host(self._agent_port)}"

    async def get_transport(self, sandbox_id: str, /) -> httpx2.AsyncBaseTransport:
        """Return a transport that renews the sandbox's timeout while it is used."""
        sandbox = await self._sandbox(sandbox_id)
        headers: dict[str, str] = {}
        if self._client.get("sandbox_url"):
            headers |= {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": str(self._agent_port)}
        if sandbox.traffic_access_token:
            headers["e2b-traffic-access-token"] = sandbox.traffic_access_token

        async def renew() -> None:
            with _mapped(self.name, sandbox_id):
                await sandbox.set_timeout(self._timeout, request_timeout=_RENEW_TIMEOUT)

        return RenewingTransport(await self.get_url(sandbox_id), headers, renew, self._timeout / _RENEWALS)

    async def pause(self, sandbox_id: str, /) -> None:
        """Pause the sandbox. Its memory and its files are kept.

        Raises:
            SandboxDestroyedError: It no longer exists.
        """
        from e2b import AsyncSandbox

        self._sandboxes.pop(sandbox_id, None)
        with _mapped(self.name, sandbox_id):
            await AsyncSandbox.pause(sandbox_id, **self._client)


def e2b(
    template: str | None = None,
    *,
    env: Mapping[str, str] | None = None,
    workspace: str | os.PathLike[str] | None = None,
    install_agents: Sequence[str] = (),
    timeout: int = 3600,
    on_timeout: Literal["pause", "kill"] = "pause",
    agent_port: int = 2468,
    home: str = "/home/user",
    args: Sequence[str] = (),
    create: CreateOptions | None = None,
    client: Mapping[str, Any] | None = None,
) -> E2BProvider:
    """Return a provider that runs sandboxes at E2B. Its sandbox ids are ``e2b/<id of the sandbox>``.

    If the template has no ``sandbox-agent`` of this version, it is installed when the sandbox is created, for
    which the template needs Python 3.11 or uv. The default working directory is ``workspace`` in the home.

    Args:
        template: The template's name or id, or None for that of E2B's SDK.
        env: Variables of all processes in the sandbox, such as the keys of agents.
        workspace: A folder of this machine whose content is copied into the working directory, with ``.git``
            and what ``.gitignore`` names.
        install_agents: Agents to install when the server starts.
        timeout: Seconds that the sandbox keeps running without a client. While a client is connected, it is
            renewed.
        on_timeout: What E2B then does. A sandbox that is paused continues with the next request.
        agent_port: The server's port in the sandbox.
        home: The home of the template's user.
        args: More arguments of the server.
        create: More arguments of ``e2b.AsyncSandbox.create``, or a function that gets all arguments and
            returns those to use.
        client: Arguments of each call of E2B's SDK, such as ``api_key`` (default: the variable
            ``E2B_API_KEY``) and ``domain``.

    Raises:
        ImportError: The extra ``e2b`` is not installed.
        ValueError: The workspace is not a folder.
    """
    return E2BProvider(
        template,
        env=env,
        workspace=workspace,
        install_agents=install_agents,
        timeout=timeout,
        on_timeout=on_timeout,
        agent_port=agent_port,
        home=home,
        args=args,
        create=create,
        client=client,
    )


@contextlib.contextmanager
def _cancelable() -> Generator[None]:
    """Raise a cancellation that E2B's SDK has turned into an error of a request."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, asyncio.CancelledError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from error
        raise


@contextlib.contextmanager
def _mapped(provider: str, sandbox_id: str) -> Generator[None]:
    """Raise the errors of E2B's SDK, which has retried what it can, as those of this package."""
    import httpx
    from e2b import (
        AuthenticationException,
        FileNotFoundException,
        RateLimitException,
        SandboxException,
        SandboxNotFoundException,
    )
    from e2b.exceptions import SandboxNotRunningException, ServiceBusyException

    try:
        with _cancelable():
            yield
    except FileNotFoundException as error:
        raise SandboxAgentError(
            f"sandbox '{provider}/{sandbox_id}' lacks a file: {error}. Use a sandbox that e2b() created."
        ) from error
    except (SandboxNotFoundException, SandboxNotRunningException) as error:
        raise SandboxDestroyedError(sandbox_id, provider) from error
    except AuthenticationException as error:
        raise SandboxAgentError(
            f"E2B refused the API key: {error}. Set the variable E2B_API_KEY to a valid key, or pass "
            "client={'api_key': ...}."
        ) from error
    except (RateLimitException, ServiceBusyException) as error:
        raise SandboxAgentError(
            f"E2B still refuses requests for now after several tries: {error}. Wait, or use fewer sandboxes "
            "at a time."
        ) from error
    except SandboxException as error:
        if error.status_code == 403:
            raise SandboxAgentError(
                f"E2B does not allow this with the API key of E2B_API_KEY: {error}. Use a key of the team "
                "that owns the sandbox or the template."
            ) from error
        raise SandboxAgentError(f"E2B failed for {sandbox_id}: {type(error).__name__}: {error}") from error
    except httpx.HTTPError as error:
        raise SandboxAgentError(
            f"E2B could not be reached for {sandbox_id}: {type(error).__name__}: {error}"
        ) from error
