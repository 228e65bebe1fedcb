"""The scripted ACP agent: it needs no model, no network and no installation, and it can misbehave.

``python -m sandbox_agent.agents.mock`` speaks ACP on stdin and stdout; send it the prompt ``help``. Only
the standard library is imported, and little of it, so that it starts as fast as the interpreter does.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> int:
    """Serve ACP on stdin and stdout until stdin ends; returns the exit code."""
    from sandbox_agent.agents.mock.agent import serve

    return serve()
