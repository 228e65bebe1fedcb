"""Finds skills in a folder, reads them and installs them in another one. Everything here blocks.

Links are never followed: a folder may be changed meanwhile, by the agent that works in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from typing import Final, NamedTuple

import msgspec

from sandbox_agent.server.configuration.files import lock
from sandbox_agent.server.files.tree import TEMPORARY, FileTree, explained

SKILL_FILE: Final = "SKILL.md"
# In an installed skill: by this file it is known as the server's, with what it was made of.
MARKER: Final = ".sandbox-agent-skill.json"
MAX_SKILL_BYTES: Final = 16 * 1024 * 1024
MAX_SKILL_FILES: Final = 2_000
# All skills of a source are held in memory.
MAX_SKILLS_BYTES: Final = 128 * 1024 * 1024
# Skills are looked for so deep, in so many folders.
MAX_DEPTH: Final = 6
MAX_FOLDERS: Final = 20_000
_SKIPPED: Final = frozenset({".git", "node_modules"})
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME: Final = re.compile(r"[\w][\w .+-]{0,127}\Z")
_FRONT_NAME: Final = re.compile(rb"\A---\r?\n(?:.*\n)*?name:[ \t]*[\"']?([^\"'\r\n]+?)[\"']?[ \t]*\r?\n")


class SkillError(Exception):
    """A skill can't be used; the message says why."""


class Entry(NamedTuple):
    """A file or link of a skill.

    Attributes:
        content: of the file, or the link's target.
        kind: "file", "program" or "link".
    """

    content: bytes
    kind: str


@dataclass(frozen=True, slots=True)
class Skill:
    """A skill that was read.

    Attributes:
        name: of its folder.
        entries: its files and links by path.
        version: a digest of them.
    """

    name: str
    entries: Mapping[str, Entry]
    version: str


def read_skills(
    folder: int, subpath: str | None, wanted: Collection[str] | None, name: str
) -> Iterator[Skill]:
    """Yield the skills in a folder.

    Args:
        folder: a descriptor of the source.
        subpath: a folder of the source to look in; None for all of it.
        wanted: the names of the skills; None for all.
        name: the name of the source, for a skill that is the source itself and has no name.

    Raises:
        SkillError: there is no skill, or not that one, or one is too large or has links that leave it.
        OSError: a file can't be read.
    """
    with contextlib.ExitStack() as stack:
        for part in (subpath or "").split("/"):
            if part in ("", "."):
                continue
            try:
                if part == "..":
                    raise NotADirectoryError
                folder = os.open(part, _FOLDER, dir_fd=folder)
            except (OSError, ValueError):
                raise SkillError(f"it has no folder {subpath!r}; links and '..' are not followed") from None
            stack.callback(os.close, folder)
            name = part
        found: dict[str, str] = {}
        for path in _find(folder):
            found.setdefault(path.rpartition("/")[2] or _own_name(folder, name), path)
        missing = sorted(set(wanted or ()) - set(found))
        if missing or not found:
            others = ", ".join(sorted(found)[:20]) or f"no folder with a {SKILL_FILE}"
            raise SkillError(f"it has no skill {', '.join(missing)}: it has {others}")
        left = MAX_SKILLS_BYTES
        for skill in sorted(found if wanted is None else set(wanted)):
            if not _NAME.match(skill):
                raise SkillError(f"{skill!r} can't be the name of a skill: use letters, digits, - and _")
            with _open(folder, found[skill]) as descriptor:
                entries: dict[str, Entry] = {}
                try:
                    _read(descriptor, "", entries)
                except SkillError as error:
                    raise SkillError(f"the skill {skill}: {error}") from None
            left -= sum(len(each.content) for each in entries.values())
            if left < 0:
                raise SkillError(f"its skills are larger than {MAX_SKILLS_BYTES} bytes: name those to use")
            yield Skill(skill, entries, _digest(entries))


def _find(folder: int) -> list[str]:
    """Return the paths of the folders that have a SKILL.md, outermost only; those in hidden folders last."""
    found: list[str] = []
    waiting = [""]
    for _ in range(MAX_FOLDERS):
        if not waiting:
            return sorted(found, key=lambda path: (f"/{path}".count("/."), path))
        path = waiting.pop()
        with _open(folder, path) as descriptor:
            if _is(descriptor, SKILL_FILE, stat.S_ISREG):
                found.append(path)
                continue
            if path.count("/") >= MAX_DEPTH:
                continue
            names = sorted(os.listdir(descriptor), reverse=True)
            inner = [each for each in names if each not in _SKIPPED and _is(descriptor, each, stat.S_ISDIR)]
            waiting += [f"{path}/{each}" if path else each for each in inner]
    raise SkillError(f"it has more than {MAX_FOLDERS} folders: name the one with the skills as subpath")


@contextlib.contextmanager
def _open(folder: int, path: str) -> Generator[int]:
    """Yield a descriptor of a folder below another one."""
    with contextlib.ExitStack() as stack:
        descriptor = os.dup(folder)
        stack.callback(os.close, descriptor)
        for part in filter(None, path.split("/")):
            descriptor = os.open(part, _FOLDER, dir_fd=descriptor)
            stack.callback(os.close, descriptor)
        yield descriptor


def _is(folder: int, name: str, kind: Callable[[int], bool]) -> bool:
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return False
    return kind(mode)


def _own_name(folder: int, name: str) -> str:
    """Return the name that a skill gives itself, or the name of its source."""
    with _file(folder, SKILL_FILE) as file:
        match = _FRONT_NAME.match(file.read(4096))
    given = match[1].decode(errors="replace").strip() if match else ""
    return given if _NAME.match(given) else name


def _file(folder: int, name: str) -> FileIO:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    return FileIO(os.open(name, flags, dir_fd=folder))


