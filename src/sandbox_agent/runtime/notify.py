"""Messages to the program that manages this service, by the protocol of sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable

VARIABLE = "NOTIFY_SOCKET"


def service_manager() -> Callable[[str], None]:
    """Return a function that sends a message such as ``READY=1``. Without a manager it does nothing.

    Removes the variable, so that agents do not speak for this process.
    """
    address = os.environ.pop(VARIABLE, "")
    if not address.startswith(("/", "@")):
        return lambda _message: None
    if address.startswith("@"):
        address = "\0" + address[1:]

    def notify(message: str) -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(message.encode(), address)

    return notify
