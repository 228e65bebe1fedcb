"""A Git server over HTTP on loopback: ``git http-backend`` behind a small server."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

__all__ = ["GitServer", "commit", "git", "git_server"]


def git(folder: Path, *words: str) -> str:
    """Run Git in a folder, and return what it prints."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder: Path, message: str = "change") -> str:
    """Commit everything in a folder, which becomes a repository if it is none; return the commit."""
    if not (folder / ".git").exists():
        git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", message)
    return git(folder, "rev-parse", "HEAD")


class GitServer:
    """The server.

    Attributes:
        folder: its repositories.
        fetches: how often a repository was fetched.
        password: with a password, for which it asks then.
        hangs: set: requests are not answered before ``released`` is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetches = 0
        self.password: str | None = None
        self.hangs = threading.Event()
        self.reached = threading.Event()
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.handle(self)

            def do_POST(self) -> None:
                outer.handle(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def start(self) -> None:
        """Serve."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving."""
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request by running ``git http-backend``."""
        if self.hangs.is_set():
            self.reached.set()
            self.released.wait()
        if self.password is not None:
            expected = base64.b64encode(f"user:{self.password}".encode()).decode()
            if request.headers.get("authorization") != f"Basic {expected}":
                request.send_response(401)
                request.send_header("www-authenticate", 'Basic realm="git"')
                request.send_header("content-length", "0")
                request.end_headers()
                return
        path, _, query = request.path.partition("?")
        self.fetches += path.endswith("/info/refs")
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        env = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(self.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": request.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": request.headers.get("content-type") or "",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": request.headers.get("content-encoding") or "",
            "GIT_PROTOCOL": request.headers.get("git-protocol") or "",
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
        request.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            request.send_header(name, value)
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


@contextmanager
def git_server(folder: Path) -> Generator[GitServer]:
    """Serve the repositories in a folder."""
    server = GitServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
