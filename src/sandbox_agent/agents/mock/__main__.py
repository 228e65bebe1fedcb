"""``python -m sandbox_agent.agents.mock``."""

from __future__ import annotations

import os

from sandbox_agent.agents.mock.agent import serve

__all__: list[str] = []

if __name__ == "__main__":
    # Exit without waiting for threads that still run a turn.
    os._exit(serve())
