"""A small process that outlives the server by a moment and ends the trees that it left behind.

The server holds the warden's stdin. When that closes, however the server ended (SIGKILL included), the
warden kills every process group that it was told of and, on Linux, every process that carries the
server's tag. It runs in a session of its own (warden_main), with nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from sandbox_agent.runtime.pipes import PipeWriter

__all__ = ["Warden"]


class Warden:
    """The server's side of the warden.

    Args:
        tag: what the tags of all the server's processes begin with.
    """

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self._child: asyncio.subprocess.Process | None = None
        self._stdin: PipeWriter | None = None
        self._groups: set[int] = set()
        self._starting = asyncio.Lock()

    async def ready(self) -> None:
        """Start the warden where none runs; call it before there is a process to watch.

        Raises:
            OSError: it can't be started.
        """
        async with self._starting:
            if self._child is None or self._child.returncode is not None:
                await self._start()

    async def watch(self, group: int) -> None:
        """Have a process group killed should the server die; starts the warden where none runs.

        Raises:
            OSError: it can't be started.
        """
        self._groups.add(group)
        async with self._starting:
            if self._stdin is not None and await self._tell(f"+{group}\n"):
                return
            await self._start()

    async def release(self, group: int) -> None:
        """Forget a group that has ended."""
        self._groups.discard(group)
        await self._tell(f"-{group}\n")

    async def close(self) -> None:
        """Let the warden go; with nothing left to kill it just ends."""
        if self._child is None or self._stdin is None:
            return
        await self._tell("=\n")
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
            await self._tell("".join(f"+{known}\n" for known in self._groups))

    async def _tell(self, line: str) -> bool:
        """Return whether a warden was there to hear it."""
        if self._stdin is None:
            return False
        try:
            await self._stdin.write(line.encode())
        except BrokenPipeError:
            return False
        return True
