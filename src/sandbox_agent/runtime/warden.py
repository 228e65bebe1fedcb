"""A small process that kills orphaned agents after the server has died, even by SIGKILL (kill -9).

The server holds the warden's stdin. When it closes, the warden kills every registered process group and, on
Linux, every process that has the server's tag. The warden (warden_main) runs in its own session and uses
only the standard library.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from sandbox_agent.runtime.pipes import PipeWriter


class Warden:
    """The server's side of the warden. ``tag`` is the prefix of the tags of all the server's processes."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self._child: asyncio.subprocess.Process | None = None
        self._stdin: PipeWriter | None = None
        self._groups: set[int] = set()
        self._starting = asyncio.Lock()

    async def ready(self) -> None:
        """Start the warden if it does not run. Call this before there is a process to watch.

        Raises:
            OSError: The warden cannot be started.
        """
        async with self._starting:
            if self._child is None or self._child.returncode is not None:
                await self._start()

    async def watch(self, group: int) -> None:
        """Register a process group to be killed if the server dies. Like ready(), starts the warden."""
        self._groups.add(group)
        async with self._starting:
            if self._stdin is not None and await self._send(f"+{group}\n"):
                return
            await self._start()

    async def release(self, group: int) -> None:
        """Unregister a group that has ended."""
        self._groups.discard(group)
        await self._send(f"-{group}\n")

    async def close(self) -> None:
        """End the warden after a normal shutdown of the server."""
        if self._child is None or self._stdin is None:
            return
        await self._send("=\n")
        self._stdin.close()
        await self._child.wait()

    async def _start(self) -> None:
        read, write = os.pipe()
        try:
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-S", "-m", "sandbox_agent.runtime.warden_main", self.tag),
                stdin=read,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                env={"PYTHONPATH": str(Path(__file__).parents[2])},
            )
        except BaseException:
            os.close(write)
            raise
        finally:
            os.close(read)
        if self._stdin is not None:
            self._stdin.close()
        self._stdin = PipeWriter(write)
        if self._groups:
            await self._send("".join(f"+{known}\n" for known in self._groups))

    async def _send(self, line: str) -> bool:
        """Send a line and return whether a warden received it."""
        if self._stdin is None:
            return False
        try:
            await self._stdin.write(line.encode())
        except BrokenPipeError:
            return False
        return True
