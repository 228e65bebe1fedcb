"""Another user of the system, as whom agents run when the server is root's."""

from __future__ import annotations

import errno
import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path

# A file system that hangs does not hold up a request for longer.
ENTER_SECONDS = 5.0
_ENTER = 'cd -- "$1" && test -r .'


@dataclass(frozen=True, slots=True)
class User:
    """A user with all its groups.

    Attributes:
        name: The name.
        uid: The numeric id.
        gid: The id of its primary group.
        groups: The ids of all its groups.
        home: The home folder, which may not exist.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    def can(self, path: Path, mode: int) -> bool:
        """Return whether this user has access (``os.R_OK``, ...) to a path; only root can ask.

        The kernel answers, in a fork with this user's ids. Call this before threads are started.

        Raises:
            PermissionError: This process lacks root's capabilities to become another user.
        """
        pid = os.fork()
        if pid == 0:
            try:
                os.setgroups(self.groups)
                os.setgid(self.gid)
                os.setuid(self.uid)
                os._exit(0 if os.access(path, mode) else 1)
            finally:
                os._exit(2)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code not in (0, 1):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return code == 0

    def can_enter(self, folder: str) -> bool:
        """Return whether a program of this user can work in a folder; only root can ask.

        A program that is started as this user answers, so that this can be called in a thread.
        """
        try:
            done = subprocess.run(  # noqa: S603 - our own words
                ["/bin/sh", "-c", _ENTER, "sh", folder],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                timeout=ENTER_SECONDS,
                user=self.uid,
                group=self.gid,
                extra_groups=self.groups,
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


def find_user(name: str) -> User | None:
    """Return a user by its name or numeric id, or None."""
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        return None
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir)
