"""A question of a real agent process, answered over HTTP."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.server.talk import client_of
from tests.server.test_session_routes import Session
from tests.support.servers import our_server, put_launcher

pytestmark = pytest.mark.anyio

AGENT = Path(__file__).with_name("questioning_agent.py")


@asynccontextmanager
async def questioned(folder: Path) -> AsyncGenerator[Session]:
    put_launcher(folder / "data", "asking", [sys.executable, str(AGENT)])
    with our_server(folder) as server:
        async with client_of(server) as client:
            session = Session(client, "s")
            response = await session.post("", {"agent": "asking"})
            assert response.json()["healthy"] is True, response.text
            yield session


async def test_a_question_is_answered_once_and_the_agent_has_the_value(tmp_path: Path):
    async with questioned(tmp_path) as session, session.stream() as stream:
        await session.say("ask")
        asked = (await stream.until("question.requested"))[-1]["data"]
        assert (asked["prompt"], asked["options"]) == ("Which colour?", ["Red"])
        listed = (await session.client.get("/v1/permissions")).json()["permissions"]
        assert [each["kind"] for each in listed] == ["question"]
        path = f"/questions/{asked['question_id']}"
        unfit = await session.post(f"{path}/reply", {"answers": [["Red", "Blue"]]})
        assert unfit.status_code == 400
        reply = await session.post(f"{path}/reply", {"answers": [["Red"]]})
        assert reply.status_code == 204, reply.text
        events = await stream.until("turn.ended")
        resolved = next(event for event in events if event["type"] == "question.resolved")
        assert (resolved["data"]["status"], resolved["data"]["response"]) == ("answered", "#f00")
        said = "".join(event["data"]["delta"] for event in events if event["type"] == "item.delta")
        assert json.loads(said) == {"action": "accept", "content": {"colour": "#f00"}}
        assert (await session.post(f"{path}/reject")).status_code == 409


async def test_a_question_is_rejected(tmp_path: Path):
    async with questioned(tmp_path) as session, session.stream() as stream:
        await session.say("ask")
        asked = (await stream.until("question.requested"))[-1]["data"]
        assert (await session.post(f"/questions/{asked['question_id']}/reject")).status_code == 204
        events = await stream.until("turn.ended")
        resolved = next(event for event in events if event["type"] == "question.resolved")
        assert resolved["data"]["status"] == "rejected"
