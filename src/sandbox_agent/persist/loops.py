"""Connections belong to the event loop that made them."""

from __future__ import annotations

import asyncio

from sandbox_agent.errors import PersistError


class OneLoop:
    """The event loop of the first call, in which all the others have to be made."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def enter(self, target: str) -> None:
        """Remember the running loop, if no call was made yet.

        Args:
            target: where the store is, for the message.

        Raises:
            PersistError: another one was.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        elif self.is_another:
            raise PersistError(
                f"the connections to the store at {target} belong to another event loop, nothing was done: "
                "make a driver in each loop (in each asyncio.run)"
            )

    @property
    def is_another(self) -> bool:
        """Whether the first call was made in another loop than the running one."""
        return self._loop is not None and self._loop is not asyncio.get_running_loop()
