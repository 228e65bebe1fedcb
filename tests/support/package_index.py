"""A package index with what this package depends on, for containers that reach this machine only."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import html
import re
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.npm import cache_folder

# IP_FREEBIND of ip(7): podman makes the address with its first container.
_FREEBIND = 15


@functools.cache
def _wheels(python: str) -> Path:
    """Return a folder with the wheels, which is filled once."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    needed: list[str] = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    key = hashlib.sha256("\n".join([python, *needed]).encode()).hexdigest()[:12]
    folder = cache_folder() / f"wheels-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            options = ["--quiet", "--only-binary=:all:", f"--python-version={python}", f"--dest={folder}"]
            subprocess.run([sys.executable, "-m", "pip", "download", *options, *needed], check=True)
            (folder / "done").touch()
    return folder


class Requests(list[str]):
    """The projects and files that were requested.

    Attributes:
        has_any: Set by the first request.
    """

    def __init__(self) -> None:
        super().__init__()
        self.has_any = threading.Event()

    def append(self, name: str, /) -> None:
        """Add a request."""
        super().append(name)
        self.has_any.set()


class _Handler(BaseHTTPRequestHandler):
    folder: Path
    requested: Requests

    def do_GET(self) -> None:
        """Answer with a page of links or a wheel."""
        kind, _, name = self.path.strip("/").partition("/")
        self.requested.append(name)
        if kind == "files":
            content = (self.folder / Path(name).name).read_bytes()
        else:
            found = [each.name for each in self.folder.glob("*.whl") if _project(each.name) == name]
            if not found:
                self.send_error(404)
                return
            content = "".join(
                f'<a href="/files/{html.escape(n)}">{html.escape(n)}</a>\n' for n in found
            ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if kind == "simple" else "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Print nothing."""


def _project(wheel: str) -> str:
    return re.sub(r"[-_.]+", "-", wheel.partition("-")[0]).lower()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IP, _FREEBIND, 1)
        super().server_bind()


@contextlib.contextmanager
def package_index(address: str, python: str = "3.11") -> Generator[tuple[str, Requests]]:
    """Serve the index at an address of this machine. Yield its URL, and the list of what is requested."""
    requested = Requests()
    handler = type("Handler", (_Handler,), {"folder": _wheels(python), "requested": requested})
    with _Server((address, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{address}:{server.server_port}/simple", requested
        finally:
            server.shutdown()
            thread.join()
