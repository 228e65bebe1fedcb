"""Folders as tar archives: unpacked as a batch of uploads, and packed as a download.

A batch is checked as a whole before anything of it is written: no entry of it, and no link in it, leads out
of the target folder. It is unpacked through ``Places`` with the target as the only root, so that links which
are there already do not lead out of it either.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import Generator, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Final

from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.server.files.places import Places, Root, is_folder
from sandbox_agent.server.files.tree import TEMPORARY, FileTree, Upload, explained

_CHUNK: Final = 1024 * 1024
# A format with names and sizes of any length.
_FORMAT: Final = tarfile.PAX_FORMAT
_ERRORS: Final = "surrogateescape"


def unpack(archive: IO[bytes], tree: FileTree, text: str) -> list[str]:
    """Write what is in an archive to a folder, which is made if necessary; return the paths.

    Files get the archive's permissions and times, and replace files of their names. What was there besides
    stays.

    Raises:
        InvalidRequestError: it is no tar archive, or an entry is a device or leads out of the target; nothing
            is written.
        ProblemError: the file system refused an entry; those before it are written.
    """
    names = _check(archive)
    tree.make_folder(text)
    archive.seek(0)
    paths: list[str] = []
    with (
        tree.open_folder(text) as (folder, path),
        tarfile.open(fileobj=archive, mode="r:", errorlevel=2) as tar,
    ):
        target = Path(path)
        places = Places([Root(target, folder)], target)
        for member, name in zip(tar, names, strict=True):
            _write(tar, member, places, target, str(target / name))
            paths.append(str(target / name))
    return paths


def pack(tree: FileTree, text: str) -> Iterator[bytes]:
    """Return the pieces of an archive of a folder, whose entries are relative to it. Links stay links.

    Raises:
        NotFoundError: there is no such folder.
        InvalidRequestError: it is not a folder.
    """
    context = tree.open_folder(text)
    folder, _ = context.__enter__()

    def pieces() -> Generator[bytes]:
        try:
            yield b""
            for place, folders, files, descriptor in os.fwalk(".", dir_fd=folder):
                folders.sort()
                for name in sorted([*folders, *files]):
                    if name.startswith(TEMPORARY):
                        continue
                    yield from _entry(name, os.path.normpath(os.path.join(place, name)), descriptor)
            yield bytes(tarfile.RECORDSIZE)
        finally:
            context.__exit__(None, None, None)

    found = pieces()
    next(found)  # from here on it closes the folder, also if nothing more is read
    return found


def _check(archive: IO[bytes]) -> list[str]:
    """Return the entries' paths relative to the target.

    Raises:
        InvalidRequestError: it is no archive, or an entry may not be written.
    """
    names: list[str] = []
    links: set[PurePosixPath] = set()
    try:
        with tarfile.open(fileobj=archive, mode="r:") as tar:
            for member in tar:
                path = _inside(member.name, PurePosixPath())
                if path is None:
                    raise _refused(member, "leads out of the target folder")
                if any(parent in links for parent in path.parents):
                    raise _refused(member, "is behind a link of the archive")
                if member.issym():
                    if _inside(member.linkname, path.parent) is None:
                        raise _refused(member, f"links to '{member.linkname}', out of the target folder")
                    links.add(path)
                elif member.islnk():
                    if _inside(member.linkname, PurePosixPath()) is None:
                        raise _refused(member, f"links to '{member.linkname}', out of the target folder")
                elif not (member.isdir() or member.isreg()) or member.issparse():
                    raise _refused(member, "is neither a file, a folder nor a link")
                else:
                    links.discard(path)
                names.append(str(path))
    except (tarfile.TarError, EOFError, UnicodeError, ValueError, OverflowError) as error:
        raise InvalidRequestError(f"invalid request: the body is not a whole tar archive: {error}") from None
    return names


def _inside(name: str, folder: PurePosixPath) -> PurePosixPath | None:
    """Return a path relative to the target; None if it leads out of that."""
    if name.startswith("/") or "\0" in name:
        return None
    parts: list[str] = []
    for part in (folder / name).parts:
        if part != "..":
            parts.append(part)
        elif not parts:
            return None
        else:
            parts.pop()
    return PurePosixPath(*parts)


def _refused(member: tarfile.TarInfo, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"invalid request: nothing was written: entry '{member.name}' {why}")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, places: Places, target: Path, path: str) -> None:
    mode = member.mode & 0o777
    if member.isdir():
        FileTree(places).make_folder(path)
        with explained(path), places.open(path) as place:
            os.chmod(place.name, mode | stat.S_IRWXU, dir_fd=place.folder)
    elif member.issym() or member.islnk():
        with explained(path), places.open(path, follow=False, make=True) as place:
            if is_folder(place):
                raise InvalidRequestError(f"invalid request: {path}: a folder is where a link should be")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(place.name, dir_fd=place.folder)
            if member.issym():
                os.symlink(member.linkname, place.name, dir_fd=place.folder)
                return
            with places.open(str(target / member.linkname), follow=False) as other:
                os.link(
                    other.name,
                    place.name,
                    src_dir_fd=other.folder,
                    dst_dir_fd=place.folder,
                    follow_symlinks=False,
                )
    else:
        _write_file(tar, member, places, path, mode)


def _write_file(tar: tarfile.TarFile, member: tarfile.TarInfo, places: Places, path: str, mode: int) -> None:
    # A link of that name is replaced, not followed.
    with (
        explained(path),
        places.open(path, follow=False, make=True) as place,
        contextlib.suppress(FileNotFoundError),
    ):
        if stat.S_ISLNK(os.stat(place.name, dir_fd=place.folder, follow_symlinks=False).st_mode):
            os.unlink(place.name, dir_fd=place.folder)
    content = tar.extractfile(member)
    assert content is not None
    upload = Upload(places, path)
    try:
        while data := content.read(_CHUNK):
            upload.append(data)
        upload.commit(mode=mode, modified=member.mtime)
    finally:
        upload.close()


def _entry(name: str, path: str, folder: int) -> Generator[bytes]:
    """Yield an entry; nothing for what is gone, or can't be read or packed."""
    info = tarfile.TarInfo(path)
    descriptor: int | None = None
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            info.type = tarfile.DIRTYPE
        elif stat.S_ISLNK(found.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=folder)
        elif stat.S_ISREG(found.st_mode):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=folder)
            found = os.fstat(descriptor)
            info.size = found.st_size
        else:
            return
    except (FileNotFoundError, PermissionError):
        return
    try:
        info.mode, info.mtime = stat.S_IMODE(found.st_mode), int(found.st_mtime)
        yield info.tobuf(_FORMAT, "utf-8", _ERRORS)
        if descriptor is not None:
            yield from _content(descriptor, info.size)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _content(descriptor: int, size: int) -> Generator[bytes]:
    """Yield exactly so many bytes, zeros for those that a program cuts off meanwhile; then the padding."""
    left = size
    while left:
        data = os.read(descriptor, min(left, _CHUNK)) or bytes(min(left, _CHUNK))
        left -= len(data)
        yield data
    yield bytes(-size % tarfile.BLOCKSIZE)
