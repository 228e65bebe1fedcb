"""Decodes the parts of an envelope that the client needs (id, method, session, update); encodes envelopes."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from sandbox_agent.errors import AcpRpcError
from sandbox_agent.wire.jsonrpc import NO_ID, Head, dumps, load_object, members


class Update(msgspec.Struct, gc=False):
    """The part of ``params.update`` that the client needs."""

    sessionUpdate: str | None = None  # noqa: N815 - the wire's name


class Params(msgspec.Struct, gc=False):
    """The part of ``params`` that the client needs."""

    sessionId: str | None = None  # noqa: N815 - the wire's name
    update: Update | None = None


class Envelope(Head, gc=False):
    """The head of an envelope, with its session and update."""

    params: Params | None = None

    @property
    def session_id(self) -> str | None:
        """The agent's session id, if the envelope has one."""
        return self.params.sessionId if self.params is not None else None

    def own_id(self) -> int | None:
        """Return the id if it is an integer, as the client's own ids are, else None."""
        raw = bytes(self.id)
        return int(raw) if raw.isdigit() else None


_decode = msgspec.json.Decoder(Envelope).decode


def decode(line: bytes) -> Envelope:
    """Decode an envelope's head.

    Raises:
        InvalidEnvelopeError: the line is not a JSON object.
    """
    try:
        return _decode(line)
    except (msgspec.DecodeError, RecursionError):
        return _decode_slowly(line)


def _decode_slowly(line: bytes) -> Envelope:
    # Lone surrogates, params that are an array, a sessionId that is a number: decode what is valid.
    fields = load_object(line)
    params: object = fields.get("params")
    head = Envelope(
        id=msgspec.Raw(dumps(fields["id"])) if "id" in fields else NO_ID,
        method=_str_or_none(fields.get("method")),
    )
    if isinstance(params, dict):
        inner = members(fields.get("params"))
        kind = members(inner.get("update")).get("sessionUpdate")
        head.params = Params(_str_or_none(inner.get("sessionId")), Update(_str_or_none(kind)))
    return head


def _str_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


class Line(NamedTuple):
    """An envelope that was received, and the id of its event; None if the stream did not bring it."""

    data: bytes
    event_id: str | None = None


class Answer(msgspec.Struct):
    """A decoded response."""

    result: Any = None
    error: dict[str, Any] | None = None

    @classmethod
    def read(cls, line: bytes) -> Answer:
        """Decode a response envelope."""
        fields = load_object(line)
        error: object = fields.get("error")
        found = members(error)
        if error is not None and not isinstance(error, dict):  # some agents send the message alone
            found = {"message": error if isinstance(error, str) else dumps(error).decode()}
        return cls(fields.get("result"), None if error is None else found)

    def unwrap(self) -> Any:
        """Return the result.

        Raises:
            AcpRpcError: the response is an error.
        """
        if self.error is None:
            return self.result
        code: object = self.error.get("code")
        raise AcpRpcError(
            code if isinstance(code, int) else -32603,
            str(self.error.get("message") or "the agent responded with an error without a message"),
            self.error.get("data"),
        )


def request(request_id: int, method: str, params: object) -> bytes:
    """Encode a request."""
    return dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})


def notification(method: str, params: object) -> bytes:
    """Encode a notification."""
    return dumps({"jsonrpc": "2.0", "method": method, "params": params})


def response(raw_id: msgspec.Raw, *, result: object = None, error: object = None) -> bytes:
    """Encode the response to a request of the agent; its id is sent as the bytes that were received."""
    outcome = {"error": error} if error is not None else {"result": result}
    return dumps({"jsonrpc": "2.0", "id": raw_id, **outcome})
