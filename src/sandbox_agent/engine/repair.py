"""Reads an agent's lines, and repairs a damaged line if it can only be one message.

Agents write warnings, colors or invalid UTF-8 into a line that holds a message. Such a line never becomes a
request: text that an agent logs or that a tool prints must not ask for permission.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from sandbox_agent.engine.correlate import Correlator
from sandbox_agent.engine.ndjson import OversizedLine
from sandbox_agent.wire.jsonrpc import (
    Head,
    InvalidEnvelopeError,
    dumps,
    loads,
    members,
    read_head,
    read_heads,
)

INVALID_STDOUT: Final = "_adapter/invalid_stdout"
PARSE_ERROR: Final = -32700
# How much of an invalid line is in the notification, and is searched for ids.
MAX_RAW_BYTES: Final = 1024 * 1024
# How much of it is in the error of a request, in characters.
MAX_EXCERPT: Final = 500
# A longer message is not remembered: a log of it is delivered, too.
_MAX_COPY_BYTES: Final = 64 * 1024

# Control sequences, then strings such as titles and links, then the short ones. "{" ends none of them.
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-z]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[PX^_][^\x1b]*\x1b\\|[ -/]*[0-Z\\^-z])"
)
# A string, a string without an end, punctuation, or another value.
_TOKENS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|"|[{}\[\],:]|[^\s"{}\[\],:]++', re.DOTALL)


class Repair(NamedTuple):
    """What a line without a valid message contains.

    Attributes:
        message: The repaired message, or None.
        repairs: What was repaired: utf8, escapes, bom, prefix, nan.
        failed: The ids, as JSON, of the pending requests that the line answers in a way that can't be read.
    """

    message: dict[str, Any] | None
    repairs: list[str]
    failed: list[bytes]


def repair(
    line: bytes, *, is_pending: Callable[[bytes], bool], is_session: Callable[[object], bool]
) -> Repair:
    """Repair a line that is not a valid message.

    It is repaired if one JSON object remains that is a response to a pending request or an update of a known
    session.

    Args:
        line: The line, without its newline.
        is_pending: Whether a client's request with this id (JSON) is pending.
        is_session: Whether this is the agent's id of a known session.
    """
    text, repairs = _clean(line)
    start = text.find("{")
    before = text[:start].rstrip()
    # After a quote or a backslash, the object is a part of some text.
    if start < 0 or before.endswith(('"', "'", "`", "\\")):
        return Repair(None, [], [])
    if before:
        repairs.append("prefix")
    # What follows the start of an oversized line is not known.
    text = text[start:] + "…" * isinstance(line, OversizedLine)
    constants: list[str] = []
    try:
        # An object: the text begins with "{". "append" returns None, which becomes null.
        message: dict[str, Any] = json.loads(text, parse_constant=constants.append)
        dumps(message)
    except (ValueError, RecursionError):
        return Repair(None, [], [key for key in _response_ids(text[:MAX_RAW_BYTES]) if is_pending(key)])
    if not _is_expected(message, is_pending, is_session):
        return Repair(None, [], [])
    return Repair(message, repairs + ["nan"] * bool(constants), [])


def _clean(line: bytes) -> tuple[str, list[str]]:
    repairs: list[str] = []
    try:
        text = line.decode()
    except UnicodeDecodeError:
        text = line.decode("utf-8", "replace")
        repairs.append("utf8")
    cleaned = _ESCAPES.sub("", text)
    repairs += ["escapes"] * (cleaned != text)
    text = cleaned.lstrip("\ufeff")
    repairs += ["bom"] * (cleaned != text)
    return text, repairs


def _is_expected(
    message: dict[str, Any], is_pending: Callable[[bytes], bool], is_session: Callable[[object], bool]
) -> bool:
    if "method" not in message:
        return ("result" in message or "error" in message) and is_pending(dumps(message.get("id")))
    session = members(message.get("params")).get("sessionId")
    return message["method"] == "session/update" and "id" not in message and is_session(session)


def _response_ids(text: str) -> Iterator[bytes]:
    """Yield the ids of the responses in a text that begins with an object and is not one valid object.

    Only an object at the start or directly after another one counts: what is inside of an object or in other
    text may be anything.
    """
    depth = 0
    key: str | None = None
    fields: dict[str, str] = {}
    last = ""
    for match in _TOKENS.finditer(text):
        piece = match[0]
        if depth == 0:
            if piece != "{":
                return
            depth, key, fields = 1, None, {}
        elif piece in {"{", "["}:
            depth += 1
        elif piece in {"}", "]"}:
            depth -= 1
            if depth == 0:
                yield from _id_of_response(fields)
        elif piece == '"':
            break
        elif depth == 1 and piece == ",":
            key = None
        elif depth == 1 and piece != ":":
            if key is None:
                key, fields[piece] = piece, ""
            else:
                fields[key] = piece
        last = piece
    if depth:
        if key is not None and fields[key] == last and last[0] != '"':
            del fields[key]  # a number at the end may be cut off
        yield from _id_of_response(fields)


def _id_of_response(fields: dict[str, str]) -> list[bytes]:
    is_response = '"method"' not in fields and ('"result"' in fields or '"error"' in fields)
    return [fields['"id"'].encode()] if is_response and '"id"' in fields else []


class LineReader:
    """Reads the lines of one agent.

    Args:
        correlator: Knows the pending requests and the sessions.
    """

    def __init__(self, correlator: Correlator) -> None:
        self._correlator = correlator
        self._last = b""
        self._copy: dict[str, Any] | None = None

    def read(self, lines: Sequence[bytes]) -> Iterator[tuple[Sequence[bytes], Sequence[Head]]]:
        """Yield messages in order with their heads.

        The caller handles each part before it reads the next: whether a line can be repaired depends on the
        messages before it. An invalid line becomes the notification ``_adapter/invalid_stdout``. The repaired
        message follows it, or the errors of the requests that the line answers.
        """
        heads = read_heads(lines) if self._copy is None else None
        if heads is None:
            for line in lines:
                yield self._read_line(line)
        elif lines:
            self._remember(lines[-1])
            yield lines, heads

    def _remember(self, line: bytes) -> None:
        self._last = line if len(line) <= _MAX_COPY_BYTES else b""

    def _read_line(self, line: bytes) -> tuple[list[bytes], list[Head]]:
        try:
            if isinstance(line, OversizedLine):
                raise InvalidEnvelopeError(f"line of {line.size} bytes is over the limit")
            head = read_head(line)
        except InvalidEnvelopeError as error:
            replaced = self._replace(line, str(error))
            return replaced, [read_head(each) for each in replaced]
        copy, self._copy = self._copy, None
        self._remember(line)
        if copy is not None and _is_same(line, copy):
            return [], []  # the agent has logged the message before it sent it
        return [line], [head]

    def _replace(self, line: bytes, error: str) -> list[bytes]:
        """Return the messages that stand for an invalid line."""
        correlator = self._correlator
        message, repairs, failed = repair(
            line, is_pending=correlator.is_pending, is_session=correlator.is_session
        )
        if message is not None and "prefix" in repairs:
            if _is_same(self._last, message):
                message = None  # a log of the message before it
            else:
                self._copy = message
        params: dict[str, Any] = {"error": error, "raw": line[:MAX_RAW_BYTES].decode("utf-8", "replace")}
        if message is not None:
            params["repaired"] = repairs
        replaced = [{"jsonrpc": "2.0", "method": INVALID_STDOUT, "params": params}]
        if message is not None:
            replaced.append(_mark(message, repairs))
        for key in failed:
            reason = f"the agent's response is not valid JSON-RPC ({error}): {_clean(line)[0][:MAX_EXCERPT]}"
            replaced.append(
                {"jsonrpc": "2.0", "id": loads(key), "error": {"code": PARSE_ERROR, "message": reason}}
            )
        return [dumps(each) for each in replaced]


def _is_same(line: bytes, message: dict[str, Any]) -> bool:
    try:
        return loads(line) == message
    except (InvalidEnvelopeError, RecursionError):
        return False


def _mark(message: dict[str, Any], repairs: list[str]) -> dict[str, Any]:
    """Return the message with its repairs in ``_meta`` of its result or params, if that is an object."""
    name = "params" if "method" in message else "result"
    if not isinstance(message.get(name), dict):
        return message
    part = members(message[name])
    meta = members(part.get("_meta"))
    mark = {**members(meta.get("sandbox-agent")), "repaired": repairs}
    return {**message, name: {**part, "_meta": {**meta, "sandbox-agent": mark}}}
