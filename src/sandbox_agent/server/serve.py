"""Runs the application under uvicorn until a signal ends it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import uvicorn

from sandbox_agent.runtime.notify import service_manager
from sandbox_agent.runtime.unix_socket import listen_on_path, unlink_socket
from sandbox_agent.server.app import Application
from sandbox_agent.server.config import ServerConfig
from sandbox_agent.wire.api import IDLE_EXIT_CODE

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# Once the agents have ended there is nothing to wait for; a client that does not read must not delay the end.
DRAIN_SECONDS = 2
BACKLOG = 2048
# How often the times of connections are checked.
CHECK_SECONDS = 1.0
# The whole end of the server takes at most 8 s, whatever hangs: container runtimes send SIGKILL after 10 s.
END_SECONDS = 7.0
# How long the log of what is lost may take then.
LOG_SECONDS = 0.5


class _Server(uvicorn.Server):
    """A uvicorn server that ends the agents before it waits for the streams to end."""

    def __init__(self, config: uvicorn.Config, app: Application) -> None:
        super().__init__(config)
        self._app = app
        self._deadline: threading.Timer | None = None
        self.ended_idle: bool = False
        self._notify = service_manager()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._notify("READY=1")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end. A thread of its own ends the process if that takes too long."""
        if self._deadline is None:
            self._deadline = threading.Timer(END_SECONDS, self._end_now)
            self._deadline.daemon = True
            self._deadline.start()
        super().handle_exit(sig, frame)

    def _end_now(self) -> None:
        # What reads the log may hang, too.
        log = threading.Thread(target=self._log_loss, daemon=True)
        log.start()
        log.join(LOG_SECONDS)
        os._exit(1)  # the warden ends what is left of the agents

    def _log_loss(self) -> None:
        logger.error("the server did not end within %g s: %s", END_SECONDS, self._app.loss)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Shut down on SIGTERM and SIGINT; uvicorn's own handler would also re-raise them at the end."""
        signals = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(signum, self.handle_exit) for signum in signals]
        try:
            yield
        finally:
            for signum, handler in zip(signals, before, strict=True):
                signal.signal(signum, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._notify("STOPPING=1")
        for server in self.servers:
            server.close()
        await self._app.end_agents()
        await super().shutdown(sockets)


def serve(config: ServerConfig) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code.

    Raises:
        OSError: the address can't be bound.
        PersistError: the store can't be opened, or another server uses it.
    """
    app = Application(config)
    listener = _listen(config)
    server = _Server(
        uvicorn.Config(
            app,
            http=_http_protocol(),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # the address of a client is not used
            timeout_keep_alive=75,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            lifespan="off",  # _serve runs it, so that a failure is an error of ours, not a traceback
            ws=cast(type[asyncio.Protocol], _websocket_protocol),
        ),
        app,
    )
    app.connections = server.server_state.connections
    try:
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(_serve(app, server, listener))
    finally:
        listener.close()
        if config.uds is not None:
            unlink_socket(config.uds)
    if server.ended_idle:
        return IDLE_EXIT_CODE
    return 0 if server.started else 1


def _listen(config: ServerConfig) -> socket.socket:
    if config.uds is not None:
        return listen_on_path(config.uds, BACKLOG)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    return socket.create_server((config.host, config.port), family=family, backlog=BACKLOG, reuse_port=False)


def _who_can_use(config: ServerConfig) -> str:
    if config.uds is None and not config.is_local_only:
        return (
            f"everything that reaches {config.host} can run agents here, and so can every process of this "
            "machine. Something in front of this server has to authenticate requests"
        )
    if config.uds is not None and config.agent_environment.user is not None:
        return "every process of this user can use this server. Its agents run as another user"
    return (
        f"every process of this {'machine' if config.uds is None else 'user'} can use this server, also its "
        "agents, which can answer their own permission requests. Pass a token to prevent that"
    )


def _address(listener: socket.socket) -> str:
    if listener.family == socket.AF_UNIX:
        return f"the socket {listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _serve(app: Application, server: _Server, listener: socket.socket) -> None:
    async with app.running():
        gc.freeze()  # these objects live as long as the server: the collector can skip them
        if app.config.token is None:
            logger.warning("no token: %s", _who_can_use(app.config))
        logger.info("sandbox-agent listens on %s", _address(listener))
        checks = [_check_times(server)]
        if app.config.exit_when_idle:
            checks.append(_end_when_idle(app, server, app.config.exit_when_idle))
        running = [asyncio.ensure_future(check) for check in checks]
        try:
            await server.serve([listener])
        finally:
            for check in running:
                check.cancel()


async def _check_times(server: uvicorn.Server) -> None:
    """Close connections that wait for too long, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        for connection in list(server.server_state.connections):
            check: Callable[[float], None] | None = getattr(connection, "check_times", None)
            if check is not None:
                check(loop.time())


async def _end_when_idle(app: Application, server: _Server, seconds: float) -> None:
    """End the server when no turn ran and no client was connected for a time."""
    loop = asyncio.get_running_loop()
    active = loop.time()
    while True:
        await asyncio.sleep(min(CHECK_SECONDS, seconds))
        if app.runs_turn or server.server_state.connections:
            active = loop.time()
        elif loop.time() - active >= seconds:
            logger.info("ending: no turn ran and no client was connected for %g s", seconds)
            server.ended_idle = True
            server.handle_exit(signal.SIGTERM, None)
            return


def _websocket_protocol(*args: Any, **kwargs: Any) -> asyncio.Protocol:
    # Imported for the first terminal: few servers have one, and the import takes long.
    from sandbox_agent.server.http.websocket_protocol import WebSocketProtocol

    return WebSocketProtocol(*args, **kwargs)


def _http_protocol() -> type[asyncio.Protocol] | str:
    """Return our protocol if httptools is installed, else uvicorn's own, which has no limits."""
    try:
        from sandbox_agent.server.http.fast_path_protocol import FastPathProtocol
    except ImportError:
        return "auto"
    return FastPathProtocol
