"""Values of the server's rows as every store keeps and returns them."""

from __future__ import annotations

from typing import Final

import msgspec

from sandbox_agent.persist.store import EventRow

_UNPARSED: Final = "agent.unparsed"
# What is indexed of one item, in bytes; the rest of a longer one is not found.
_MAX_TEXT_BYTES: Final = 256 * 1024


def clean(text: str) -> str:
    """Return the text without lone surrogates, each of which becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def searchable(text: str) -> str:
    """Return what is indexed of an item's text."""
    # A character is at least one byte.
    data = text[:_MAX_TEXT_BYTES].replace("\0", " ").encode("utf-8", "replace")
    return data[:_MAX_TEXT_BYTES].decode("utf-8", "ignore")


def add_raw(event: EventRow, raw: bytes) -> None:
    """Give an event its member ``raw``: the envelope that it was made from."""
    if event.type != _UNPARSED:
        event.data = event.data[:-1] + b',"raw":' + _as_json(raw) + b"}"


def _as_json(raw: bytes) -> bytes:
    try:
        raw.decode()
        msgspec.json.decode(raw)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return msgspec.json.encode(raw.decode("utf-8", "replace"))
    # Between JSON's values a line's end is a blank; in an event stream it is more.
    return raw.replace(b"\r", b" ").replace(b"\n", b" ")
