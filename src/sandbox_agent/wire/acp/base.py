"""What all ACP views share: camelCase on the wire, ``_meta``, immutable."""

from __future__ import annotations

from typing import Any

import msgspec


class AcpStruct(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A view of an ACP object. Fields that it doesn't know are ignored: the bytes are kept elsewhere.

    Attributes:
        meta: ACP's ``_meta``, where anyone may put anything.
    """

    meta: dict[str, Any] | None = msgspec.field(default=None, name="_meta")
