"""A scripted ACP agent that needs no model, network or installation, and that can misbehave on request.

``python -m sandbox_agent.agents.mock`` speaks ACP on stdin and stdout. The prompt ``help`` lists its
commands. It imports little, and only from the standard library, to start fast.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> int:
    """Serve ACP on stdin and stdout until stdin ends, and return the exit code."""
    from sandbox_agent.agents.mock.agent import serve

    return serve()
