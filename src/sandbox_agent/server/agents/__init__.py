"""Agent processes behind server ids: start, connection, feed, spill."""

from __future__ import annotations
