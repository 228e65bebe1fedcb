"""Recognizes envelopes that a client sends again, so that the agent receives each one once.

A proxy may lose the response to a POST whose envelope has arrived. The client then sends the envelope again:

* A request of a named client is identified by the client's name and its bytes, which include its JSON-RPC id.
  Requests of unnamed clients are never merged.
* A notification or a response is identified by the client's name, its Idempotency-Key and its bytes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Final

from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.wire.jsonrpc import Head

# Memory of one connection: so many envelopes are recognized, and this much is kept of their responses, the
# newest of both.
MAX_ENVELOPES: Final = 4_096
MAX_RESPONSE_BYTES: Final = 4 * 1024 * 1024

# What a delivery waits for: the envelope is written, then a request has its response.
Response = asyncio.Future[bytes]
Delivery = asyncio.Future[Response | None]


def identify(client: str, head: Head, envelope: bytes, key: str | None) -> bytes | None:
    """Return the identity of an envelope; None if it is not recognized when it is sent again.

    Args:
        client: the client's name, or UNNAMED.
        head: the envelope's head.
        envelope: the whole envelope.
        key: the Idempotency-Key, or None; not used for requests.
    """
    if head.is_request:
        if client == UNNAMED:
            return None
        key = ""
    elif key is None:
        return None
    parts = (client.encode(), key.encode(), envelope)
    return blake2b(b"".join(b"%d:%b" % (len(part), part) for part in parts), digest_size=16).digest()


class Repeats:
    """The envelopes of one connection that a client may send again."""

    def __init__(self) -> None:
        self._open: dict[bytes, Delivery] = {}
        self._closed: OrderedDict[bytes, bytes | None] = OrderedDict()
        self._response_bytes = 0

    def is_closed(self, identity: bytes) -> bool:
        """Return whether the envelope was delivered and waits for nothing."""
        return identity in self._closed

    def response(self, identity: bytes) -> bytes | None:
        """Return the response of a request that is closed; None if it is not kept."""
        return self._closed.get(identity)

    async def deliver(
        self, identity: bytes, submit: Callable[[], Awaitable[Response | None]]
    ) -> Response | None:
        """Send an envelope, or join the call that does so already.

        Args:
            identity: the envelope's; it is not closed.
            submit: records the envelope and writes it to the agent.

        Returns:
            The future response of a request; None for other envelopes.
        """
        delivery = self._open.get(identity)
        if delivery is not None:
            return await asyncio.shield(delivery)
        self._open[identity] = asyncio.get_running_loop().create_future()
        try:
            response = await submit()
        except BaseException as error:
            self._failed(identity, error)
            raise
        self._written(identity, response)
        return response

    def _written(self, identity: bytes, response: Response | None) -> None:
        """Note that the agent has received the envelope, and wait for its response if there will be one."""
        self._open[identity].set_result(response)
        if response is None:
            self._close(identity, None)
        else:
            response.add_done_callback(lambda done: self._answered(identity, done))

    def _failed(self, identity: bytes, error: BaseException) -> None:
        """Forget an envelope that was not delivered; others that wait for it get the error."""
        delivery = self._open.pop(identity)
        if isinstance(error, Exception):
            delivery.set_exception(error)
            delivery.exception()  # marks it as retrieved: there may be no other
        else:
            delivery.cancel()

    def _answered(self, identity: bytes, response: Response) -> None:
        if response.cancelled() or response.exception() is not None:  # the agent has ended
            del self._open[identity]
        else:
            self._close(identity, response.result())

    def _close(self, identity: bytes, response: bytes | None) -> None:
        del self._open[identity]
        self._closed[identity] = response
        self._response_bytes += len(response or b"")
        if len(self._closed) > MAX_ENVELOPES:
            _, oldest = self._closed.popitem(last=False)
            self._response_bytes -= len(oldest or b"")
        for other, kept in self._closed.items():
            if self._response_bytes <= MAX_RESPONSE_BYTES:
                break
            if kept is not None:
                self._response_bytes -= len(kept)
                self._closed[other] = None
