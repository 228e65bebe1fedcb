"""Server-sent event streams of connections and sessions."""

from __future__ import annotations
