"""Agents that have ended: the error of their requests, and their count."""

from __future__ import annotations

from typing import Any

from sandbox_agent.errors import AgentProcessExitedError
from sandbox_agent.runtime.process import ExitStatus
from sandbox_agent.server import metrics


def count_exit(agent: str, *, killed: bool, stopped: bool) -> None:
    """Count an agent that has ended: killed for a limit, stopped by the server, or by itself."""
    metrics.AGENT_EXITS.add(agent, "killed" if killed else "stopped" if stopped else "exited")


def exit_error(
    agent: str, status: ExitStatus | None, excess: str | None, stderr_tail: str
) -> AgentProcessExitedError:
    """Return the error.

    Args:
        agent: The agent's id.
        status: How its process ended.
        excess: What it used too much of, if it was ended for that.
        stderr_tail: The end of its standard error.
    """
    status = status or ExitStatus(None, None)
    how = f"signal {status.signal}" if status.signal is not None else f"exit code {status.code}"
    what = f"ended with {how}" if excess is None else f"was ended: {excess}"
    reason: dict[str, Any] = {} if excess is None else {"reason": excess}
    return AgentProcessExitedError(
        f"agent process exited: {agent} {what}; POST again with ?agent={agent} to start it again",
        agent=agent,
        exitCode=status.code,
        signal=status.signal,
        stderr=stderr_tail,
        **reason,
    )
