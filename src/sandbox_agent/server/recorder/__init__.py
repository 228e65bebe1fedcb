"""Turns what passes through connections into stored, published sessions."""

from __future__ import annotations

from sandbox_agent.server.recorder.published_session import PublishedSession
from sandbox_agent.server.recorder.queue import Tap
from sandbox_agent.server.recorder.recorder import Recorder
from sandbox_agent.server.recorder.registry import RecordedSession

__all__ = ["PublishedSession", "RecordedSession", "Recorder", "Tap"]
