"""Downloads an archive, checks its checksum, and unpacks it into a folder."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import anyio
import anyio.to_thread
import httpx2

from sandbox_agent.agents.catalogue import Archive, ArchiveFile
from sandbox_agent.agents.install.command import redact
from sandbox_agent.agents.install.npm import current_platform
from sandbox_agent.errors import InstallFailedError

# Agents have up to 550 MB. These bound what a wrong URL costs.
MAX_ARCHIVE_BYTES = 1024**3
MAX_UNPACKED_BYTES = 4 * 1024**3
MAX_MEMBERS = 200_000
# How long the server of an archive may send nothing.
ARCHIVE_READ_SECONDS = 60.0
_CHUNK_BYTES = 1024 * 1024
_INVALID = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, gzip.BadGzipFile),
    *(EOFError, NotImplementedError, RuntimeError, ValueError),
)
_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


async def install_archive(
    agent_id: str, source: Archive, folder: Path, *, on_progress: Callable[[int, int], None]
) -> list[str]:
    """Download and unpack the archive for this platform, and return the command line that speaks ACP.

    Nothing is unpacked before the checksum was compared, or if a member would leave the folder.

    Args:
        agent_id: The agent.
        source: Its archives.
        folder: An existing, empty folder.
        on_progress: Called with the number of archives that were downloaded, and of all.

    Raises:
        InstallFailedError: There is none for this platform, it cannot be downloaded, its checksum is another
            one, or it is invalid.
    """
    platform = current_platform()
    file = source.platforms.get(platform)
    if file is None:
        known = ", ".join(sorted(source.platforms)) or "none"
        raise _failed(agent_id, f"there is no archive for {platform}, only for {known}")
    downloaded, unpacked = folder / "archive", folder / "files"
    try:
        await _download(agent_id, file, downloaded)
        on_progress(1, 1)
        program = await anyio.to_thread.run_sync(_unpack, agent_id, file, downloaded, unpacked)
    except (httpx2.HTTPError, httpx2.InvalidURL, ImportError) as error:  # no SOCKS support
        raise _failed(agent_id, f"{redact(file.url)} cannot be downloaded: {type(error).__name__}") from error
    except _INVALID as error:
        raise _failed(agent_id, f"{redact(file.url)} is not a valid archive: {redact(str(error))}") from error
    finally:
        downloaded.unlink(missing_ok=True)
    return [str(program), *source.args]


async def _download(agent_id: str, file: ArchiveFile, target: Path) -> None:
    digest, size = hashlib.sha256(), 0
    timeout = httpx2.Timeout(ARCHIVE_READ_SECONDS)
    async with (
        httpx2.AsyncClient(timeout=timeout, follow_redirects=True) as client,
        # The checksum is that of the file, not of what an encoding makes of it.
        client.stream("GET", file.url, headers={"Accept-Encoding": "identity"}) as response,
        await anyio.open_file(target, "xb") as output,
    ):
        if response.status_code != 200:
            raise _failed(
                agent_id, f"{redact(file.url)} cannot be downloaded: the status is {response.status_code}"
            )
        async for chunk in response.aiter_raw(_CHUNK_BYTES):
            size += len(chunk)
            if size > MAX_ARCHIVE_BYTES:
                raise _failed(agent_id, f"{redact(file.url)} is larger than {MAX_ARCHIVE_BYTES} bytes")
            digest.update(chunk)
            await output.write(chunk)
    if digest.hexdigest() != file.sha256.lower():
        raise _failed(
            agent_id,
            f"{redact(file.url)} has the SHA-256 checksum {digest.hexdigest()}, not {file.sha256.lower()}: "
            "nothing was unpacked",
        )


def _unpack(agent_id: str, file: ArchiveFile, archive: Path, folder: Path) -> Path:
    folder.mkdir()
    path = httpx2.URL(file.url).path.lower()
    if path.endswith(_TAR):
        _unpack_tar(agent_id, archive, folder)
    elif path.endswith(".zip"):
        _unpack_zip(agent_id, archive, folder)
    else:
        shutil.copyfile(archive, folder / "program")
        return _program(agent_id, folder, "program")
    return _program(agent_id, folder, file.member)


def _program(agent_id: str, folder: Path, member: str) -> Path:
    program = (folder / member).resolve()
    if not member or not program.is_relative_to(folder.resolve()) or not program.is_file():
        raise _failed(agent_id, f"the archive has no program {member!r}")
    program.chmod(0o755)
    return program


def _unpack_tar(agent_id: str, archive: Path, folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise _failed(agent_id, "this Python cannot unpack archives safely: use Python 3.11.4 or newer")
    with tarfile.open(archive) as tar:
        members: list[tarfile.TarInfo] = []
        size = 0
        for member in tar:  # not getmembers(): the limits come first
            members.append(member)
            size += member.size
            _check(agent_id, member.name, len(members), size)
            if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
                raise _failed(agent_id, f"the archive has a member that is no file: {member.name[:200]!r}")
        # It refuses links out of the folder, and drops owners and special modes.
        tar.extractall(folder, members=members, filter="data")


def _unpack_zip(agent_id: str, archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as zipped:
        size = 0
        for number, info in enumerate(zipped.infolist(), 1):
            size += info.file_size
            _check(agent_id, info.filename, number, size)
            mode = info.external_attr >> 16
            if mode & 0o170000 == 0o120000:
                raise _failed(agent_id, f"the archive has a link: {info.filename[:200]!r}")
            target = Path(zipped.extract(info, folder))
            if mode & 0o111 and target.is_file():
                target.chmod(0o755)


def _check(agent_id: str, name: str, number: int, size: int) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise _failed(agent_id, f"the archive has a member outside of its folder: {name[:200]!r}")
    if number > MAX_MEMBERS or size > MAX_UNPACKED_BYTES:
        raise _failed(
            agent_id,
            f"the archive has more than {MAX_MEMBERS} members, or {MAX_UNPACKED_BYTES} bytes unpacked",
        )


def _failed(agent_id: str, what: str) -> InstallFailedError:
    return InstallFailedError(f"install failed: {agent_id}: {what}", agent=agent_id)
