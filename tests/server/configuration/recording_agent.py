"""The mock agent; it appends to a file what it receives, and supports MCP over the transports that are named.

Arguments: the file, and the transports, such as ``http,sse``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from sandbox_agent.agents.mock import agent


class RecordingAgent(agent.Agent):
    """Records the lines that it handles."""

    def handle(self, line: bytes) -> None:
        with Path(sys.argv[1]).open("ab") as file:
            file.write(line.rstrip() + b"\n")
        super().handle(line)

    def _initialize(self, params: dict[str, Any]) -> dict[str, Any]:
        result = super()._initialize(params)
        result["agentCapabilities"]["mcpCapabilities"] = dict.fromkeys(sys.argv[2].split(","), True)
        return result


if __name__ == "__main__":
    agent.Agent = RecordingAgent
    os._exit(agent.serve())
