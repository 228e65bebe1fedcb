"""Everything that goes through the connections, into the store and from there to who watches."""

from __future__ import annotations

from sandbox_agent.server.recorder.published_session import LiveSession
from sandbox_agent.server.recorder.recorder import Recorder
from sandbox_agent.server.recorder.tap import Tap

__all__ = ["LiveSession", "Recorder", "Tap"]
