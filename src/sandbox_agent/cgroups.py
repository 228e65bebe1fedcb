"""Control groups of Linux: limits that the kernel enforces for a tree of processes.

A group is created below that of this process, so that its own limits apply as well. In version 2, a group
with processes can have no groups with limits below it: there it is created beside that of this process, if
that has no limit of memory. Where neither is permitted, there is an error that says so.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["PREFIX", "Cgroup", "CgroupError", "create_cgroup", "find_parents", "parse_size", "remove_cgroups"]

# The names of our groups begin with it.
PREFIX = "sandbox-agent-"
_MEMORY, _PIDS, _CPU = "memory", "pids", "cpu"
_PERIOD = 100_000  # microseconds, the kernel's default
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = re.compile(r"(\d{1,18})\s*([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_MEMBERS = "cgroup.procs"
_ENABLED = "cgroup.subtree_control"
# A killed process takes a moment to end.
_REMOVE_SECONDS = 2.0
_PAUSE = 0.01


class CgroupError(Exception):
    """No control group can be created. The message says why."""


class Cgroup:
    """A control group: one folder, or in version 1 one for each controller.

    Args:
        folders: the folders.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders: list[Path] = list(folders)

    @property
    def members_files(self) -> list[str]:
        """The files by which a process becomes a member: it writes ``0`` to each of them."""
        return [str(folder / _MEMBERS) for folder in self.folders]

    def wrap(self, command: Sequence[str]) -> list[str]:
        """Return a command line that becomes a member and executes the command, under the same pid."""
        enter = 'while [ "$1" != -- ]; do echo 0 > "$1"; shift; done; shift; exec "$@"'
        return ["/bin/sh", "-ec", enter, "sh", *self.members_files, "--", *command]

    @property
    def memory_kills(self) -> int:
        """How many processes the kernel has killed because the group had too much memory."""
        for folder in self.folders:
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    for line in (folder / name).read_text().splitlines():
                        if line.startswith("oom_kill "):
                            return int(line.split()[1])
        return 0

    def kill(self) -> None:
        """Kill all members, those that fork meanwhile included."""
        for folder in self.folders:
            with contextlib.suppress(OSError):
                (folder / "pids.max").write_text("0")  # no more forks
        deadline = time.monotonic() + _REMOVE_SECONDS
        while time.monotonic() < deadline and any(self._kill_members(folder) for folder in self.folders):
            time.sleep(_PAUSE)

    def _kill_members(self, folder: Path) -> int:
        members = _members(folder)
        for pid in members:
            with contextlib.suppress(OSError):
                handle = os.pidfd_open(pid)
                try:
                    if pid in _members(folder):  # else its pid may be another process's
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                finally:
                    os.close(handle)
        return len(members)

    def remove(self) -> None:
        """Remove the group when its last member has ended. Waits two seconds at most: call it in a thread."""
        deadline = time.monotonic() + _REMOVE_SECONDS
        for folder in self.folders:
            while folder.is_dir():
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    break
                if time.monotonic() > deadline:
                    break
                time.sleep(_PAUSE)


def create_cgroup(name: str, *, memory_bytes: int = 0, tasks: int = 0, cpus: float = 0.0) -> Cgroup:
    """Create a control group with limits; 0 is no limit.

    Args:
        name: its name, which begins with ``PREFIX``.
        memory_bytes: the most memory, with the files that it has in memory file systems.
        tasks: the most threads of all processes together.
        cpus: the most processor time: seconds for each second.

    Raises:
        CgroupError: it can't be created.
    """
    limits = {_MEMORY: memory_bytes, _PIDS: tasks, _CPU: cpus}
    parents = find_parents([controller for controller, limit in limits.items() if limit])
    group = Cgroup(list(dict.fromkeys(parent / name for parent in parents.values())))
    try:
        for folder in group.folders:
            folder.mkdir()
        for controller, parent in parents.items():
            _set_limit(parent / name, controller, limits[controller])
    except OSError as error:
        group.remove()
        raise CgroupError(f"{error.filename or name}: {error.strerror}") from error
    return group


