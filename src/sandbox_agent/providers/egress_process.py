"""The process of the proxy through which a sandbox on this machine reaches its allowed hosts.

It runs outside of the sandbox and ends with this program, as the server does.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from sandbox_agent.egress.allow_list import AllowList
from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers.server_process import Log, ServerProcess
from sandbox_agent.providers.unix_transport import UnixTransport

logger: logging.Logger = logging.getLogger("sandbox_agent.providers")

SOCKET = "proxy.sock"
_BACKLOG = 512
# Seconds from one start to the next.
_PAUSE = 1.0
# The proxy needs no other variables of this program, which may have secrets.
_VARIABLES = (
    "PATH",
    "HOME",
    "LANG",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "PYTHONHOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
PROXY_VARIABLES = tuple(
    name
    for upper in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    for name in (upper, upper.lower())
)


class EgressProcess:
    """A proxy, which is started again when it was killed.

    Args:
        folder: A new folder for its socket. The sandbox must not be able to write to it.
        allow_hosts: The hosts that it reaches.
        log: Where its output goes.

    Raises:
        InvalidRequestError: A host is invalid.
    """

    def __init__(self, folder: Path, allow_hosts: Sequence[str], log: Log) -> None:
        AllowList(allow_hosts)
        folder.mkdir(mode=0o700)
        self._path = folder / SOCKET
        self._hosts = [f"--allow-host={host}" for host in allow_hosts]
        self._log = log
        self._process: ServerProcess | None = None
        self._stopped = threading.Event()
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Its process id, or None if it was not started."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it if it does not run.

        Raises:
            SandboxAgentError: It cannot be started.
        """
        with self._lock:
            if self._stopped.is_set():
                return
            if self._process is not None:
                if not self._process.has_exited():
                    return
                self._process.stop(0.0)
            # -P: the working directory may be a workspace, where agents write.
            command = [sys.executable, "-P", "-m", "sandbox_agent.cli.main", "egress-proxy"]
            listener = self._listen()
            process = self._process = ServerProcess(
                [*command, f"--fd={listener}", *self._hosts],
                _environment(),
                log=self._log,
                descriptors=[listener],
                name="the egress proxy",
            )
        threading.Thread(
            target=self._restart, args=(process,), name="sandbox-agent-egress", daemon=True
        ).start()

    def _restart(self, process: ServerProcess) -> None:
        """Start it again when it was killed: nothing else in the sandbox would notice."""
        started = time.monotonic()
        process.wait_exited()
        pause = _PAUSE - (time.monotonic() - started)
        if process.stopping or (pause > 0 and self._stopped.wait(pause)):
            return
        logger.warning("the egress proxy has ended: it is started again")
        try:
            self.start()
        except (SandboxAgentError, OSError) as error:
            logger.error("the egress proxy cannot be started again: %s", error)

    def _listen(self) -> int:
        # Bound here, connections wait for the proxy from the start, and fail at once when it was killed.
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(self._path))
            self._path.chmod(0o600)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener.detach()

    async def wait_responding(self) -> None:
        """Wait until it answers requests.

        Raises:
            SandboxAgentError: It has exited, or did not respond in time.
        """
        assert self._process is not None
        transport = UnixTransport(self._path, lambda _: None)
        await self._process.wait_responding("http://proxy", "none", transport)

    def stop(self, grace: float) -> None:
        """Stop it; with a grace of 0 it is killed."""
        self._stopped.set()
        with self._lock:
            if self._process is not None:
                self._process.stop(grace)


def _environment() -> dict[str, str]:
    names = (*_VARIABLES, *PROXY_VARIABLES)
    environment = {name: os.environ[name] for name in names if name in os.environ}
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if absolute := [folder for folder in folders if os.path.isabs(folder)]:  # noqa: PTH117 - not a Path
        environment["PYTHONPATH"] = os.pathsep.join(absolute)
    return environment
