"""An app with an agent: it asks for a fix, and allows changes below its folder only."""

from __future__ import annotations

from pathlib import Path

from sandbox_agent import PermissionReply, PermissionRequest, SandboxAgent


async def fix(sdk: SandboxAgent, folder: Path, report: str) -> str:
    """Return what the agent says about the fix of a bug."""

    def decide(request: PermissionRequest) -> PermissionReply:
        paths = [Path(location.path) for location in request.tool_call.locations]
        return "once" if paths and all(path.is_relative_to(folder) for path in paths) else "reject"

    session = await sdk.create_session(agent="claude", cwd=folder, permission_policy=decide)
    return await session.ask(f"Fix this bug: {report}")
