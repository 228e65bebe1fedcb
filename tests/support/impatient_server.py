"""The command with short times for terminals, so that tests of them do not take long."""

from __future__ import annotations

from sandbox_agent.cli.main import main
from sandbox_agent.server.http import websocket_protocol
from sandbox_agent.server.processes import pty

if __name__ == "__main__":
    websocket_protocol.VIEWER_SECONDS = 0.5  # pyright: ignore[reportConstantRedefinition, reportAttributeAccessIssue]
    pty.INPUT_SECONDS = 0.5  # pyright: ignore[reportConstantRedefinition, reportAttributeAccessIssue]
    main()
