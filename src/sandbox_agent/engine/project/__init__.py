"""Projects the ACP envelopes of one session onto universal events: pure, deterministic and resumable."""

from __future__ import annotations

from sandbox_agent.engine.project.projector import Projector

__all__ = ["Projector"]
