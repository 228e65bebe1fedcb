"""Removes the containers of programs that were killed, once they have ended by ``max_lifetime``."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers.engine.api import EngineApi
from sandbox_agent.providers.engine.container import (
    LABEL,
    LIFETIME_LABEL,
    PROXY_LABEL,
    SOCKET_LABEL,
    proxy_folder,
    socket_folder,
)
from sandbox_agent.providers.engine.sidecar import remove_lonely_proxies, remove_proxy
from sandbox_agent.wire.api import IDLE_EXIT_CODE

logger: logging.Logger = logging.getLogger("sandbox_agent.providers")


async def remove_leftovers(api: EngineApi) -> None:
    """Remove each sandbox that ended because it was idle, and that was not used for its lifetime afterwards.

    Also those whose program was killed before it started the container. Errors are logged: another
    program may do the same.
    """
    try:
        items = await api.list_containers(f"{LABEL}=1")
    except SandboxAgentError as error:
        # Podman fails while another request removes a container.
        logger.info("sandboxes that nothing uses could not be listed: %s", error)
        return
    for item in items:
        if item["State"] not in ("exited", "created") or not item["Labels"].get(LIFETIME_LABEL):
            continue
        try:
            found = await api.inspect(item["Id"])
            if found is not None and _is_leftover(found, time.time()):
                await remove_sandbox(api, found["Name"].lstrip("/"))
        except SandboxAgentError as error:
            logger.warning("a sandbox that nothing uses could not be removed: %s", error)
    try:
        await remove_lonely_proxies(api)
    except SandboxAgentError as error:
        logger.warning("the proxies of sandboxes that were removed could not be removed: %s", error)


async def remove_sandbox(api: EngineApi, name: str) -> None:
    """Remove a sandbox's container with its volumes, its proxy, and the folders of their sockets.

    Raises:
        SandboxAgentError: The engine refused it.
    """
    folder, has_proxy = socket_folder(name), proxy_folder(name).exists()
    try:
        if (found := await api.inspect(name)) is not None:
            labels: dict[str, str] = found["Config"]["Labels"]
            folder, has_proxy = Path(labels.get(SOCKET_LABEL) or folder), bool(labels.get(PROXY_LABEL))
        await api.remove(name)
        if has_proxy:
            await remove_proxy(api, name)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _is_leftover(found: dict[str, Any], now: float) -> bool:
    state = found["State"]
    lifetime = float(found["Config"]["Labels"][LIFETIME_LABEL])
    if state["Status"] == "created":
        return datetime.fromisoformat(found["Created"]).timestamp() + lifetime < now
    ended_idle = state["Status"] == "exited" and state["ExitCode"] == IDLE_EXIT_CODE
    return ended_idle and datetime.fromisoformat(state["FinishedAt"]).timestamp() + lifetime < now
