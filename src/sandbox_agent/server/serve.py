"""Running the application under uvicorn until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn

from sandbox_agent.server.app import Application
from sandbox_agent.server.config import ServerConfig

__all__ = ["serve"]

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# After the agents have ended nothing is left to wait for; a client that doesn't read must not hold us.
DRAIN_SECONDS = 2


class _Server(uvicorn.Server):
    """uvicorn, which ends agents before it waits for their streams to end."""

    def __init__(self, config: uvicorn.Config, app: Application) -> None:
        super().__init__(config)
        self._app = app

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Take the signals as a wish to end; uvicorn's own would end the process by them afterwards."""
        wishes = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(signum, self.handle_exit) for signum in wishes]
        try:
            yield
        finally:
            for signum, handler in zip(wishes, before, strict=True):
                signal.signal(signum, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self._app.end_agents()
        await super().shutdown(sockets)


def serve(config: ServerConfig) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code.

    Raises:
        OSError: it can't listen there.
        PersistError: the store can't be opened, or another server has it.
    """
    app = Application(config)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.create_server((config.host, config.port), family=family, backlog=2048, reuse_port=False)
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
            lifespan="off",  # _serve runs it, so that what stops it is an error of ours, not a traceback
            ws="none",
        ),
        app,
    )
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(_serve(app, server, listener))
    return 0 if server.started else 1


async def _serve(app: Application, server: uvicorn.Server, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    async with app.running():
        logger.info("sandbox-agent listens on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        await server.serve([listener])


def _http_protocol() -> type[asyncio.Protocol] | str:
    """Return the fast protocol where httptools is installed, else what uvicorn finds."""
    try:
        from sandbox_agent.server.http.fast_path_protocol import ExpressHttpProtocol
    except ImportError:
        return "auto"
    return ExpressHttpProtocol
