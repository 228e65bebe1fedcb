"""What the client reads of an envelope, and nothing more: ids, method, session, kind of update."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from sandbox_agent.errors import AcpRpcError
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, loads

__all__ = ["Answer", "Envelope", "Params", "Update", "decode", "notification", "request", "response"]


class Update(msgspec.Struct, gc=False):
    """The part of ``params.update`` that decides what happens to it."""

    sessionUpdate: str | None = None  # noqa: N815 - the wire's name


class Params(msgspec.Struct, gc=False):
    """The part of ``params`` that says whose it is."""

    sessionId: str | None = None  # noqa: N815 - the wire's name
    update: Update | None = None


class Envelope(msgspec.Struct, gc=False):
    """The head of an envelope; ``id`` is JSON bytes, empty where there is none."""

    id: msgspec.Raw = msgspec.Raw()
    method: str | None = None
    params: Params | None = None

    @property
    def is_response(self) -> bool:
        """Whether it answers a request."""
        return self.method is None and bool(self.id)

    @property
    def is_request(self) -> bool:
        """Whether an answer is owed; ids may be 0, strings, or anything but null."""
        return self.method is not None and bool(self.id) and bytes(self.id) != b"null"

    @property
    def session_id(self) -> str | None:
        """The agent's session id, where it has one."""
        return self.params.sessionId if self.params is not None else None

    def own_id(self) -> int | None:
        """The id as one of ours (integers), or None."""
        raw = bytes(self.id)
        return int(raw) if raw.isdigit() else None


_decode = msgspec.json.Decoder(Envelope).decode


def decode(line: bytes) -> Envelope:
    """Read an envelope's head.

    Raises:
        InvalidEnvelopeError: it is no JSON object.
    """
    try:
        return _decode(line)
    except (msgspec.DecodeError, RecursionError):
        return _decode_slowly(line)


def _decode_slowly(line: bytes) -> Envelope:
    # Lone surrogates, params that are an array, a sessionId that is a number: read what can be read.
    value: object = loads(line)
    if not isinstance(value, dict):
        raise InvalidEnvelopeError(f"expected a JSON object, got {type(value).__name__}")
    members = cast("dict[str, Any]", value)
    method: object = members.get("method")
    params: object = members.get("params")
    head = Envelope(
        id=msgspec.Raw(dumps(members["id"])) if "id" in members else msgspec.Raw(),
        method=method if isinstance(method, str) else None,
    )
    if isinstance(params, dict):
        fields = cast("dict[str, Any]", params)
        session_id: object = fields.get("sessionId")
        update: object = fields.get("update")
        kind: object = (
            cast("dict[str, Any]", update).get("sessionUpdate") if isinstance(update, dict) else None
        )
        head.params = Params(
            sessionId=session_id if isinstance(session_id, str) else None,
            update=Update(kind if isinstance(kind, str) else None),
        )
    return head


class Answer(msgspec.Struct):
    """A response, decoded."""

    result: Any = None
    error: dict[str, Any] | None = None

    @classmethod
    def read(cls, line: bytes) -> Answer:
        """Decode a response envelope."""
        value: object = loads(line)
        if not isinstance(value, dict):
            raise InvalidEnvelopeError(f"expected a JSON object, got {type(value).__name__}")
        members = cast("dict[str, Any]", value)
        error: object = members.get("error")
        return cls(members.get("result"), cast("dict[str, Any]", error) if isinstance(error, dict) else None)

    def unwrap(self) -> Any:
        """Return the result.

        Raises:
            AcpRpcError: it is an error.
        """
        if self.error is None:
            return self.result
        code: object = self.error.get("code")
        raise AcpRpcError(
            code if isinstance(code, int) else -32603,
            str(self.error.get("message") or "the agent answered an error without a message"),
            self.error.get("data"),
        )


def request(request_id: int, method: str, params: object) -> bytes:
    """Encode a request."""
    return dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})


def notification(method: str, params: object) -> bytes:
    """Encode a notification."""
    return dumps({"jsonrpc": "2.0", "method": method, "params": params})


def response(raw_id: msgspec.Raw, *, result: object = None, error: object = None) -> bytes:
    """Encode the answer to a request of the agent's; its id goes back as the bytes that came."""
    outcome = {"error": error} if error is not None else {"result": result}
    return dumps({"jsonrpc": "2.0", "id": raw_id, **outcome})
