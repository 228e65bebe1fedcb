"""The files of the sandbox: ``sdk.files``."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tarfile
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, TypeVar

import httpx2
import msgspec
from anyio.to_thread import run_sync

from sandbox_agent.client.feed import READ_TIMEOUT
from sandbox_agent.client.health import HealthCheck
from sandbox_agent.client.http import HELPER_READ_TIMEOUT, Http, describe, raise_for_problem
from sandbox_agent.client.server_sessions.calls import RetryPolicy, decode, is_of_network
from sandbox_agent.client.session import Session
from sandbox_agent.engine.sse import SseDecoder, SseEvent
from sandbox_agent.errors import (
    ConnectionLostError,
    InvalidRequestError,
    NotFoundError,
    SandboxAgentError,
    StreamError,
)
from sandbox_agent.wire.files import (
    FsActionResponse,
    FsChange,
    FsChanges,
    FsEntry,
    FsMoveRequest,
    FsMoveResponse,
    FsStat,
    FsUploadBatchResponse,
    FsWatchEnd,
    FsWriteResponse,
)
from sandbox_agent.wire.serial import Serializable

T = TypeVar("T")

# A path in the sandbox: absolute, or below the home of the server's user.
RemotePath = str | os.PathLike[str]
# Called with the bytes that were transferred, and of how many, or None if that is not known.
Progress = Callable[[int, int | None], None]

_CHUNK: Final = 1024 * 1024
_TAR: Final = "application/x-tar"


class FsDiff(Serializable, msgspec.Struct, frozen=True):
    """What a session has changed in its workspace.

    Attributes:
        patch: a unified diff; empty without changes. ``git apply`` accepts it unless it has binary files.
        truncated: whether the last files are left out, because there are more than 32 MiB.
    """

    patch: bytes
    truncated: bool

    @property
    def text(self) -> str:
        """The patch as a text; what is not UTF-8 is replaced."""
        return self.patch.decode(errors="replace")


class Files:
    """Reads and writes files in the sandbox; see ``SandboxAgent.files``.

    Every method waits until the server is healthy, and raises:

    * ``NotFoundError``: there is no such file or folder.
    * ``PermissionDeniedError``: the server's user may not do that, or ``--fs-root`` excludes the path.
    * ``InvalidRequestError``: the path is invalid, or a folder is where a file should be.
    * ``ConnectionLostError``: the server can't be reached.
    """

    def __init__(self, http: Http, health: HealthCheck) -> None:
        self._http = http
        self._health = health

    async def list(self, path: RemotePath = "") -> Sequence[FsEntry]:
        """Return what is in a folder, by name. Links are not followed, and count as files.

        Args:
            path: the folder; empty for the home of the server's user.
        """
        return await self._call("GET", "entries", list[FsEntry], {"path": os.fspath(path)} if path else {})

    async def stat(self, path: RemotePath) -> FsStat:
        """Return the type, size and time of a file or folder. Links are followed."""
        return await self._call("GET", "stat", FsStat, {"path": os.fspath(path)})

    async def read(self, path: RemotePath, *, start: int = 0, size: int | None = None) -> bytes:
        """Return the content of a file.

        Args:
            path: the file.
            start: the first byte.
            size: how many bytes at most; None for all.
        """
        if size == 0:
            return b""
        headers: dict[str, str] = {}
        if start or size is not None:
            last = "" if size is None else str(start + size - 1)
            headers["Range"] = f"bytes={start}-{last}"
        async with self._stream({"path": os.fspath(path)}, headers) as response:
            if response.status_code == 416:
                return b""
            parts = [part async for part in response.aiter_raw()]
            if headers and response.status_code == 200:
                # The published server knows no ranges.
                return b"".join(parts)[start : None if size is None else start + size]
        return b"".join(parts)

    async def read_text(self, path: RemotePath, encoding: str = "utf-8") -> str:
        """Return the content of a text file."""
        return (await self.read(path)).decode(encoding)

    async def stream(self, path: RemotePath) -> AsyncGenerator[bytes]:
        """Iterate over the content of a file, which is not held in memory."""
        async with self._stream({"path": os.fspath(path)}, {}) as response:
            async for part in response.aiter_raw():
                yield part

    async def write(
        self,
        path: RemotePath,
        content: bytes | str | AsyncIterable[bytes],
        *,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> str:
        """Write a file, with the folders on the way to it. It appears when all of it has arrived.

        Args:
            path: the file.
            content: bytes, a text in UTF-8, or pieces of bytes.
            if_match: write only if the file has this version; "*" if it exists.
            if_absent: write only if the file does not exist.

        Returns:
            The file's version; empty from the published server, which has none.

        Raises:
            SandboxAgentError: with status 412, it has another version, or exists already.
        """
        headers = {"Content-Type": "application/octet-stream"}
        if if_match is not None:
            headers["If-Match"] = if_match
        if if_absent:
            headers["If-None-Match"] = "*"
        body = content.encode() if isinstance(content, str) else content
        params = {"path": os.fspath(path)}
        response = await self._send("PUT", "file", params, headers, body)
        decode(response, FsWriteResponse, "PUT /v1/fs/file")
        return response.headers.get("etag", "")

    async def mkdir(self, path: RemotePath) -> str:
        """Make a folder, and those on the way to it; return its absolute path."""
        params = {"path": os.fspath(path)}
        return (await self._call("POST", "mkdir", FsActionResponse, params)).path

    async def move(self, source: RemotePath, target: RemotePath, *, overwrite: bool = False) -> str:
        """Move a file, link or folder; return its new absolute path.

        Raises:
            ConflictError: the target exists, and ``overwrite`` is False.
        """
        body = msgspec.json.encode(
            FsMoveRequest(from_=os.fspath(source), to=os.fspath(target), overwrite=overwrite or None)
        )
        headers = {"Content-Type": "application/json"}
        response = await self._send("POST", "move", {}, headers, body)
        return decode(response, FsMoveResponse, "POST /v1/fs/move").to

    async def delete(self, path: RemotePath, *, recursive: bool = False) -> None:
        """Delete a file, link or folder.

        Raises:
            ConflictError: the folder is not empty, and ``recursive`` is False.
        """
        params = {"path": os.fspath(path), **({"recursive": "true"} if recursive else {})}
        await self._call("DELETE", "entry", FsActionResponse, params)

    async def upload_batch(self, archive: bytes | IO[bytes], path: RemotePath = "") -> FsUploadBatchResponse:
        """Unpack a tar archive in a folder, which is made if necessary.

        Args:
            archive: the archive, without compression, or a file that has it.
            path: the folder; empty for the home of the server's user.

        Raises:
            InvalidRequestError: an entry leads out of the folder; nothing was written.
            PayloadTooLargeError: the archive is larger than the server's ``--max-upload-bytes``.
        """
        return await self._upload(archive if isinstance(archive, bytes) else _pieces(archive, None), path)

    async def _upload(self, body: bytes | AsyncIterable[bytes], path: RemotePath) -> FsUploadBatchResponse:
        params = {"path": os.fspath(path)} if path else {}
        response = await self._send("POST", "upload-batch", params, {"Content-Type": _TAR}, body)
        return decode(response, FsUploadBatchResponse, "POST /v1/fs/upload-batch")

    async def upload_dir(
        self,
        source: str | os.PathLike[str],
        target: RemotePath,
        *,
        gitignore: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Upload what is in a folder of this machine. What is in the target besides stays.

        Args:
            source: the folder of this machine.
            target: the folder in the sandbox, which is made if necessary.
            gitignore: leave out what Git ignores, and ``.git``. Needs Git, and a folder in a repository.
            progress: called with the bytes that were sent, and of how many.

        Raises:
            InvalidRequestError: the source is not a folder, or Git does not know it.
        """
        with tempfile.TemporaryFile() as file:
            await run_sync(_pack, file, Path(source), gitignore)
            await self._upload(_pieces(file, progress), target)

    async def download_dir(
        self, source: RemotePath, target: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> Sequence[str]:
        """Download what is in a folder of the sandbox. What is in the target besides stays.

        Nothing is written outside of the target: links that lead out of it are left out.

        Args:
            source: the folder in the sandbox.
            target: the folder of this machine, which is made if necessary.
            progress: called with the bytes that were received, and None.

        Returns:
            The entries that were left out.
        """
        with tempfile.TemporaryFile() as file:
            done = 0
            async with self._stream({"path": os.fspath(source), "archive": "tar"}, {}) as response:
                async for part in response.aiter_raw():
                    await run_sync(file.write, part)
                    done += len(part)
                    if progress is not None:
                        progress(done, None)
            await run_sync(file.seek, 0)
            return await run_sync(_unpack, file, Path(target))

    async def diff(self, session: Session | str) -> FsDiff:
        """Return what has changed in a session's workspace since the session was created.

        A session of ``create_session`` is compared with the state when its agent created it: after a
        restore, that may be the time of the restore. Files that are not committed are included, unless Git
        ignores them.

        Args:
            session: a session, or the id of one of the server's.

        Raises:
            ServerSessionNotFoundError: the server has no such session.
            ConflictError: the workspace is not in a Git repository, its state at the start was not recorded,
                or Git is not installed in the sandbox.
        """
        params = (
            {"session": session}
            if isinstance(session, str)
            else {"session": session.agent_session_id, "agent": session.agent}
        )
        response = await self._send("GET", "diff", params, {}, None)
        return FsDiff(response.content, response.headers.get("sandbox-agent-truncated") == "true")

    @contextlib.asynccontextmanager
    async def watch(
        self, path: RemotePath = "", *, recursive: bool = True
    ) -> AsyncGenerator[AsyncGenerator[Sequence[FsChange]]]:
        """Watch a folder: every change after the context was entered is found. Links are not followed.

        ``async with sdk.files.watch("work") as batches: async for changes in batches: ...``. After a lost
        connection the server is asked for what was missed; if it does not know, or changes came faster than
        the system reports them, there is a change of the type "gap".

        Args:
            path: the folder; empty for the home of the server's user.
            recursive: whether to watch the folders in it, too.

        Raises:
            NotFoundError: there is no such folder; while iterating, it was deleted or moved.
            StreamError: the folder can't be watched, or not any more: too much is watched.
            ConnectionLostError: the server is gone.
        """
        async with contextlib.aclosing(self._watch(os.fspath(path), recursive)) as batches:
            await anext(batches)
            yield batches

    async def _watch(self, path: str, recursive: bool) -> AsyncGenerator[Sequence[FsChange]]:
        """Yield an empty batch when the folder is watched, and then what changes."""
        params = {"path": path} if path else {}
        if not recursive:
            params["recursive"] = "false"
        retry = RetryPolicy(self._health, f"changes of '{path}'")
        await retry.wait_ready()
        last: str | None = None
        while True:
            loss: Exception | str = "the stream ended"
            headers = {"Accept": "text/event-stream"}
            if last is not None:
                headers["Last-Event-ID"] = last
            decoder = SseDecoder()
            try:
                async with (
                    self._http.stream(
                        "/v1/fs/watch", params=params, headers=headers, read_timeout=READ_TIMEOUT
                    ) as response,
                    contextlib.aclosing(response.aiter_raw()) as parts,
                ):
                    if response.status_code >= 400:
                        raise_for_problem(response.status_code, await response.aread())
                    retry.mark_responded()
                    async for part in parts:
                        for event in decoder.feed(part):
                            retry.mark_progress()
                            if event.event == "ready" and last is None:
                                yield []
                            last = event.id or last
                            if changes := _changes(event):
                                yield changes
            except httpx2.TransportError as error:
                loss = error
            except SandboxAgentError as error:
                if not is_of_network(error):
                    raise
                loss = error
            await retry.wait(loss)

    async def _call(self, method: str, name: str, kind: type[T], params: Mapping[str, str]) -> T:
        return decode(await self._send(method, name, params, {}, None), kind, f"{method} /v1/fs/{name}")

    async def _send(
        self,
        method: str,
        name: str,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        content: bytes | AsyncIterable[bytes] | None,
    ) -> httpx2.Response:
        await self._health.wait_ready()
        path = f"/v1/fs/{name}"
        try:
            response = await self._http.send(
                method,
                path,
                content=content,
                params=params,
                headers=headers,
                read_timeout=HELPER_READ_TIMEOUT,
            )
        except httpx2.TransportError as error:
            raise ConnectionLostError(
                f"{method} {path}: no response from {self._http.base_url} ({describe(error)}); it may have "
                "been done"
            ) from error
        raise_for_problem(response.status_code, response.content)
        return response

    @contextlib.asynccontextmanager
    async def _stream(
        self, params: Mapping[str, str], headers: Mapping[str, str]
    ) -> AsyncGenerator[httpx2.Response]:
        await self._health.wait_ready()
        path = "/v1/fs/file"
        try:
            async with self._http.stream(
                path, params=params, headers=headers, read_timeout=HELPER_READ_TIMEOUT
            ) as response:
                if response.status_code >= 400 and response.status_code != 416:
                    raise_for_problem(response.status_code, await response.aread())
                yield response
        except httpx2.TransportError as error:
            raise ConnectionLostError(
                f"GET {path}: the connection to {self._http.base_url} was lost ({describe(error)})"
            ) from error


def _changes(event: SseEvent) -> Sequence[FsChange]:
    """Return what an event of a watched folder says.

    Raises:
        NotFoundError: the folder was deleted or moved.
        StreamError: it can't be watched any more.
    """
    if event.event == "changes":
        return msgspec.json.decode(event.data, type=FsChanges).changes
    if event.event == "gap":
        return [msgspec.json.decode(event.data, type=FsChange)]
    if event.event == "end":
        ended = msgspec.json.decode(event.data, type=FsWatchEnd)
        raise NotFoundError(ended.detail) if ended.gone else StreamError(ended.detail)
    return []


async def _pieces(file: IO[bytes], progress: Progress | None) -> AsyncGenerator[bytes]:
    """Yield a file's content from its beginning, and report how far it was read."""
    await run_sync(file.seek, 0)
    size = os.fstat(file.fileno()).st_size
    done = 0
    while data := await run_sync(file.read, _CHUNK):
        yield data
        done += len(data)
        if progress is not None:
            progress(done, size)


def _pack(file: IO[bytes], folder: Path, gitignore: bool) -> None:
    if not folder.is_dir():
        raise InvalidRequestError(f"invalid request: '{folder}' is not a folder of this machine")
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        if gitignore:
            for name in _known_to_git(folder):
                # Git lists files that were deleted and not yet committed.
                if os.path.lexists(folder / name):
                    tar.add(folder / name, name, recursive=False)
        else:
            for path in sorted(folder.iterdir()):
                tar.add(path, path.name)


def _known_to_git(folder: Path) -> Iterator[str]:
    """Yield the files that Git does not ignore, relative to the folder."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)  # noqa: S603
    except FileNotFoundError:
        raise InvalidRequestError("invalid request: gitignore=True needs Git, which is not on PATH") from None
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip()
        raise InvalidRequestError(f"invalid request: Git can't list '{folder}': {why}")
    yield from dict.fromkeys(os.fsdecode(name) for name in done.stdout.split(b"\0") if name)


def _unpack(file: IO[bytes], folder: Path) -> Sequence[str]:
    """Unpack an archive of a sandbox; return what was left out because it leads out of the folder."""
    if not hasattr(tarfile, "data_filter"):
        raise SandboxAgentError("download_dir needs Python 3.11.4 or later, which refuses harmful archives")
    left_out: list[str] = []

    def inside(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        try:
            return tarfile.data_filter(member, path)
        except tarfile.FilterError:
            left_out.append(member.name)
            return None

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            tar.extractall(folder, filter=inside)  # noqa: S202 - the filter lets nothing out
    except tarfile.TarError as error:
        raise SandboxAgentError(
            f"the folder was not downloaded as a whole archive: {error}; the published server has no archives"
        ) from error
    return left_out
