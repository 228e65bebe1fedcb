"""A client of the Docker Engine API, which podman's service offers, too."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol, cast

import httpcore2
import httpx2

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers.engine.endpoints import Endpoint, EngineName, find_endpoint, how_to_start
from sandbox_agent.providers.unix_transport import UnixTransport

# A request of which an engine under load answers the slowest, start, in a few seconds.
REQUEST_TIMEOUT = 60.0
CONNECT_TIMEOUT = 5.0
# Between two lines of a pull or a build, in which a step may print nothing.
PROGRESS_TIMEOUT = 600.0
_FRAME_HEAD = 8
_START_TRIES = 3
_REMOVE_TRIES = 3


class _Stream(Protocol):
    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes: ...
    async def write(self, buffer: bytes, timeout: float | None = None) -> None: ...


class EngineApi:
    """The calls that this package needs. Each opens its own connection, so any event loop may make it."""

    def __init__(self, engine: EngineName, host: str | None = None) -> None:
        """Find the engine.

        Raises:
            SandboxAgentError: There is no engine.
        """
        self.engine: EngineName = engine
        self.endpoint: Endpoint = find_endpoint(engine, host)

    @contextlib.asynccontextmanager
    async def _client(self, timeout: float) -> AsyncGenerator[httpx2.AsyncClient]:
        endpoint = self.endpoint
        if endpoint.path is not None:
            transport, base = UnixTransport(endpoint.path), "http://engine"
        else:
            transport = httpx2.AsyncHTTPTransport(verify=endpoint.tls or False)
            host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
            base = f"{'http' if endpoint.tls is None else 'https'}://{host}:{endpoint.port}"
        limits = httpx2.Timeout(timeout, connect=CONNECT_TIMEOUT)
        try:
            async with httpx2.AsyncClient(transport=transport, base_url=base, timeout=limits) as client:
                yield client
        except httpx2.ConnectError as error:
            raise self._unreachable(error) from error
        except httpx2.TimeoutException as error:
            raise SandboxAgentError(
                f"{self.engine} at {endpoint.url} did not answer within {timeout:g} s: check its log"
            ) from error
        except httpx2.TransportError as error:
            raise SandboxAgentError(
                f"the connection to {self.engine} at {endpoint.url} was lost: {error or type(error).__name__}"
            ) from error

    def _unreachable(self, error: httpx2.ConnectError) -> SandboxAgentError:
        url = self.endpoint.url
        if isinstance(error.__cause__, PermissionError):
            return SandboxAgentError(
                f"this user may not open the socket of {self.engine}, {url}: join its group (docker: "
                "usermod -aG docker USER, then log in again) or run a rootless engine"
            )
        return SandboxAgentError(
            f"{self.engine} does not listen at {url} ({error}): {how_to_start(self.engine)}"
        )

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        content: bytes | None = None,
        timeout: float = REQUEST_TIMEOUT,
    ) -> httpx2.Response:
        """Send a request and return its answer, which is a success or 304.

        Raises:
            SandboxAgentError: The engine refused it (``status`` is set) or did not answer.
        """
        async with self._client(timeout) as client:
            response = await client.request(method, path, params=params, json=body, content=content)
        if response.status_code >= 400:
            raise self._refused(response.status_code, response.content)
        return response

    def _refused(self, status: int, content: bytes) -> SandboxAgentError:
        try:
            message = str(json.loads(content)["message"])
        except (ValueError, LookupError, TypeError):
            message = content.decode("utf-8", "replace")[:500] or "no reason given"
        return SandboxAgentError(f"{self.engine} refused the request ({status}): {message}", status=status)

    async def inspect(self, container: str) -> dict[str, Any] | None:
        """Return what the engine knows about a container, or None if there is no such container."""
        try:
            return (await self.request("GET", f"/containers/{container}/json")).json()
        except SandboxAgentError as error:
            if _is_gone(error):
                return None
            raise

    async def list_containers(self, label: str) -> list[dict[str, Any]]:
        """Return all containers with a label, also those that do not run."""
        params = {"all": "true", "filters": json.dumps({"label": [label]})}
        return (await self.request("GET", "/containers/json", params=params)).json()

    async def remove(self, container: str) -> None:
        """Remove a container and its volumes. Does nothing if there is no such container.

        Podman refuses to remove a container whose process ends by itself while Podman stops it
        (containers/podman issue 16142); it is then asked again.
        """
        for tries_left in reversed(range(_REMOVE_TRIES)):
            try:
                await self.request(
                    "DELETE", f"/containers/{container}", params={"force": "true", "v": "true"}
                )
            except SandboxAgentError as error:
                # 409: another request removes it already.
                if error.status == 409 or _is_gone(error):
                    return
                if not tries_left or "could not be stopped" not in str(error):
                    raise
            else:
                return

    async def start(self, container: str, text: str) -> None:
        """Start a container and send a text to its standard input, unless it runs already.

        The container has to answer with some output. Podman connects to the process of before where that has
        just ended; then the container is started again.

        Raises:
            SandboxAgentError: The engine refused it, or the container did not read the text.
        """
        for _ in range(_START_TRIES):
            if await self._start_once(container, text):
                return
            with contextlib.suppress(SandboxAgentError):  # it has ended meanwhile
                await self.request("POST", f"/containers/{container}/kill")
            await self.wait_exited(container)
        raise SandboxAgentError(
            f"the container {container} did not read its token: {(await self.logs(container, 20)).strip()}"
        )

    async def wait_exited(self, container: str) -> None:
        """Wait until a container that has run has exited completely: Podman cannot attach to it before."""
        await self.request("POST", f"/containers/{container}/wait")

    async def _start_once(self, container: str, text: str) -> bool:
        """Return whether the container runs and has read the text."""
        async with self._client(REQUEST_TIMEOUT) as client:
            headers = {"Connection": "Upgrade", "Upgrade": "tcp"}
            params = {"stream": "1", "stdin": "1", "stdout": "1"}
            attach = client.stream("POST", f"/containers/{container}/attach", params=params, headers=headers)
            async with attach as attached:
                if attached.status_code >= 400:
                    raise self._refused(attached.status_code, await attached.aread())
                started = await client.post(f"/containers/{container}/start")
                if started.status_code >= 400:
                    raise self._refused(started.status_code, started.content)
                if started.status_code == 304:
                    # Another process has started it. A second text would stay in the pipe, for agents.
                    return True
                stream = cast(_Stream, attached.extensions["network_stream"])
                with contextlib.suppress(httpcore2.NetworkError):
                    await stream.write(text.encode() + b"\n", REQUEST_TIMEOUT)
                    return bool(await stream.read(1024, REQUEST_TIMEOUT))
        return False

    async def put_files(self, container: str, folder: str, files: bytes) -> None:
        """Extract a tar archive in a folder of a container."""
        path = f"/containers/{container}/archive"
        try:
            await self.request("PUT", path, params={"path": folder}, content=files)
        except SandboxAgentError as error:
            # Podman fails where its tar has read everything before the padding at the end was sent.
            if "broken pipe" not in str(error):
                raise
            await self.request("PUT", path, params={"path": folder}, content=files)

    async def read_file(self, container: str, path: str) -> bytes:
        """Return the content of a file of a container.

        Raises:
            SandboxAgentError: There is no such file.
        """
        answer = await self.request("GET", f"/containers/{container}/archive", params={"path": path})
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
            for member in archive:
                if (file := archive.extractfile(member)) is not None:
                    return file.read()
        raise SandboxAgentError(f"'{path}' is not a file in container {container}", status=404)

    async def logs(self, container: str, lines: int | None = None) -> str:
        """Return the output of a container, or its last lines."""
        params = {"stdout": "1", "stderr": "1", "tail": "all" if lines is None else str(lines)}
        answer = await self.request("GET", f"/containers/{container}/logs", params=params)
        return split_frames(answer.content).decode("utf-8", "replace")

    async def execute(
        self, container: str, command: Sequence[str], *, user: str = "", timeout: float = PROGRESS_TIMEOUT
    ) -> tuple[int, bytes]:
        """Run a command in a container. Return its exit code and its output."""
        body = {"Cmd": list(command), "AttachStdout": True, "AttachStderr": True, "User": user}
        made = (await self.request("POST", f"/containers/{container}/exec", body=body)).json()["Id"]
        answer = await self.request(
            "POST", f"/exec/{made}/start", body={"Detach": False, "Tty": False}, timeout=timeout
        )
        state = (await self.request("GET", f"/exec/{made}/json")).json()
        return int(state["ExitCode"] or 0), split_frames(answer.content)

    async def find_image(self, image: str) -> str | None:
        """Return the id of an image, or None if the engine does not have it."""
        try:
            return str((await self.request("GET", f"/images/{image}/json")).json()["Id"])
        except SandboxAgentError as error:
            if error.status == 404:
                return None
            raise

    async def stream_lines(
        self, path: str, *, params: Mapping[str, Any], content: bytes | None = None
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the JSON lines that an engine answers while it pulls or builds an image.

        Raises:
            SandboxAgentError: The engine refused the request or reported an error.
        """
        headers = {"Content-Type": "application/x-tar"} if content is not None else {}
        async with (
            self._client(PROGRESS_TIMEOUT) as client,
            client.stream("POST", path, params=params, content=content, headers=headers) as answer,
        ):
            if answer.status_code >= 400:
                raise self._refused(answer.status_code, await answer.aread())
            async for line in answer.aiter_lines():
                if not line.strip():
                    continue
                item: dict[str, Any] = json.loads(line)
                if "error" in item:
                    raise SandboxAgentError(f"{self.engine}: {str(item['error']).strip()}")
                yield item


def _is_gone(error: SandboxAgentError) -> bool:
    """Return whether there is no such container. Podman answers 500 while another request removes it."""
    message = str(error)
    return error.status == 404 or "container not known" in message or "no such container" in message


def split_frames(data: bytes) -> bytes:
    """Return the output in a stream of the engine, whose frames have a head with their kind and size."""
    found = bytearray()
    at = 0
    while at + _FRAME_HEAD <= len(data):
        size = int.from_bytes(data[at + 4 : at + _FRAME_HEAD])
        found += data[at + _FRAME_HEAD : at + _FRAME_HEAD + size]
        at += _FRAME_HEAD + size
    return bytes(found)
