"""What an agent writes that is no envelope, too long, or slow to come: the connection goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import anyio
import pytest

from sandbox_agent.engine.ndjson import MAX_LINE_BYTES
from tests.server.talk import envelope, talk
from tests.support.servers import ServerProcess, our_server, put_launcher

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024


async def test_garbage_becomes_notifications_at_its_place_and_the_rest_comes_through(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking, talking.stream() as stream:
        await talking.prompt("garbage")
        await stream.until("end_turn")
        messages = [json.loads(event.data) for event in stream.events]
        invalid = [each["params"] for each in messages if each.get("method") == "_adapter/invalid_stdout"]
        assert [each["raw"] for each in invalid] == [
            "this line is not JSON",
            '{"jsonrpc":"2.0","method":"session/update","params":{"unfinished":',
            '{"jsonrpc":"2.0","method":"_mock/noise","params":{"text":"\ufffd\ufffd\ufffd"}}',
        ]
        assert all(each["error"] for each in invalid)
        assert stream.texts == "CRLF half That was garbage."
        assert stream.ids == list(range(1, len(stream.ids) + 1))


async def test_every_kind_of_bad_line_leaves_the_connection_alive(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    lines = [
        b'{"method":"\xff\xfe"}',
        b'{"id":"\xff","result":1}',
        b'{"\xc3":1}',
        b'{"method":7}',
        b'{"id":{},"method":"x"}',
        b'{"id":null,"method":"x"}',
        b'{"id":[],"result":1}',
        b'{"id":1e999,"result":1}',
        b'{"id":null,"error":{"code":1,"message":"?"}}',
        b"[1,2]",
        b"null",
        b"\0\0\0",
        b"[[[[",
        b'{"deep":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ]
    output = server.log.parent / "garbled"
    await anyio.Path(output).write_bytes(b"\n".join([*lines, b'{"id":1,"result":"fine"}', b""]))
    script = f'import sys\nsys.stdin.readline()\nsys.stdout.buffer.write(open("{output}", "rb").read())\n'
    script += "sys.stdout.flush()\nsys.stdin.read()\n"
    put_launcher(server.log.parent / "data", "garbled", [sys.executable, "-c", script])
    async with talk(server, fresh(), open_=False) as talking:
        response = await talking.post(envelope("initialize", {}, 1), agent="garbled")
        assert response.json() == {"id": 1, "result": "fine"}, response.text
        async with talking.stream() as stream:
            await stream.until('"fine"')
        assert len(stream.ids) == len(lines) + 1
        for event in stream.events:
            json.loads(event.data)


async def test_a_line_of_64_mib_comes_through_whole(tmp_path_factory: pytest.TempPathFactory) -> None:
    with our_server(tmp_path_factory.mktemp("long")) as server:
        async with talk(server) as talking:
            before = server.memory()
            line_overhead = 1000
            size = MAX_LINE_BYTES - line_overhead
            with anyio.fail_after(100):
                await talking.prompt(f"burst 1 {size}")
                received = 0
                async with talking.stream() as stream:
                    await stream.until("agent_message_chunk")
                received = len(stream.texts)
            assert received == size
            # read, encoded, on its way to a viewer; then recorded: its text, its delta, its completed item,
            # each as text, as JSON and on its way into SQLite
            assert server.memory() - before < 13 * MAX_LINE_BYTES


async def test_a_longer_line_is_told_of_and_costs_no_memory(tmp_path_factory: pytest.TempPathFactory) -> None:
    with our_server(tmp_path_factory.mktemp("longer")) as server:
        script = (
            "import os, sys\n"
            "sys.stdin.readline()\n"
            'for _ in range(300): os.write(1, b"x" * 1048576)\n'
            'os.write(1, b"\\n{\\"id\\":1,\\"result\\":2}\\n")\n'
            "sys.stdin.read()\n"
        )
        put_launcher(server.log.parent / "data", "endless", [sys.executable, "-c", script])
        async with talk(server, open_=False) as talking:
            before = server.memory()
            with anyio.fail_after(100):
                answer = await talking.request("initialize", {}, agent="endless")
            assert answer == {"id": 1, "result": 2}
            assert server.memory() - before < 3 * MAX_LINE_BYTES
            async with talking.stream() as stream:
                told = await stream.until("invalid_stdout")
            assert str(300 * MIB) in told["params"]["error"]
            assert set(told["params"]["raw"]) == {"x"}
            assert len(told["params"]["raw"]) <= MIB
