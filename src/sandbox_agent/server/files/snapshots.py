"""Snapshots of Git work trees, in repositories of the server's own.

Git runs with the server's repository as its GIT_DIR, whose configuration is the server's. So nothing in the
configuration of the workspace's repository (hooks, filters, a file system monitor, diff drivers) is run, and
nothing in that repository is changed: it is read for its index, which says which files are unchanged, and for
its objects, so that they are not stored twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
import subprocess
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import anyio
import anyio.abc
from anyio.to_thread import run_sync

from sandbox_agent.errors import ConflictError

# Larger files are left out, on both sides of a difference.
MOST_FILE_BYTES: Final = 32 * 1024 * 1024
# Of files that Git does not know yet, or that were changed.
MOST_BYTES: Final = 1024 * 1024 * 1024
MOST_DIFF_BYTES: Final = 32 * 1024 * 1024
_MOST_INDEX_BYTES: Final = 256 * 1024 * 1024
_REFS: Final = "refs/baselines"
_PRUNE_SECONDS: Final = 60.0


class Difference(NamedTuple):
    """The difference of two snapshots: a patch, and whether files are left out because it is too large."""

    patch: bytes
    truncated: bool


class _GitError(Exception):
    """Git failed; its reason."""


class WorkTree(NamedTuple):
    """A work tree of the workspace.

    Attributes:
        top: its folder.
        git: the folder that has its index.
        objects: the folder of its repository's objects.
    """

    top: Path
    git: Path
    objects: Path


def find_work_tree(folder: str) -> WorkTree | None:
    """Return the work tree that has a folder, without running Git."""
    for top in (Path(folder), *Path(folder).parents):
        git = top / ".git"
        try:
            found = git.lstat()
            if stat.S_ISREG(found.st_mode):
                text = _small_text(git)
                if not text.startswith("gitdir:"):
                    continue
                git = top / text.removeprefix("gitdir:").strip()
            if not (git / "HEAD").exists():
                continue
            common = git / "commondir"
            base = git / _small_text(common).strip() if common.is_file() else git
            return WorkTree(top, git, base / "objects")
        except (OSError, ValueError):
            continue
    return None


class Snapshots:
    """Makes and compares snapshots.

    Attributes:
        folder: where the repositories are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder: Path = folder
        self._limiter = anyio.Semaphore(2)

    async def take(self, tree: WorkTree) -> str:
        """Make a snapshot and return its id.

        Raises:
            ConflictError: it can't be made.
        """
        async with self._opened(tree) as repository:
            return await repository.snapshot()

    async def keep(self, tree: WorkTree, name: str, snapshot: str) -> None:
        """Keep a snapshot under a name.

        Raises:
            ConflictError: it can't be kept.
        """
        async with self._opened(tree) as repository:
            await repository.git("update-ref", f"{_REFS}/{_hash(name)}", snapshot)

    def has(self, tree: WorkTree, name: str) -> bool:
        """Whether a snapshot of that name is kept."""
        return (self._repository(tree) / _REFS / _hash(name)).is_file()

    async def compare(self, tree: WorkTree, name: str) -> Difference:
        """Return how the work tree differs now from the snapshot of a name.

        Raises:
            ConflictError: there is no such snapshot, or it can't be compared.
        """
        async with self._opened(tree) as repository:
            now = await repository.snapshot()
            return await repository.difference(f"{_REFS}/{_hash(name)}", now)

    def prune(self, names: Iterable[str], before: float) -> None:
        """Delete the snapshots of other names that were made before a time, and what only they have."""
        kept = {_hash(name) for name in names}
        for repository in self.folder.iterdir() if self.folder.is_dir() else ():
            refs = repository / _REFS
            for ref in list(refs.iterdir()) if refs.is_dir() else []:
                if ref.name not in kept and ref.stat().st_mtime < before:
                    ref.unlink()
            with contextlib.suppress(FileNotFoundError):
                if refs.is_dir() and any(refs.iterdir()):
                    _drop_unused(repository)
                elif repository.stat().st_mtime < before:
                    shutil.rmtree(repository)

    def _repository(self, tree: WorkTree) -> Path:
        return self.folder / _hash(os.path.realpath(tree.top))

    @asynccontextmanager
    async def _opened(self, tree: WorkTree) -> AsyncGenerator[_Repository]:
        if shutil.which("git") is None:
            raise ConflictError("conflict: Git is not installed in the sandbox: it makes the difference")
        index = self._repository(tree) / f"index-{secrets.token_hex(8)}"
        async with self._limiter:
            repository = _Repository(self._repository(tree), tree, index)
            try:
                await repository.prepare()
                yield repository
            except (_GitError, OSError) as error:
                raise ConflictError(
                    f"conflict: the state of {tree.top} can't be recorded or compared: {error}"
                ) from None
            finally:
                with anyio.CancelScope(shield=True):
                    await run_sync(_remove_all, [index, index.with_name(f"{index.name}.lock")])


