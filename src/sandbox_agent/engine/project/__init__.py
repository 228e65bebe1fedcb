"""ACP envelopes of one session -> universal events: a pure, deterministic, resumable fold."""

from __future__ import annotations

from sandbox_agent.engine.project.projector import Projector

__all__ = ["Projector"]
