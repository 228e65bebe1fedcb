"""Running the application under uvicorn until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import socket

import uvicorn

from sandbox_agent.server.app import Application
from sandbox_agent.server.config import ServerConfig

__all__ = ["serve"]

logger = logging.getLogger("sandbox_agent.server")

# After the agents have ended nothing is left to wait for; a client that doesn't read must not hold us.
DRAIN_SECONDS = 2


class _Server(uvicorn.Server):
    """uvicorn, which ends agents before it waits for their streams to end."""

    def __init__(self, config: uvicorn.Config, app: Application) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self._app.end_agents()
        await super().shutdown(sockets)


def serve(config: ServerConfig) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    app = Application(config)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.create_server((config.host, config.port), family=family, backlog=2048, reuse_port=False)
    host, port = listener.getsockname()[:2]
    server = _Server(
        uvicorn.Config(
            app,
            http=_http_protocol(),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing here asks where a request came from
            timeout_keep_alive=75,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            lifespan="on",
            ws="none",
        ),
        app,
    )
    logger.info("sandbox-agent listens on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(server.serve([listener]))
    return 0 if server.started else 1


def _http_protocol() -> type[asyncio.Protocol] | str:
    """Return the fast protocol where httptools is installed, else what uvicorn finds."""
    try:
        from sandbox_agent.server.cork import CorkedHttpProtocol
    except ImportError:
        return "auto"
    return CorkedHttpProtocol
