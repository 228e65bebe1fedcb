"""Bodies of the HTTP contract about files; field names on the wire are those of the OpenAPI files."""

from __future__ import annotations

from typing import Literal

import msgspec

from sandbox_agent.wire.api import Body

__all__ = [
    "ChangeType",
    "FsActionResponse",
    "FsChange",
    "FsChanges",
    "FsEntry",
    "FsMoveRequest",
    "FsMoveResponse",
    "FsStat",
    "FsUploadBatchResponse",
    "FsWatchEnd",
    "FsWriteResponse",
]

EntryType = Literal["file", "directory"]
ChangeType = Literal["created", "modified", "deleted", "gap"]


class FsChange(Body):
    """A change in a folder that is watched.

    Attributes:
        type: "created" (also by a move, and for a file that was replaced), "modified" (content, time or
            permissions), "deleted" (also by a move), or "gap": there were changes that are not known, so
            list the folder again.
        path: the absolute path; for a gap, that of the folder.
    """

    type: ChangeType
    path: str


class FsChanges(Body):
    """Changes that were found together, one for each path."""

    changes: list[FsChange]


class FsWatchEnd(Body):
    """Why a folder is not watched any more.

    Attributes:
        detail: the reason.
        gone: whether the folder was deleted or moved.
    """

    detail: str
    gone: bool


class FsEntry(Body):
    """A file or folder in a folder.

    Attributes:
        name: in its folder.
        path: the absolute path.
        entry_type: "directory", or "file" for everything else, links included.
        size: in bytes.
        modified: when it was changed, in RFC 3339.
    """

    name: str
    path: str
    entry_type: EntryType
    size: int
    modified: str | None = None


class FsStat(Body):
    """A file or folder.

    Attributes:
        path: the absolute path.
        entry_type: "file" or "directory".
        size: in bytes.
        modified: when it was changed, in RFC 3339.
    """

    path: str
    entry_type: EntryType
    size: int
    modified: str | None = None


class FsActionResponse(Body):
    """A file or folder that was made or deleted, by its absolute path."""

    path: str


class FsWriteResponse(Body):
    """A file that was written."""

    path: str
    bytes_written: int


class FsMoveRequest(Body):
    """``POST /v1/fs/move``.

    Attributes:
        from_: the path of a file or folder.
        to: its new path.
        overwrite: whether to replace what is there.
    """

    from_: str = msgspec.field(name="from")
    to: str
    overwrite: bool | None = None


class FsMoveResponse(Body):
    """A file or folder that was moved, by its absolute paths."""

    from_: str = msgspec.field(name="from")
    to: str


class FsUploadBatchResponse(Body):
    """What a batch has written.

    Attributes:
        paths: the absolute paths, at most 1,024 of them.
        truncated: whether there are more.
    """

    paths: list[str]
    truncated: bool
