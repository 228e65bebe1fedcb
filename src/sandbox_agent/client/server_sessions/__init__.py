"""The client of the sessions that the server stores and drives (``sdk.sessions``)."""

from __future__ import annotations