def _read(folder: int, path: str, entries: dict[str, Entry]) -> None:
    for name in sorted(os.listdir(folder)):
        if name in _SKIPPED or name == MARKER:
            continue
        found, own = os.stat(name, dir_fd=folder, follow_symlinks=False), f"{path}{name}"
        if stat.S_ISDIR(found.st_mode):
            with _open(folder, name) as inner:
                _read(inner, f"{own}/", entries)
        elif stat.S_ISLNK(found.st_mode):
            entries[own] = Entry(os.fsencode(_target(folder, name, path.count("/"))), "link")
        elif stat.S_ISREG(found.st_mode):
            left = MAX_SKILL_BYTES - sum(len(each.content) for each in entries.values())
            with _file(folder, name) as file:
                content = file.read(left + 1)
            if len(content) > left:
                raise SkillError(f"it is larger than {MAX_SKILL_BYTES} bytes")
            entries[own] = Entry(content, "program" if found.st_mode & 0o100 else "file")
        else:
            raise SkillError(f"{own} is neither a file nor a folder nor a link")
        if len(entries) > MAX_SKILL_FILES:
            raise SkillError(f"it has more than {MAX_SKILL_FILES} files")


def _target(folder: int, name: str, depth: int) -> str:
    """Return the target of a link, which does not leave the skill."""
    target = os.readlink(name, dir_fd=folder)
    parts = target.split("/")
    up = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    # After another name, ".." may leave the skill through another link.
    if target.startswith("/") or up > depth or ".." in parts[up:]:
        raise SkillError(f"the link {name} leads out of it, to {target}")
    return target


def _digest(entries: Mapping[str, Entry]) -> str:
    listed = [(path, kind, hashlib.sha256(content).hexdigest()) for path, (content, kind) in entries.items()]
    return hashlib.sha256(msgspec.json.encode(sorted(listed))).hexdigest()


class Installed:
    """The skills in one folder of a working directory.

    Args:
        tree: gives access to the working directory and to nothing outside of it.
        directory: the working directory, which has a folder ``.sandbox-agent``.
        folder: where the agent looks for skills, below the working directory.
    """

    def __init__(self, tree: FileTree, directory: str, folder: str) -> None:
        self._tree = tree
        self._directory = directory
        self._folder = os.path.join(directory, folder)

    def sync(self, skills: Mapping[str, Skill]) -> list[str]:
        """Install skills, and remove those that were installed before and are not among them.

        Returns:
            The names of skills that were not installed: there is one of the user's own with that name.

        Raises:
            ProblemError: the working directory can't be written.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(explained(self._folder))
            own, path = stack.enter_context(
                self._tree.open_folder(os.path.join(self._directory, ".sandbox-agent"))
            )
            lock(own, path)
            for name in os.listdir(own):
                if name.startswith(TEMPORARY):  # a server was killed meanwhile
                    shutil.rmtree(name, ignore_errors=True, dir_fd=own)
            if not skills and not os.path.isdir(self._folder):
                return []
            self._tree.make_folder(self._folder)
            folder, _ = stack.enter_context(self._tree.open_folder(self._folder))
            for name in os.listdir(folder):
                if name not in skills and _installed_version(folder, name) is not None:
                    _remove(folder, name, own)
            return [name for name, skill in skills.items() if not _install(folder, skill, own)]


def _install(folder: int, skill: Skill, own: int) -> bool:
    """Install a skill; return False if another one has its place."""
    installed = _installed_version(folder, skill.name)
    if installed == skill.version:
        return True
    if installed is None and _exists(folder, skill.name):
        return False
    # Complete before it is in its place, and not where the agent looks.
    temporary = TEMPORARY + secrets.token_hex(8)
    try:
        os.mkdir(temporary, 0o755, dir_fd=own)
        with _open(own, temporary) as target:
            for path, entry in skill.entries.items():
                _write(target, path, entry)
            marker = msgspec.json.encode({"version": skill.version})
            _write(target, MARKER, Entry(marker, "file"))
            if ".gitignore" not in skill.entries:
                # It is no change of the user's or the agent's.
                _write(target, ".gitignore", Entry(b"*\n", "file"))
        if installed is not None:
            _remove(folder, skill.name, own)
        os.rename(temporary, skill.name, src_dir_fd=own, dst_dir_fd=folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True, dir_fd=own)
        raise
    return True


def _write(folder: int, path: str, entry: Entry) -> None:
    *parents, name = path.split("/")
    with contextlib.ExitStack() as stack:
        for parent in parents:
            with contextlib.suppress(FileExistsError):
                os.mkdir(parent, 0o755, dir_fd=folder)
            folder = stack.enter_context(_open(folder, parent))
        if entry.kind == "link":
            os.symlink(os.fsdecode(entry.content), name, dir_fd=folder)
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        mode = 0o755 if entry.kind == "program" else 0o644
        with FileIO(os.open(name, flags, mode, dir_fd=folder), "w") as file:
            view = memoryview(entry.content)
            while view:
                view = view[file.write(view) :]


def _installed_version(folder: int, name: str) -> str | None:
    """Return the version of an installed skill; None if there is none, or one of the user's own."""
    try:
        with _open(folder, name) as skill, _file(skill, MARKER) as file:
            version = msgspec.json.decode(file.read(4096), type=dict[str, str]).get("version")
    except (OSError, msgspec.DecodeError):
        return None
    return version or ""


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _remove(folder: int, name: str, own: int) -> None:
    """Remove a skill at once, and then delete it."""
    aside = TEMPORARY + secrets.token_hex(8)
    os.rename(name, aside, src_dir_fd=folder, dst_dir_fd=own)
    shutil.rmtree(aside, dir_fd=own)
