"""``/v1/fs``: the files of the sandbox."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Iterator, Mapping
from http import HTTPStatus
from typing import Final

import anyio
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from sandbox_agent.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    StreamError,
)
from sandbox_agent.server.files import archive
from sandbox_agent.server.files.tree import ChangedError, File, FileTree, Upload, etag_of
from sandbox_agent.server.http.operations import (
    Answer,
    Operation,
    Parameter,
    get_header,
    read_flag,
    read_json,
    read_text,
    receive_body,
    text_schema,
)
from sandbox_agent.server.http.problems import PROBLEM_JSON, status_problem
from sandbox_agent.server.http.send_file import SEND_FILE, SendFile
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.wire.api import ProblemDetails
from sandbox_agent.wire.files import (
    FsActionResponse,
    FsEntry,
    FsMoveRequest,
    FsMoveResponse,
    FsStat,
    FsUploadBatchResponse,
    FsWriteResponse,
)

_CHUNK: Final = 1024 * 1024
# A batch names at most so many of its paths.
_MOST_PATHS: Final = 1_024
TAR: Final = "application/x-tar"
_BYTES: Final = "application/octet-stream"
_BINARY: Final = {"type": "string", "format": "binary"}
_ERRORS: Final = (InvalidRequestError, PermissionDeniedError, NotFoundError, StreamError)
_PATH_DESCRIPTION = (
    "An absolute path, or one below the home of the server's user (below the first `--fs-root` if that is "
    "not in one). A relative path has no part `..`."
)
_PATH = Parameter("path", "query", _PATH_DESCRIPTION, text_schema(least=1), required=True)
FOLDER = Parameter("path", "query", f"{_PATH_DESCRIPTION} Absent: where relative paths begin.")
_VERSION = {"etag": "The version of the file."}
_ENTRIES = {"type": "array", "items": {"$ref": "#/components/schemas/FsEntry"}}


@Operation(
    "GET",
    "/v1/fs/entries",
    tag="files",
    parameters=(FOLDER,),
    answers={200: Answer("What is in the folder, by name.", _ENTRIES)},
    schemas=(FsEntry,),
    errors=_ERRORS,
)
async def get_v1_fs_entries(request: Request) -> Response:
    """List a folder. Links are not followed, and count as files."""
    return json_response(await run_sync(_tree(request).entries, read_text(request, "path") or ""))


@Operation(
    "GET",
    "/v1/fs/stat",
    tag="files",
    parameters=(_PATH,),
    answers={200: Answer("The file or folder.", FsStat)},
    errors=_ERRORS,
)
async def get_v1_fs_stat(request: Request) -> Response:
    """Return the type, size and time of a file or folder. Links are followed."""
    return json_response(await run_sync(_tree(request).stat, _path(request)))


@Operation(
    "GET",
    "/v1/fs/file",
    tag="files",
    parameters=(
        _PATH,
        Parameter(
            "archive",
            "query",
            "`tar` for a folder: an archive of what is in it.",
            {"type": "string", "enum": ["tar"]},
        ),
        Parameter("Range", "header", "A range of bytes, such as `bytes=0-1023`."),
        Parameter("If-Range", "header", "The whole file is returned if it is not of this version."),
        Parameter("If-None-Match", "header", "304 is returned if the file is of this version."),
    ),
    answers={
        200: Answer("The file.", _BINARY, (_BYTES, TAR), _VERSION),
        206: Answer(
            "A range of it.",
            _BINARY,
            _BYTES,
            {**_VERSION, "content-range": "Which bytes they are, and of how many."},
        ),
        304: Answer("The client has that version.", headers=_VERSION),
        416: Answer("The file does not have these bytes.", ProblemDetails, PROBLEM_JSON),
    },
    errors=_ERRORS,
)
async def get_v1_fs_file(request: Request) -> Response:
    """Read a file, or a folder as an archive.

    A file that is replaced while it is read is read to its end as it was. In an archive, links stay links,
    and what the server's user can't read is left out.
    """
    tree, path = _tree(request), _path(request)
    kind = read_text(request, "archive")
    if kind == "tar":
        return StreamingResponse(_in_threads(await run_sync(archive.pack, tree, path)), media_type=TAR)
    if kind is not None:
        raise InvalidRequestError("invalid request: query parameter 'archive' must be tar")
    file = await run_sync(tree.open, path)
    try:
        response = _file_response(request, file)
    except BaseException:
        file.close()
        raise
    if not isinstance(response, _FileResponse):
        file.close()
    return response


@Operation(
    "PUT",
    "/v1/fs/file",
    tag="files",
    parameters=(
        _PATH,
        Parameter("If-Match", "header", "The version that the file must have, or `*`: it must exist."),
        Parameter("If-None-Match", "header", "`*`: the file must not exist."),
    ),
    request_body=_BINARY,
    media_type=_BYTES,
    answers={
        200: Answer("The file was written.", FsWriteResponse, headers=_VERSION),
        412: Answer("The file is of another version; nothing was written.", ProblemDetails, PROBLEM_JSON),
    },
    errors=(*_ERRORS, ConflictError),
)
async def put_v1_fs_file(request: Request) -> Response:
    """Write a file.

    The folders on the way are made. The file appears under its name when all of it has arrived: until then,
    and if the client disconnects, what was there before stays. It keeps the permissions of the file that it
    replaces. The body may have any size and media type.
    """
    tree, path = _tree(request), _path(request)
    matching, unless = get_header(request, b"if-match"), get_header(request, b"if-none-match")
    if unless not in (None, "*"):
        raise InvalidRequestError("invalid request: If-None-Match must be * when a file is written")
    upload = await run_sync(tree.write, path)
    try:
        await _receive(request, upload)
        version = await run_sync(
            lambda: upload.commit(matching=matching, new=unless is not None), abandon_on_cancel=False
        )
    except ChangedError:
        what = "exists" if unless is not None else "is of another version, or does not exist"
        return status_problem(
            HTTPStatus.PRECONDITION_FAILED, f"nothing was written: {upload.path} {what}: read it again", {}
        )
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(upload.close)
    response = json_response(FsWriteResponse(path=upload.path, bytes_written=upload.size))
    response.headers["etag"] = version
    return response


@Operation(
    "POST",
    "/v1/fs/mkdir",
    tag="files",
    parameters=(_PATH,),
    answers={200: Answer("The folder exists now.", FsActionResponse)},
    errors=(*_ERRORS, ConflictError),
)
async def post_v1_fs_mkdir(request: Request) -> Response:
    """Make a folder, and the folders on the way to it."""
    return json_response(FsActionResponse(path=await run_sync(_tree(request).make_folder, _path(request))))


@Operation(
    "POST",
    "/v1/fs/move",
    tag="files",
    request_body=FsMoveRequest,
    answers={200: Answer("The file or folder was moved.", FsMoveResponse)},
    errors=(*_ERRORS, ConflictError),
)
async def post_v1_fs_move(request: Request) -> Response:
    """Move a file, link or folder. The folders on the way to the target are made."""
    wanted = await read_json(request, FsMoveRequest, state_of(request).config.max_body_bytes)
    if not wanted.from_ or not wanted.to:
        raise InvalidRequestError("invalid request: 'from' and 'to' must be paths")
    tree, overwrite = _tree(request), bool(wanted.overwrite)
    source, target = await run_sync(lambda: tree.move(wanted.from_, wanted.to, overwrite=overwrite))
    return json_response(FsMoveResponse(from_=source, to=target))


@Operation(
    "DELETE",
    "/v1/fs/entry",
    tag="files",
    parameters=(
        _PATH,
        Parameter(
            "recursive",
            "query",
            "Whether to delete a folder with what is in it (default false).",
            {"type": "boolean"},
        ),
    ),
    answers={200: Answer("The file or folder was deleted.", FsActionResponse)},
    errors=(*_ERRORS, ConflictError),
)
async def delete_v1_fs_entry(request: Request) -> Response:
    """Delete a file, link or folder. What a link leads to stays."""
    tree, path, recursive = _tree(request), _path(request), read_flag(request, "recursive")
    return json_response(
        FsActionResponse(path=await run_sync(lambda: tree.delete(path, recursive=recursive)))
    )


@Operation(
    "POST",
    "/v1/fs/upload-batch",
    tag="files",
    parameters=(FOLDER,),
    request_body=_BINARY,
    media_type=TAR,
    answers={200: Answer("The entries were written.", FsUploadBatchResponse)},
    errors=(*_ERRORS, ConflictError, PayloadTooLargeError),
)
async def post_v1_fs_upload_batch(request: Request) -> Response:
    """Write the files, folders and links of a tar archive to a folder.

    The media type is `application/x-tar`, without compression. The folder is made if necessary; what is in
    it besides stays. An archive with a device, or with an entry or link that leads out of the folder, is
    refused as a whole. So is one that is larger than `--max-upload-bytes`.
    """
    if (get_header(request, b"content-type") or "").partition(";")[0].strip().lower() != TAR:
        raise InvalidRequestError(f"invalid request: content-type must be {TAR}")
    state = state_of(request)
    target = read_text(request, "path") or ""
    # Held as a file: entries are checked before the first one is written.
    spool = await run_sync(tempfile.TemporaryFile)
    try:
        most, size = state.config.max_upload_bytes, 0
        async for data in _body(request):
            size += len(data)
            if size > most:
                raise PayloadTooLargeError(
                    f"payload too large: the archive is larger than {most} bytes (set by --max-upload-bytes)"
                )
            await run_sync(spool.write, data)
        await run_sync(spool.seek, 0)
        paths = await run_sync(archive.unpack, spool, state.files, target)
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(spool.close)
    return json_response(FsUploadBatchResponse(paths=paths[:_MOST_PATHS], truncated=len(paths) > _MOST_PATHS))


def _tree(request: Request) -> FileTree:
    return state_of(request).files


def _path(request: Request) -> str:
    path = read_text(request, "path")
    if path is None:
        raise InvalidRequestError("invalid request: query parameter 'path' is missing")
    return path


async def _body(request: Request) -> AsyncGenerator[bytes]:
    """Yield the body in pieces of about a MiB."""
    parts: list[bytes] = []
    size = 0
    async for part in receive_body(request):
        parts.append(part)
        size += len(part)
        if size >= _CHUNK:
            yield b"".join(parts)
            parts.clear()
            size = 0
    if parts:
        yield b"".join(parts)


async def _receive(request: Request, upload: Upload) -> None:
    async for data in _body(request):
        await run_sync(upload.append, data)


def _file_response(request: Request, file: File) -> Response:
    size, version = file.found.st_size, etag_of(file.found)
    headers = {"etag": version, "accept-ranges": "bytes"}
    known = get_header(request, b"if-none-match")
    if known is not None and (known == "*" or version in [one.strip() for one in known.split(",")]):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    first, last, status = 0, size - 1, HTTPStatus.OK
    wanted = get_header(request, b"range")
    if wanted is not None and get_header(request, b"if-range") in (None, version):
        found = _range(wanted, size)
        if found is not None:
            first, last = found
            if first > last:
                return status_problem(
                    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                    f"the file has {size} bytes: {wanted} is beyond its end",
                    {"content-range": f"bytes */{size}"},
                )
            status = HTTPStatus.PARTIAL_CONTENT
            headers["content-range"] = f"bytes {first}-{last}/{size}"
    headers["content-length"] = str(last - first + 1)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=_BYTES)
    return _FileResponse(file, first, last + 1, status, headers)


def _range(text: str, size: int) -> tuple[int, int] | None:
    """Return the first and last byte of a range; None if the header is not one range of bytes.

    The first is after the last if the file does not have the range.
    """
    unit, equals, span = text.partition("=")
    first, dash, last = (part.strip() for part in span.partition("-"))
    if unit.strip().lower() != "bytes" or not (equals and dash) or not (first or last):
        return None
    if not all(part.isascii() and (part.isdigit() or not part) for part in (first, last)):
        return None
    if not first:
        return (size - min(int(last), size), size - 1) if int(last) else (1, 0)
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last or size), size - 1)


class _FileResponse(StreamingResponse):
    """A range of a file, which is closed at the end."""

    def __init__(
        self, file: File, start: int, end: int, status: HTTPStatus, headers: Mapping[str, str]
    ) -> None:
        super().__init__((), status, headers, _BYTES)
        self._file = file
        self._start, self._end = start, end
        self._send_file: SendFile | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send_file = scope.get("extensions", {}).get(SEND_FILE)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if self._send_file is not None:
            self._start = await self._send_file(self._file.descriptor, self._start, self._end)
        async for data in _content(self._file, self._start, self._end):
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _content(file: File, start: int, end: int) -> AsyncGenerator[bytes]:
    """Yield a range of a file. While a piece is sent, the next one is read."""

    def read() -> asyncio.Future[bytes]:
        return asyncio.ensure_future(run_sync(file.read, start, min(_CHUNK, end - start)))

    reading = read()
    try:
        while start < end:
            data = await reading
            if not data:
                # The connection is cut: the client must not take it for the whole.
                raise RuntimeError(f"the file became shorter while it was read, to {start} bytes")
            start += len(data)
            if start < end:
                reading = read()
            yield data
    finally:
        with anyio.CancelScope(shield=True):
            await asyncio.gather(reading, return_exceptions=True)


async def _in_threads(pieces: Iterator[bytes]) -> AsyncGenerator[bytes]:
    """Yield what a blocking iterator yields, in pieces of about a MiB."""
    try:
        while data := await run_sync(_gather, pieces):
            yield data
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(getattr(pieces, "close", lambda: None))


def _gather(pieces: Iterator[bytes]) -> bytes:
    parts: list[bytes] = []
    size = 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size >= _CHUNK:
            break
    return b"".join(parts)


OPERATIONS = (
    get_v1_fs_entries,
    get_v1_fs_stat,
    get_v1_fs_file,
    put_v1_fs_file,
    post_v1_fs_mkdir,
    post_v1_fs_move,
    delete_v1_fs_entry,
    post_v1_fs_upload_batch,
)
