"""What a whole jail may use: its control group, which the provider creates."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_agent.cgroups import (
    PREFIX,
    Cgroup,
    CgroupError,
    create_cgroup,
    find_parents,
    parse_size,
    remove_cgroups,
)
from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.wire.serial import Serializable

# In the jail's folder: where its group is, for the program that deletes what was left.
_RECORD = "cgroup.json"


@dataclass(frozen=True, slots=True)
class Limits(Serializable):
    """What everything in a jail may use together. The kernel enforces it.

    Attributes:
        memory: The most memory: bytes, or a size such as "2g". Files in memory count, such as those in
            ``/tmp``. None sets no limit.
        pids: The most processes and threads, or None.
        cpus: The most processor time, as a number of processors, or None.

    Raises:
        ValueError: A limit is not a size, or not positive.
    """

    memory: str | int | None = None
    pids: int | None = None
    cpus: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name, value in (("memory", self.memory_bytes), ("pids", self.pids), ("cpus", self.cpus)):
            if value is not None and value <= 0:
                raise ValueError(
                    f"the limit {name}={getattr(self, name)!r} is not positive: use None for no limit"
                )

    @property
    def memory_bytes(self) -> int | None:
        """The most memory in bytes, or None."""
        return parse_size(self.memory) if isinstance(self.memory, str) else self.memory


def check_limits(limits: Limits | None) -> None:
    """Check that a jail with these limits can be made.

    Raises:
        SandboxAgentError: No control group can be created.
    """
    if controllers := _controllers(limits):
        with _refusing():
            find_parents(controllers)


def create_jail_group(limits: Limits | None, folder: Path) -> Cgroup | None:
    """Create the control group of a jail, and record it in the jail's folder; None without limits.

    Raises:
        SandboxAgentError: It can't be created.
    """
    controllers = _controllers(limits)
    if limits is None or not controllers:
        return None
    name = f"{PREFIX}jail-{secrets.token_hex(16)}"
    with _refusing():
        parents = sorted({str(parent) for parent in find_parents(controllers).values()})
        # First: a program that is killed now leaves nothing that is not recorded.
        (folder / _RECORD).write_text(json.dumps({"name": name, "parents": parents}), encoding="utf-8")
        return create_cgroup(
            name,
            memory_bytes=limits.memory_bytes or 0,
            tasks=limits.pids or 0,
            cpus=limits.cpus or 0.0,
        )


def remove_jail_group(folder: Path) -> None:
    """Remove the control group that is recorded in a jail's folder, if there is one, with what runs in it."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        record: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        remove_cgroups(record["parents"], record["name"])


def _controllers(limits: Limits | None) -> list[str]:
    if limits is None:
        return []
    wanted = {"memory": limits.memory, "pids": limits.pids, "cpu": limits.cpus}
    return [controller for controller, limit in wanted.items() if limit is not None]


@contextlib.contextmanager
def _refusing() -> Generator[None]:
    try:
        yield
    except CgroupError as error:
        raise SandboxAgentError(
            f"jail(limits=...) needs a control group, and none can be created: {error}. Run this program as "
            "root, or with systemd-run in a group that is yours, or leave limits out"
        ) from error
