"""Ctrl-C and its kin: the first is a wish, the second an order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Generator
from typing import Final

__all__ = ["Interrupts", "interrupts"]

_ORDERS: Final = (signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """What signals do.

    Attributes:
        wish: called at the first Ctrl-C; without it the first is an order, too.
        order: called at the second Ctrl-C, at SIGTERM and at SIGHUP.
        exit_code: 128 and the number of the signal that was an order, as shells have it; None before.
    """

    def __init__(self) -> None:
        self.wish: Callable[[], Awaitable[None]] | None = None
        self.order: Callable[[], object] | None = None
        self.exit_code: int | None = None
        self._wishing: asyncio.Future[None] | None = None

    def take(self, number: signal.Signals) -> None:
        """Act on a signal."""
        if number is signal.SIGINT and self.wish is not None and self._wishing is None:
            self._wishing = asyncio.ensure_future(self.wish())
            return
        self.exit_code = 128 + number
        if self.order is not None:
            self.order()

    async def settle(self) -> None:
        """Stop carrying out the wish: what it was for is over."""
        if self._wishing is not None:
            self._wishing.cancel()
            await asyncio.wait({self._wishing})


@contextlib.contextmanager
def interrupts() -> Generator[Interrupts]:
    """Take the signals of the running loop's process for a while."""
    loop = asyncio.get_running_loop()
    taken = Interrupts()
    numbers = (signal.SIGINT, *_ORDERS)
    for number in numbers:
        loop.add_signal_handler(number, taken.take, number)
    try:
        yield taken
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
