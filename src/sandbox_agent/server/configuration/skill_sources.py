"""Fetches the sources of skills: repositories by Git, into a cache.

A repository is fetched again when it was fetched an hour ago, or before the folder's skills were configured.
If that fails, the copy of before is used.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

import anyio
import msgspec
from anyio.to_thread import run_sync

from sandbox_agent.agents.install.command import credential_names, redact, run_command
from sandbox_agent.errors import InstallFailedError
from sandbox_agent.persist.private import make_private_folder
from sandbox_agent.runtime.folder_lock import delete_unused, lock_folder
from sandbox_agent.runtime.warden import Warden
from sandbox_agent.server.configuration.skill_files import SkillError
from sandbox_agent.wire.configuration import SkillSource

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# A server that does not respond must not hold up a session for longer.
FETCH_SECONDS: Final = 60.0
FRESH_SECONDS: Final = 3600.0
MAX_SOURCE_BYTES: Final = 256 * 1024 * 1024
MAX_SOURCE_FILES: Final = 50_000
_GITHUB: Final = re.compile(r"[\w.-]+/[\w.-]+\Z")
_URL: Final = re.compile(r"(https?|ssh|git)://[^\s\0]+\Z|[\w.-]+@[\w.-]+:[^\s\0]+\Z")
_REF: Final = re.compile(r"\w[\w./@+-]{0,255}\Z")
# Nothing of the repository is run, no user is asked, and submodules are left out.
_GIT: Final = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",
    "SSH_ASKPASS": "",
    "GIT_ALLOW_PROTOCOL": "http:https:ssh:git",
    "GIT_LFS_SKIP_SMUDGE": "1",
    "LC_ALL": "C",
}
_FETCH: Final = """
ulimit -f "$3"
git init -q --template= .
git fetch -q --depth 1 --no-tags --no-recurse-submodules -- "$1" "$2"
git rev-parse FETCH_HEAD
git ls-tree -r -l --full-tree FETCH_HEAD
"""
_CHECKOUT: Final = """
git -c core.hooksPath=/dev/null -c advice.detachedHead=false checkout -q FETCH_HEAD
rm -rf .git
"""
_TREE_LINE: Final = re.compile(r"\d{6} \w+ [0-9a-f]{40,64} +(\d+|-)")
_COMMIT: Final = re.compile(r"[0-9a-f]{40,64}\Z")


class Fetched(msgspec.Struct):
    """A copy of a repository.

    Attributes:
        folder: its folder in the cache.
        commit: its commit.
        time: when it was fetched, in seconds since the epoch.
    """

    folder: str
    commit: str
    time: float


class Repositories:
    """The repositories that were fetched.

    Args:
        cache: the folder for them.
        variables: returns variables for Git, such as a proxy.
    """

    def __init__(self, cache: Path, variables: Callable[[], Mapping[str, str]] = dict) -> None:
        self._cache = cache
        self._variables = variables
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def open(self, source: SkillSource, configured: float) -> AsyncGenerator[Path]:
        """Yield the folder with the files of a repository, which stays; fetch it if necessary.

        Args:
            source: of the type "github" or "git".
            configured: when it was configured, in seconds since the epoch: an older copy is not used.

        Raises:
            SkillError: the source is invalid, or can't be fetched and there is no copy.
        """
        url, ref = _address(source)
        key = hashlib.sha256(f"{url}\0{ref}".encode()).hexdigest()[:32]
        with ExitStack() as locks:
            async with self._locks.setdefault(key, asyncio.Lock()):
                folder = await self._get(key, url, ref, configured, locks)
            yield self._cache / folder

    async def _get(self, key: str, url: str, ref: str, configured: float, locks: ExitStack) -> str:
        """Return the name of a copy, which is locked until ``locks`` is closed."""
        known = await run_sync(self._known, key)
        with ExitStack() as lock:
            if known is not None and not self._lock(known.folder, lock):
                known = None
            oldest = max(configured, time.time() - FRESH_SECONDS)
            if known is not None and oldest <= known.time <= time.time():
                locks.enter_context(lock.pop_all())
                return known.folder
            try:
                fetched = await self._fetch(key, url, ref, locks)
            except SkillError as error:
                if known is None:
                    raise
                logger.warning("skills of %s are those of before: %s", redact(url), error)
                locks.enter_context(lock.pop_all())
                return known.folder
        await run_sync(self._clean, key, fetched.folder)
        return fetched.folder

    def _lock(self, folder: str, locks: ExitStack) -> bool:
        descriptor = lock_folder(self._cache / folder)
        if descriptor is not None:
            locks.callback(os.close, descriptor)
        return descriptor is not None

    def _known(self, key: str) -> Fetched | None:
        try:
            found = msgspec.json.decode((self._cache / f"{key}.json").read_bytes(), type=Fetched)
        except (OSError, msgspec.DecodeError):
            return None
        return found if (self._cache / found.folder).is_dir() else None

    async def _fetch(self, key: str, url: str, ref: str, locks: ExitStack) -> Fetched:
        if shutil.which("git") is None:
            raise SkillError("Git is not on PATH of the server: install it, or use a source of type local")
        partial = self._cache / f"{key}-{secrets.token_hex(4)}"
        done = False
        try:
            await run_sync(_make, partial)
            if not self._lock(partial.name, locks):
                raise FileNotFoundError(errno.ENOENT, "another server has deleted the new copy")
            logger.info("fetching the skills of %s", redact(url))
            with anyio.fail_after(FETCH_SECONDS):
                commit = await _clone(partial, url, ref, self._variables())
            found = Fetched(partial.name, commit, time.time())
            await run_sync(self._keep, key, found)
            done = True
        except TimeoutError:
            raise SkillError(f"{redact(url)} was not fetched within {FETCH_SECONDS:g} s") from None
        except InstallFailedError as error:
            reason = str(error).removeprefix("install failed: ")
            raise SkillError(f"{redact(url)} can't be fetched: {reason}") from None
        except OSError as error:
            raise SkillError(f"the cache of the server can't be written: {error.strerror}") from None
        finally:
            if not done:
                with anyio.CancelScope(shield=True):  # bounded: it deletes one folder
                    await run_sync(lambda: shutil.rmtree(partial, ignore_errors=True))
        return found

    def _keep(self, key: str, found: Fetched) -> None:
        """Use a copy from now on."""
        file = self._cache / f"{found.folder}.json"
        file.write_bytes(msgspec.json.encode(found))
        file.replace(self._cache / f"{key}.json")

    def _clean(self, key: str, used: str) -> None:
        """Delete the other copies that no session reads, of this server or of another one."""
        for folder in self._cache.glob(f"{key}-*"):
            if folder.name != used:
                delete_unused(folder)


def _make(folder: Path) -> None:
    make_private_folder(folder.parent)
    folder.mkdir(mode=0o700)


async def _clone(folder: Path, url: str, ref: str, variables: Mapping[str, str]) -> str:
    """Fetch one commit into a folder and check it out; return the commit."""
    commit, size, files = "", 0, 0

    def on_line(line: str) -> None:
        nonlocal commit, size, files
        found = _TREE_LINE.match(line)
        if found is not None:
            size += int(found[1]) if found[1] != "-" else 0
            files += 1
        elif _COMMIT.match(line):
            commit = line

    ssh = os.environ.get("GIT_SSH_COMMAND", "ssh -oBatchMode=yes")
    async with _warden() as warden:

        async def run(script: str, *arguments: str) -> None:
            await run_command(
                ["/bin/sh", "-ec", script, "sh", *arguments],
                cwd=folder,
                warden=warden,
                on_line=on_line,
                env={**variables, **_GIT, "GIT_SSH_COMMAND": ssh},
                without=credential_names(),
                what="git",
                agent_id="",
            )

        # A block of ulimit has 512 bytes.
        await run(_FETCH, url, ref, str(MAX_SOURCE_BYTES // 512))
        if size > MAX_SOURCE_BYTES or files > MAX_SOURCE_FILES:
            raise SkillError(
                f"{redact(url)} has {size} bytes in {files} files: at most {MAX_SOURCE_BYTES} bytes in "
                f"{MAX_SOURCE_FILES} files are fetched"
            )
        await run(_CHECKOUT)
    return commit


@asynccontextmanager
async def _warden() -> AsyncGenerator[Warden]:
    warden = Warden(uuid.uuid4().hex)
    try:
        yield warden
    finally:
        with anyio.CancelScope(shield=True):  # bounded by the warden's own limit
            await warden.close()


def _address(source: SkillSource) -> tuple[str, str]:
    """Return the URL and the ref of a repository.

    Raises:
        SkillError: one of them is invalid.
    """
    ref = source.ref or "HEAD"
    if not _REF.match(ref) or ".." in ref:
        raise SkillError(f"invalid ref {ref!r}: use a branch, a tag or a commit")
    if source.type == "github":
        if not _GITHUB.match(source.source):
            raise SkillError(
                f"invalid source {source.source!r}: use owner/repository, such as anthropics/skills"
            )
        return f"https://github.com/{source.source}", ref
    if not _URL.match(source.source):
        raise SkillError(
            f"invalid source {redact(source.source)!r}: use the URL of a repository, which begins with "
            "https://, http://, ssh:// or git://, or is user@host:path"
        )
    return source.source, ref
