"""The client of the server's own sessions (``sdk.sessions``)."""

from __future__ import annotations
