"""Connections that take too long."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from sandbox_agent.egress import dial
from sandbox_agent.egress.allow_list import Address, AllowList, is_public
from sandbox_agent.egress.dial import Dialer
from sandbox_agent.egress.http import RequestError

pytestmark = pytest.mark.anyio


async def test_a_name_server_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, port: int) -> Sequence[Address]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(dial, "RESOLVE_SECONDS", 0.01)
    with pytest.raises(RequestError, match=r"a\.test cannot be resolved: no answer in time"):
        await Dialer(AllowList(["a.test"]), resolve=resolve).connect("a.test", 443, tunnel=True)


async def test_a_host_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "CONNECT_SECONDS", 0.01)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        with socket.socket() as first, socket.socket() as second:  # they fill its queue
            for each in (first, second):
                each.setblocking(False)
                each.connect_ex(("127.0.0.1", port))
            dialer = Dialer(AllowList([f"127.0.0.1:{port}"]))
            with pytest.raises(RequestError, match=r"did not answer within 0\.01 s"):
                await dialer.connect(ip_address("127.0.0.1"), port, tunnel=True)


async def test_the_systems_resolver_returns_addresses() -> None:
    found = await dial._resolve("localhost", 443)  # pyright: ignore[reportPrivateUsage]
    assert found
    assert not any(map(is_public, found))
