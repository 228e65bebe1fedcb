"""Checks that use the network: of a running server, and of what installations need."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from importlib.metadata import version
from typing import Final, TypeVar
from urllib.parse import urlsplit

import httpx2
import msgspec

from sandbox_agent.cli.doctor_findings import Finding, ok, problem, warning
from sandbox_agent.client.http import describe, is_loopback
from sandbox_agent.persist.open import parse_store_url
from sandbox_agent.wire.api import AgentListResponse, HealthResponse

T = TypeVar("T")

_SECONDS: Final = 10.0
# More than the header's resolution and a slow network.
_CLOCK_SECONDS: Final = 30
_REGISTRIES: Final = ("https://registry.npmjs.org/", "https://pypi.org/simple/")
_PORTS: Final = {"postgres": 5432, "redis": 6379}


class _Info(msgspec.Struct):
    version: str


class _Document(msgspec.Struct):
    """The OpenAPI document of a server."""

    info: _Info


def check_server(url: str, token: str | None) -> Iterator[Finding]:
    """Check a running server.

    Args:
        url: its URL.
        token: its token, if it has one.

    Raises:
        ValueError: it is no URL of a server.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--url must be an http(s) URL such as http://127.0.0.1:2468, not '{url}'")
    with httpx2.Client(
        base_url=url.rstrip("/"), timeout=_SECONDS, trust_env=not is_loopback(parts.hostname)
    ) as client:
        try:
            yield from _check_server(client, token)
        except httpx2.HTTPError as error:
            advice = "check the address, that the server runs, and proxies on the way"
            yield problem("server", f"{url} can't be reached: {describe(error)}", advice)


def _check_server(client: httpx2.Client, token: str | None) -> Iterator[Finding]:
    before = time.time()
    answer = client.get("/v1/health")
    if answer.status_code != HTTPStatus.OK or _decode(answer, HealthResponse) is None:
        message = f"{client.base_url} answered with the status {answer.status_code}, and not as a server does"
        yield problem("server", message, "check the address, and proxies on the way")
        return
    yield ok("server", f"{client.base_url} answers")
    yield from _check_clock(answer, before)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    health = client.get("/v1/health", headers=headers)
    agents = client.get("/v1/agents", headers=headers)
    if agents.status_code != HTTPStatus.OK:
        known = "the token is wrong" if token else "it needs a token"
        message = f"{known}: /v1/agents was answered with the status {agents.status_code}"
        yield problem("authentication", message, "pass the server's token in SANDBOX_AGENT_TOKEN")
        return
    is_open = not token or client.get("/v1/agents").status_code == HTTPStatus.OK
    if is_open:
        message = "the server answers without a token"
        yield warning("authentication", message, "start it with a token unless only you can reach it")
    else:
        yield ok("authentication", "the token is accepted, and needed")
    details = _decode(health, HealthResponse)
    if details is not None and details.store == "degraded":
        reason = f"the store fails: {details.reason}"
        yield problem("store of the server", reason, "check its disk or database, and the server's log")
    yield from _check_version(client, headers)
    listed = _decode(agents, AgentListResponse)
    if listed is not None:
        names = [agent.id for agent in listed.agents if agent.installed]
        yield ok("agents of the server", ", ".join(names) or "none is installed")


def _check_clock(answer: httpx2.Response, before: float) -> Iterator[Finding]:
    try:
        server = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return
    # The header has whole seconds.
    ahead = server + 1 - before if server + 1 < before else max(0.0, server - time.time())
    if abs(ahead) > _CLOCK_SECONDS:
        message = f"the server's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this one"
        yield warning("clock", message, "synchronize both: tickets and the ages of events depend on it")
    else:
        yield ok("clock", "as here")


def _check_version(client: httpx2.Client, headers: dict[str, str]) -> Iterator[Finding]:
    own = version("sandbox-agent-py")
    document = _decode(client.get("/v1/openapi.json", headers=headers), _Document)
    found = None if document is None else document.info.version
    if found == own:
        yield ok("version", own)
    else:
        message = f"the server has the version {found or 'of an unknown program'}, this package {own}"
        yield warning("version", message, "install the same version on both sides")


def _decode(answer: httpx2.Response, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.MsgspecError:
        return None


def check_online(store: str) -> Iterator[Finding]:
    """Check that the registries of packages are reached, and a store that is a database.

    Args:
        store: the store's URL.
    """
    for url in _REGISTRIES:
        host = urlsplit(url).hostname
        try:
            status = httpx2.head(url, timeout=_SECONDS).status_code
        except httpx2.HTTPError as error:
            advice = "check HTTPS_PROXY and the certificates; agents from there can't be installed"
            yield problem("network", f"{host} can't be reached: {describe(error)}", advice)
        else:
            yield ok("network", f"{host} answers with the status {status}")
    parsed = parse_store_url(store)
    if parsed.kind in _PORTS:
        parts = urlsplit(parsed.where)
        where = (parts.hostname or "localhost", parts.port or _PORTS[parsed.kind])
        try:
            socket.create_connection(where, _SECONDS).close()
        except OSError as error:
            advice = "check the address, and that the database runs"
            yield problem("store", f"{parsed.shown} can't be reached: {error}", advice)
        else:
            yield ok("store", f"{parsed.shown} can be reached")
