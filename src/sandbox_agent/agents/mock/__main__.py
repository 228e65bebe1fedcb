"""``python -m sandbox_agent.agents.mock``."""

from __future__ import annotations

import os

from sandbox_agent.agents.mock import main

__all__: list[str] = []

if __name__ == "__main__":
    # Threads may still be inside a turn: leave without waiting for them, as an agent at EOF does.
    os._exit(main())
