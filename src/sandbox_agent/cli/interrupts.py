"""Reactions of the commands that run turns to Ctrl-C and other signals."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Generator
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """The reactions to signals.

    Attributes:
        cancel: Called at the first Ctrl-C. If None, the first Ctrl-C ends the command too.
        end: Called at the second Ctrl-C, at SIGTERM and at SIGHUP.
        exit_code: None, or 128 and the number of the signal that ended the command, as in shells.
    """

    def __init__(self) -> None:
        self.cancel: Callable[[], Awaitable[None]] | None = None
        self.end: Callable[[], object] | None = None
        self.exit_code: int | None = None
        self._cancelling: asyncio.Future[None] | None = None

    def handle(self, number: signal.Signals) -> None:
        """React to a signal."""
        if number is signal.SIGINT and self.cancel is not None and self._cancelling is None:
            self._cancelling = asyncio.ensure_future(self.cancel())
            return
        self.exit_code = 128 + number
        if self.end is not None:
            self.end()

    async def stop_cancelling(self) -> None:
        """Stop the call of ``cancel``: the turn has ended."""
        if self._cancelling is not None:
            self._cancelling.cancel()
            await asyncio.wait({self._cancelling})


@contextlib.contextmanager
def handle_interrupts() -> Generator[Interrupts]:
    """Handle SIGINT, SIGTERM and SIGHUP in the running loop until the context exits."""
    loop = asyncio.get_running_loop()
    interrupts = Interrupts()
    for number in _SIGNALS:
        loop.add_signal_handler(number, interrupts.handle, number)
    try:
        yield interrupts
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