def _drop_unused(repository: Path) -> None:
    """Delete what comparisons have written, and no snapshot has."""
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(repository),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    command = ["git", "--git-dir", str(repository), "prune", "--expire=1.hour.ago"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # without Git there is no comparison either
        subprocess.run(  # noqa: S603 - the server's own repository
            command, env=env, check=False, timeout=_PRUNE_SECONDS, capture_output=True
        )


class _Repository:
    """One of the server's repositories, with an index of its own."""

    def __init__(self, folder: Path, tree: WorkTree, index: Path) -> None:
        self._folder = folder
        self._tree = tree
        self._index = index
        self._env: Mapping[str, str] = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C",
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            "GIT_DIR": str(folder),
            "GIT_WORK_TREE": str(tree.top),
            "GIT_INDEX_FILE": str(index),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_TERMINAL_PROMPT": "0",
        }

    async def prepare(self) -> None:
        """Make the repository if it does not exist yet."""
        config = await run_sync(_small_text_or_none, self._tree.objects.parent / "config")
        sha256 = re.search(r"objectformat\s*=\s*sha256", config or "", re.IGNORECASE)
        if not await run_sync((self._folder / "HEAD").exists):
            await run_sync(lambda: self._folder.mkdir(mode=0o700, parents=True, exist_ok=True))
            # Neither a work tree nor an index is known to this command.
            form = f"--object-format={'sha256' if sha256 else 'sha1'}"
            command = ["git", "init", "--quiet", "--bare", "--template=", form, str(self._folder)]
            known = ("PATH", "LC_ALL", "HOME", "XDG_CONFIG_HOME", "GIT_CONFIG_NOSYSTEM", "GIT_CONFIG_GLOBAL")
            await _run(command, {name: self._env[name] for name in known}, self._folder)
        await run_sync(self._use_objects)

    def _use_objects(self) -> None:
        path = os.path.realpath(self._tree.objects)
        alternates = self._folder / "objects/info/alternates"
        alternates.parent.mkdir(exist_ok=True)
        # A path that begins with one of the others would be read as something else.
        alternates.write_text("" if "\n" in path or path[0] in '"#' else f"{path}\n", encoding="utf-8")

    async def git(self, *words: str, given: bytes | None = None) -> str:
        """Run Git on the work tree, and return its output."""
        return os.fsdecode(await _run(["git", *words], self._env, self._tree.top, given)).strip()

    async def snapshot(self) -> str:
        """Return the id of a tree with the files of the work tree that Git does not ignore."""
        if await run_sync(self._copy_index):
            with contextlib.suppress(_GitError):
                return await self._make_tree()
        # The repository's index is of another kind, or damaged: every file is read.
        await run_sync(_remove_all, [self._index])
        return await self._make_tree()

    def _copy_index(self) -> bool:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self._tree.git / "index", flags)
        except OSError:
            return False
        with open(descriptor, "rb") as source:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST_INDEX_BYTES:
                return False
            with open(self._index, "wb") as target:
                shutil.copyfileobj(source, target)
            # By it Git knows which files may have changed in the second in which the index was written.
            os.utime(self._index, ns=(found.st_atime_ns, found.st_mtime_ns))
        return True

    async def _make_tree(self) -> str:
        words = ["ls-files", "-z", "--modified", "--deleted", "--others", "--exclude-standard"]
        exclude = self._tree.objects.parent / "info/exclude"
        if await run_sync(_is_file, exclude):
            words += ["--exclude-from", str(exclude)]
        listed = await _run(["git", *words], self._env, self._tree.top)
        changed = await run_sync(self._select, dict.fromkeys(listed.split(b"\0")))
        # Submodules stay as the index has them: to look into one, Git would use its configuration.
        if changed:
            words = ["update-index", "--add", "--remove", "--replace", "-z", "--stdin"]
            await self.git(*words, given=b"\0".join(changed))
        return await self.git("write-tree")

    def _select(self, listed: Iterable[bytes]) -> Sequence[bytes]:
        """Return the paths that are read: files that are not too large, links, and what was deleted."""
        top, size = os.fsencode(self._tree.top), 0
        found: list[bytes] = []
        for path in listed:
            if not path or path.endswith(b"/"):
                continue
            full = os.path.join(top, path)
            try:
                state = os.lstat(full)
            except OSError:
                found.append(path)
                continue
            if stat.S_ISREG(state.st_mode):
                if state.st_size > MOST_FILE_BYTES or not os.access(full, os.R_OK):
                    continue
                size += state.st_size
                if size > MOST_BYTES:
                    raise _GitError(
                        f"files that are not committed have more than {MOST_BYTES:,} bytes: let .gitignore "
                        "name those that are made by a build"
                    )
            elif not stat.S_ISLNK(state.st_mode):
                continue
            found.append(path)
        return found

    async def difference(self, before: str, after: str) -> Difference:
        """Return the difference of two trees."""
        words = ["diff-tree", "-r", "-p", "-M", "--no-color", "--no-ext-diff", "--no-textconv"]
        command = ["git", *words, "--src-prefix=a/", "--dst-prefix=b/", before, after, "--"]
        parts: list[bytes] = []
        size = 0
        # Its errors are not read, and are few.
        async with _started(command, self._env, self._tree.top) as process:
            assert process.stdout is not None
            async for part in process.stdout:
                parts.append(part)
                size += len(part)
                if size > MOST_DIFF_BYTES:
                    break
            else:
                await process.wait()
        patch = b"".join(parts)
        if size <= MOST_DIFF_BYTES:
            if process.returncode:
                raise _GitError("Git no longer has the state at the start of the session")
            return Difference(patch, False)
        # Whole files are left out; of a file that is too large itself, the end is.
        patch = patch[:MOST_DIFF_BYTES]
        end = patch.rfind(b"\ndiff --git ")
        return Difference(patch[: (end if end >= 0 else patch.rfind(b"\n")) + 1], True)


