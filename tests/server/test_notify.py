"""The messages of a server to the program that manages it, by the protocol of sd_notify(3)."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx2
import pytest

from tests.support.servers import our_server


@pytest.mark.parametrize("is_abstract", [False, True])
def test_a_server_says_when_it_is_ready_and_when_it_ends(tmp_path: Path, is_abstract: bool) -> None:
    path = tmp_path / "n"
    name = f"\0{path}" if is_abstract else str(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        manager.settimeout(30)
        server = our_server(tmp_path, env={"NOTIFY_SOCKET": name.replace("\0", "@")})
        with server:
            assert manager.recv(100) == b"READY=1"
            # What the server starts does not have the variable.
            body = {"command": "env"}
            answer = httpx2.post(f"{server.url}/v1/processes/run", json=body)
            assert "NOTIFY_SOCKET" not in answer.json()["stdout"]
        assert manager.recv(100) == b"STOPPING=1"
