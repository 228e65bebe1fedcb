"""DELETE: within two seconds, whatever the agent does, and nothing of it left."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import anyio
import pytest

from tests.runtime.children import gone
from tests.server.talk import Talk, envelope, talk
from tests.server.test_death import agent_of
from tests.support.servers import ServerProcess, put_launcher

pytestmark = pytest.mark.anyio

DELETE_SECONDS = 2.0


async def test_delete_ends_a_deaf_agent_and_its_children_within_two_seconds(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking, talking.stream() as stream:
        await talking.prompt("spawn deaf")
        await talking.prompt("deaf")
        await stream.until('"id":4')
        child = int(stream.texts.split("process ")[1].split()[0])
        agent = agent_of(server)
        running = talking.start("permission")
        await stream.until("session/request_permission")
        begun = time.monotonic()
        response = await talking.delete()
        assert time.monotonic() - begun < DELETE_SECONDS
        assert response.status_code == 204
        assert response.content == b""
        assert gone([agent, child])
        assert (await running).status_code == 500
        await stream.rest()
        assert stream.events[-1].data.startswith(b'{"jsonrpc":"2.0","method":"_adapter/agent_exited"')


async def test_delete_ends_a_grandchild_in_a_session_of_its_own(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    script = (
        "import json, subprocess, sys\n"
        'code = "import signal, time; signal.signal(15, 1); time.sleep(600)"\n'
        'child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)\n'
        "for line in sys.stdin:\n"
        '    print(json.dumps({"id": json.loads(line)["id"], "result": child.pid}), flush=True)\n'
    )
    put_launcher(server.log.parent / "data", "parent", [sys.executable, "-c", script])
    async with talk(server, fresh(), open_=False) as talking:
        answer = await talking.request("initialize", {}, agent="parent")
        await talking.delete()
        assert gone([answer["result"]])


async def test_delete_is_idempotent_and_the_id_is_free_again(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking:
        for _ in range(3):
            assert (await talking.delete()).status_code == 204
        after = await talking.post(envelope("session/list", {}, 1))
        assert after.status_code == 400
        assert (await talking.client.get(talking.path)).status_code == 404
        await talking.open()
        await talking.prompt("echo again")


async def test_deletes_and_posts_at_once_leave_one_agent_or_none(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking:
        statuses: list[int] = []

        async def post(number: int) -> None:
            body = envelope("initialize", {"protocolVersion": 1}, number)
            statuses.append((await talking.post(body, agent="mock")).status_code)

        async def delete() -> None:
            statuses.append((await talking.delete()).status_code)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for number in range(12):
                    tasks.start_soon(post, number)
                    if number % 3 == 0:
                        tasks.start_soon(delete)
        # an agent that is deleted under its request has exited; nothing else may go wrong
        assert set(statuses) <= {200, 204, 500}
        assert statuses.count(204) == 4
        await talking.delete()
        listed = (await talking.client.get("/v1/acp")).json()["servers"]
        assert talking.path.rpartition("/")[2] not in [each["serverId"] for each in listed]


async def test_a_stopped_agent_is_killed_too(server: ServerProcess, fresh: Callable[[], str]) -> None:
    async with talk(server, fresh()) as talking:
        agent = agent_of(server)
        os.kill(agent, signal.SIGSTOP)
        begun = time.monotonic()
        await talking.delete()
        assert time.monotonic() - begun < DELETE_SECONDS
        assert gone([agent])


async def test_many_connections_are_deleted_at_once(server: ServerProcess, fresh: Callable[[], str]) -> None:
    async with talk(server, fresh()) as first:
        others = [Talk(first.client, fresh()) for _ in range(8)]
        async with anyio.create_task_group() as tasks:
            for other in others:
                tasks.start_soon(other.open)
        async with anyio.create_task_group() as tasks:
            for other in others:
                tasks.start_soon(other.prompt, "deaf")
        begun = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for other in others:
                tasks.start_soon(other.delete)
        # eight ladders side by side on a machine of two cores: twice the time of one
        assert time.monotonic() - begun < 2 * DELETE_SECONDS