@asynccontextmanager
async def _started(
    command: Sequence[str], env: Mapping[str, str], folder: Path, *, given: bool = False
) -> AsyncGenerator[anyio.abc.Process]:
    process: anyio.abc.Process | None = None
    # A process that is being started when this is cancelled is started, and then ended.
    with anyio.CancelScope(shield=True):
        process = await anyio.open_process(
            command, stdin=subprocess.PIPE if given else subprocess.DEVNULL, env=env, cwd=folder
        )
    assert process is not None
    try:
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.aclose()


async def _run(
    command: Sequence[str], env: Mapping[str, str], folder: Path, given: bytes | None = None
) -> bytes:
    """Run a command and return its output.

    Raises:
        _GitError: it failed.
    """
    output, errors = bytearray(), bytearray()
    async with (
        _started(command, env, folder, given=given is not None) as process,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_read, process.stdout, output)
        tasks.start_soon(_read, process.stderr, errors)
        if process.stdin is not None and given is not None:
            with contextlib.suppress(anyio.BrokenResourceError):  # its exit code says why
                await process.stdin.send(given)
            await process.stdin.aclose()
        await process.wait()
    if code := process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise _GitError(lines[-1] if lines else f"Git ended with code {code}")
    return bytes(output)


async def _read(stream: anyio.abc.ByteReceiveStream | None, found: bytearray) -> None:
    assert stream is not None
    async for part in stream:
        found += part


def _hash(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:40]


def _small_text(path: Path) -> str:
    """Return the beginning of a regular file.

    Raises:
        OSError: it can't be read.
        ValueError: it is something else, which might never be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{path} is not a file")
        return os.fsdecode(file.read(64 * 1024))


def _small_text_or_none(path: Path) -> str | None:
    try:
        return _small_text(path)
    except (OSError, ValueError):
        return None


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _remove_all(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
