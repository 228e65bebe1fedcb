"""An agent in a container, which may write to one folder of this machine.

python contained.py FOLDER "Fix the failing test."

The image has to have Sandbox Agent: ``sandbox-agent image build`` makes one, and IMAGE names another one.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from sandbox_agent import SandboxAgent, docker


async def main(folder: Path, prompt: str) -> None:
    """Run a prompt, and list what is in the folder afterwards."""
    provider = docker(os.environ.get("IMAGE"), workspace=folder, memory="1g")
    async with SandboxAgent.start(sandbox=provider) as sdk:
        try:
            agent = os.environ.get("AGENT", "mock")
            session = await sdk.create_session(agent=agent, cwd="/workspace", permission_policy="allow_once")
            print(await session.ask(prompt))
            print("files:", ", ".join(entry.name for entry in await sdk.files.list("/workspace")))
        finally:
            await sdk.destroy_sandbox()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
