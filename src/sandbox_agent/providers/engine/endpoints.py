"""Finds the engine: by DOCKER_HOST, contexts of the docker command, and sockets at their usual places."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from sandbox_agent.errors import SandboxAgentError

EngineName = Literal["docker", "podman"]

_DEFAULT_PORT = 2375
_DEFAULT_TLS_PORT = 2376
_VARIABLES: dict[EngineName, str] = {"docker": "DOCKER_HOST", "podman": "CONTAINER_HOST"}
_HINTS: dict[EngineName, str] = {
    "docker": "start Docker (Linux: systemctl start docker), or set DOCKER_HOST",
    "podman": "start its API (systemctl --user start podman.socket, or podman system service --time=0), "
    "or set CONTAINER_HOST",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of an engine.

    Attributes:
        url: ``unix:///path`` or ``tcp://host:port``, for messages.
        path: The path of its Unix socket, or None.
        host: Its host if it listens on TCP, else "127.0.0.1".
        port: Its port if it listens on TCP.
        tls: The TLS settings, or None.
    """

    url: str
    path: Path | None = None
    host: str = "127.0.0.1"
    port: int = 0
    tls: ssl.SSLContext | None = None

    @property
    def is_local(self) -> bool:
        """Whether the engine runs on this machine, as far as its address shows."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def find_endpoint(engine: EngineName, host: str | None = None) -> Endpoint:
    """Return the address of an engine.

    Args:
        engine: Which engine.
        host: Its URL, or None to find it as its own command does.

    Raises:
        SandboxAgentError: There is no engine, or its URL or its context cannot be used.
    """
    variable = _VARIABLES[engine]
    if named := host or os.environ.get(variable):
        tls = None
        if not host and engine == "docker" and os.environ.get("DOCKER_TLS_VERIFY"):
            tls = Path(os.environ.get("DOCKER_CERT_PATH") or _docker_folder())
        return _parse(named, tls)
    if engine == "docker" and (context := _docker_context()) is not None:
        return context
    tried = list(_usual_sockets(engine))
    for path in tried:
        if path.exists():
            return Endpoint(f"unix://{path}", path)
    raise SandboxAgentError(
        f"{engine} was not found: {variable} is not set, and there is no socket at "
        f"{', '.join(map(str, tried))}. Install {engine} and {_HINTS[engine]}"
    )


def how_to_start(engine: EngineName) -> str:
    """Return what starts an engine, for error messages."""
    return _HINTS[engine]


def _parse(url: str, tls: Path | None) -> Endpoint:
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path:
        return Endpoint(url, Path(parts.path))
    if parts.scheme not in ("tcp", "http", "https") or not parts.hostname:
        hint = "forward its socket with ssh -L and use that" if parts.scheme == "ssh" else "use another URL"
        raise SandboxAgentError(
            f"the engine's URL '{url}' is neither unix:///path nor tcp://host:port: {hint}"
        )
    context = None if tls is None else _tls_context(tls)
    if parts.scheme == "https" and context is None:
        context = ssl.create_default_context()
    port = parts.port or (_DEFAULT_PORT if context is None else _DEFAULT_TLS_PORT)
    return Endpoint(url, None, parts.hostname, port, context)


def _tls_context(folder: Path) -> ssl.SSLContext:
    """Return the settings of a folder with ca.pem, cert.pem and key.pem."""
    try:
        authority = folder / "ca.pem"
        context = ssl.create_default_context(cafile=str(authority) if authority.exists() else None)
        if (folder / "cert.pem").exists():
            context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    except OSError as error:  # ssl.SSLError is one
        raise SandboxAgentError(
            f"the TLS files of the engine in '{folder}' cannot be used: {error}. Check ca.pem, cert.pem and "
            "key.pem, or DOCKER_CERT_PATH"
        ) from error
    return context


def _docker_folder() -> Path:
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")


def _docker_context() -> Endpoint | None:
    """Return the engine of the docker command's context, or None for the default context."""
    name = os.environ.get("DOCKER_CONTEXT")
    if not name:
        config = _docker_folder() / "config.json"
        try:
            name = json.loads(config.read_bytes()).get("currentContext")
        except (OSError, ValueError, AttributeError):
            return None  # it is not used by the docker command either
    if not name or name == "default":
        return None
    folder = hashlib.sha256(name.encode()).hexdigest()
    contexts = _docker_folder() / "contexts"
    try:
        meta: dict[str, Any] = json.loads((contexts / "meta" / folder / "meta.json").read_bytes())
        url: str = meta["Endpoints"]["docker"]["Host"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SandboxAgentError(
            f"the docker context '{name}' cannot be read: run docker context ls, then docker context use, or "
            "set DOCKER_HOST"
        ) from error
    tls = contexts / "tls" / folder / "docker"
    return _parse(url, tls if tls.is_dir() else None)


def _usual_sockets(engine: EngineName) -> Iterator[Path]:
    runtime = os.environ.get("XDG_RUNTIME_DIR") or (
        f"/run/user/{os.getuid()}" if hasattr(os, "getuid") else ""
    )
    if engine == "docker":
        yield Path("/var/run/docker.sock")
        if runtime:
            yield Path(runtime, "docker.sock")
        yield Path.home() / ".docker/run/docker.sock"  # Docker Desktop on macOS
        yield Path.home() / ".docker/desktop/docker.sock"  # on Linux
        return
    own = [Path(runtime, "podman/podman.sock")] if runtime else []
    system = Path("/run/podman/podman.sock")
    yield from (system, *own) if hasattr(os, "geteuid") and os.geteuid() == 0 else (*own, system)
