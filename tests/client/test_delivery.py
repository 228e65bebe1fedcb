"""A POST without a usable answer: what is certain about its envelope."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from sandbox_agent.client.delivery import Delivery, UnknownOutcomeError
from sandbox_agent.client.http import Http

pytestmark = pytest.mark.anyio


def delivery(*outcomes: int | Exception) -> tuple[Delivery, list[int | Exception]]:
    """Return a delivery whose POSTs have these outcomes, and the outcomes that are left.

    With the last one, the connection is lost.
    """
    left = list(outcomes)

    def answer(_request: httpx2.Request) -> httpx2.Response:
        outcome = left.pop(0)
        posts.closed = not left
        if isinstance(outcome, Exception):
            raise outcome
        return httpx2.Response(outcome, text="" if outcome == 202 else "<html>")

    http = Http(base_url="http://127.0.0.1:1", transport=httpx2.MockTransport(answer))
    posts = Delivery(http, "/v1/acp/x", {})
    posts.repeatable = True
    return posts, left


async def test_a_refused_connection_means_that_nothing_was_sent() -> None:
    posts, _ = delivery(httpx2.ConnectError("refused"))
    with pytest.raises(httpx2.ConnectError):
        await posts.request(b"{}", asyncio.get_running_loop().create_future())


async def test_a_refused_connection_after_a_lost_answer_leaves_the_outcome_unknown() -> None:
    """The first try may have arrived: the caller must not send the prompt in another session."""
    posts, left = delivery(502, httpx2.ConnectError("refused"), 503, 202)
    assert await posts.request(b"{}", asyncio.get_running_loop().create_future()) == b""
    assert left == []
    posts, _ = delivery(502, httpx2.ConnectError("refused"), 503)
    with pytest.raises(UnknownOutcomeError) as caught:
        await posts.request(b"{}", asyncio.get_running_loop().create_future())
    assert not caught.value.unprocessed
