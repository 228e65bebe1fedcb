"""Connections whose client does not read what was sent to it."""

from __future__ import annotations

import asyncio


class UnreadWatch:
    """Closes the connection of a client that reads nothing. A mixin, which stands before uvicorn's class."""

    __slots__ = ()

    transport: asyncio.Transport
    # How much was not written yet at the last check, and since when the client has read nothing of it.
    _unwritten: int
    _unwritten_since: float

    def resume_writing(self) -> None:
        super().resume_writing()  # type: ignore[misc]
        self._unwritten = 0  # the client has read, even if the buffer is full again at the next check

    def check_unread(self, now: float, timeout: float, *, paused: bool) -> None:
        """Close the connection if something waits for the client, which has read nothing for a time.

        Args:
            now: the time of the event loop.
            timeout: that time, in seconds.
            paused: whether no more is written because too much waits.
        """
        size = self.transport.get_write_buffer_size()
        waits = size and (paused or self.transport.is_closing())
        if not waits or size < self._unwritten or not self._unwritten:
            self._unwritten_since = now
        elif now - self._unwritten_since > timeout:
            self.transport.abort()
        self._unwritten = size if waits else 0