def _set_limit(folder: Path, controller: str, limit: float) -> None:
    if controller == _PIDS:
        (folder / "pids.max").write_text(str(int(limit)))
    elif controller == _CPU:
        quota = int(limit * _PERIOD)
        if (folder / "cpu.max").exists():
            (folder / "cpu.max").write_text(f"{quota} {_PERIOD}")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(_PERIOD))
            (folder / "cpu.cfs_quota_us").write_text(str(quota))
    else:
        is_new = (folder / "memory.max").exists()
        (folder / ("memory.max" if is_new else "memory.limit_in_bytes")).write_text(str(int(limit)))
        # Not more by swapping. A kernel may not count that.
        name, swap = ("memory.swap.max", 0) if is_new else ("memory.memsw.limit_in_bytes", int(limit))
        with contextlib.suppress(OSError):
            (folder / name).write_text(str(swap))


def find_parents(controllers: Sequence[str]) -> dict[str, Path]:
    """Return by controller the group in which groups of ours are created.

    Raises:
        CgroupError: one of the controllers is not available, or its groups are not writable.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError as error:
        raise CgroupError(f"control groups need Linux: {error.filename}: {error.strerror}") from error
    found: dict[str, Path] = {}
    for controller in controllers:
        old = [path for _, names, path in own if controller in names.split(",")]
        new = [path for number, _, path in own if number == "0"]
        if old:
            parent = _folder(mounts, "cgroup", old[0], controller)
        elif new:
            parent = _parent_2(_folder(mounts, "cgroup2", new[0]), controller)
        else:
            raise CgroupError(f"the kernel has no controller '{controller}'")
        if not os.access(parent, os.W_OK):
            raise CgroupError(f"{parent} is not writable")
        found[controller] = parent
    return found


def _folder(mounts: Sequence[str], kind: str, path: str, controller: str = "") -> Path:
    """Return the folder of a group, as it is mounted here."""
    for line in mounts:
        fields, _, rest = line.partition(" - ")
        root, point = fields.split()[3:5]
        system, _, options = rest.split(" ", 2)
        if system != kind or (controller and controller not in options.split(",")):
            continue
        if ".." not in path and Path(path).is_relative_to(root):
            return Path(point) / Path(path).relative_to(root)
    raise CgroupError(f"the group {path} of this process is not mounted")


def _parent_2(own: Path, controller: str) -> Path:
    """Return where a group of version 2 can have a limit: only where its parent has no processes."""
    if not (own / "cgroup.type").exists():  # the root, which may have processes
        parent = own
        if controller not in _words(own / _ENABLED):
            try:
                (own / _ENABLED).write_text(f"+{controller}")
            except OSError as error:
                raise CgroupError(f"{own} has no controller '{controller}': {error.strerror}") from error
    else:
        parent = own.parent
        if _words(own / "memory.max") not in ([], ["max"]):
            raise CgroupError(f"{own}, the group of this process, has a limit of memory that would not apply")
    if controller not in _words(parent / _ENABLED):
        raise CgroupError(f"{parent} has no controller '{controller}' for its groups")
    return parent


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _members(folder: Path) -> list[int]:
    return [int(word) for word in _words(folder / _MEMBERS) if word.isdigit()]


def remove_cgroups(parents: Sequence[str | Path], name: str) -> int:
    """Kill the members of groups that were left, remove the groups, and return how many there were.

    Args:
        parents: the groups in which they were created.
        name: how their names begin, ``PREFIX`` included.
    """
    left: defaultdict[str, list[Path]] = defaultdict(list)
    for parent in map(Path, parents):
        for folder in _named(parent, name):
            left[folder.name].append(folder)
    for folders in left.values():
        group = Cgroup(folders)
        group.kill()
        group.remove()
    return len(left)


def _named(parent: Path, name: str) -> Iterator[Path]:
    if name.startswith(PREFIX) and len(name) > len(PREFIX):
        yield from (folder for folder in parent.glob(f"{name}*") if (folder / _MEMBERS).is_file())


def parse_size(text: str) -> int:
    """Return the bytes of a size such as "512M". The units are powers of 1024.

    Raises:
        ValueError: it is not a size.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"invalid size {text!r}: use a number with K, M, G or T, such as 512M")
    return int(found[1]) * _UNITS[found[2].lower()]
