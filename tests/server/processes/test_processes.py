"""Processes are created, listed, given input, ended and deleted."""

from __future__ import annotations

import base64
import os
import signal
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from tests.server.processes.talk import Talk, output
from tests.support.servers import our_server

pytestmark = pytest.mark.anyio


def problem(answer: httpx2.Response) -> tuple[int, str]:
    """Return the status and the name of an error."""
    return answer.status_code, answer.json()["type"].rpartition(":")[2]


async def test_a_process_runs_prints_and_exits(talk: Talk, tmp_path: Path) -> None:
    created = await talk.shell(
        "pwd; echo $COLOR; echo wrong >&2; read line; echo $line; exit 3",
        cwd=str(tmp_path),
        env={"COLOR": "red"},
        interactive=True,
    )
    assert created["status"] == "running"
    assert (created["owner"], created["tty"], created["interactive"]) == ("user", False, True)
    assert created["cwd"] == str(tmp_path)
    os.kill(created["pid"], 0)  # it is there
    assert (await talk.input(created["id"], "hö\n")).json() == {"bytesWritten": 4}
    ended = await talk.ended(created["id"])
    assert (ended["status"], ended["exitCode"]) == ("exited", 3)
    assert "pid" not in ended
    assert ended["exitedAtMs"] >= ended["createdAtMs"]
    assert await talk.get(created["id"]) == ended
    logs = await talk.logs(created["id"])
    assert (logs["processId"], logs["stream"]) == (created["id"], "combined")
    assert [entry["sequence"] for entry in logs["entries"]] == [*range(1, len(logs["entries"]) + 1)]
    assert {entry["encoding"] for entry in logs["entries"]} == {"base64"}
    stdout, stderr = [
        (await talk.logs(created["id"], stream=name))["entries"] for name in ("stdout", "stderr")
    ]
    assert output(stdout) == f"{tmp_path}\nred\nhö\n".encode()
    assert output(stderr) == b"wrong\n"
    assert sorted(entry["sequence"] for entry in [*stdout, *stderr]) == [
        entry["sequence"] for entry in logs["entries"]
    ]


async def test_a_process_inherits_no_secret_of_the_server(tmp_path: Path) -> None:
    token = "a-token-that-is-long"
    env = {
        "SANDBOX_AGENT_TOKEN": token,
        "COPY_OF_IT": token,
        "PGPASSWORD": "p",
        "REDISCLI_AUTH": "r",
        "OTHER": "o",
    }
    with our_server(tmp_path, token=token, env=env) as server:
        async with Talk(server.url) as talk:
            talk.client.headers["authorization"] = f"Bearer {token}"
            printed = (await talk.run("env"))["stdout"]
            created = await talk.shell("env")
            await talk.ended(created["id"])
            logged = output((await talk.logs(created["id"]))["entries"]).decode()
    for text in (printed, logged):
        assert "OTHER=o" in text.splitlines()
        assert not [line for line in text.splitlines() if token in line or line.startswith(("PG", "REDIS"))]


async def test_the_newest_processes_are_listed_by_age_and_owner(talk: Talk) -> None:
    created = [(await talk.create("true"))["id"] for _ in range(12)]
    listed = (await talk.client.get("/v1/processes")).json()["processes"]
    assert [process["id"] for process in listed][-12:] == created
    numbers = [int(process_id.removeprefix("proc_")) for process_id in created]
    assert numbers == [*range(numbers[0], numbers[0] + 12)]
    for owner, count in (("user", len(listed)), ("desktop", 0), ("system", 0)):
        found = await talk.client.get("/v1/processes", params={"owner": owner})
        assert len(found.json()["processes"]) == count
    assert problem(await talk.client.get("/v1/processes", params={"owner": "me"})) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"command": ""}, "must not be empty"),
        ({"command": " "}, "must not be empty"),
        ({"command": "/no/such"}, "No such file"),
        ({"command": "/"}, "Permission denied"),
        ({"command": "no-such-command"}, "No such file"),
        ({"command": "tr\0ue"}, "NUL"),
        ({"command": "true", "args": ["\0"]}, "NUL"),
        ({"command": "true", "cwd": "/no/such"}, "working directory /no/such"),
        ({"command": "true", "env": {"A=B": "c"}}, "A=B"),
        ({"command": "true", "env": {"SANDBOX_AGENT_TOKEN": "c"}}, "the server's"),
        ({"args": []}, "command"),
    ],
)
@pytest.mark.parametrize("path", ["", "/run"])
async def test_a_command_that_cannot_start_is_an_error_that_says_why(
    talk: Talk, path: str, members: dict[str, Any], words: str
) -> None:
    answer = await talk.post(path, members)
    assert problem(answer) == (400, "invalid_request")
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(("what", "signum"), [("stop", signal.SIGTERM), ("kill", signal.SIGKILL)])
async def test_a_process_is_ended_by_a_signal(talk: Talk, what: str, signum: signal.Signals) -> None:
    created = await talk.create("sleep", "600")
    ended = await talk.signal(created["id"], what)
    assert (ended["status"], ended["exitSignal"]) == ("exited", signum)
    assert "exitCode" not in ended
    # again: nothing happens
    assert await talk.signal(created["id"], what) == ended


async def test_stop_returns_a_process_that_ignores_it_and_kill_ends_it(talk: Talk) -> None:
    created = await talk.shell("trap 'echo no' TERM; echo ready; while true; do sleep 0.05; done")
    await talk.printed(created["id"], "ready")
    assert (await talk.signal(created["id"], "stop", 1))["status"] == "running"
    await talk.printed(created["id"], "no")
    assert (await talk.signal(created["id"], "kill"))["status"] == "exited"


async def test_a_process_is_deleted_once_it_has_ended(talk: Talk) -> None:
    created = await talk.create("sleep", "600")
    path = f"/v1/processes/{created['id']}"
    assert problem(await talk.client.delete(path)) == (409, "conflict")
    await talk.signal(created["id"], "kill")
    assert (await talk.client.delete(path)).status_code == 204
    for answer in (
        await talk.client.delete(path),
        await talk.client.get(path),
        await talk.client.get(f"{path}/logs"),
        await talk.client.post(f"{path}/stop"),
        await talk.client.post(f"{path}/kill"),
        await talk.input(created["id"], "x"),
    ):
        assert problem(answer) == (404, "not_found")


async def test_input_is_text_or_base64(talk: Talk) -> None:
    created = await talk.create("cat")
    path = f"/{created['id']}/input"
    data = bytes(range(256))
    answer = await talk.post(path, {"data": base64.b64encode(data).decode()})
    assert answer.json() == {"bytesWritten": 256}
    for encoding in ("utf8", "text"):
        answer = await talk.post(path, {"data": "ö", "encoding": encoding})
        assert answer.json() == {"bytesWritten": 2}
    assert (await talk.post(path, {"data": "", "encoding": "base64"})).json() == {"bytesWritten": 0}
    await talk.post(path, {"data": "end", "encoding": "utf8"})
    await talk.printed(created["id"], "end")
    assert output((await talk.logs(created["id"]))["entries"]) == data + "öö".encode() + b"end"
    for members in ({"data": "!"}, {"data": "aGk=", "encoding": "hex"}, {"data": "aGk"}, {}):
        assert problem(await talk.post(path, members)) == (400, "invalid_request")
    most = (await talk.client.get("/v1/processes/config")).json()["maxInputBytesPerRequest"]
    answer = await talk.input(created["id"], "x" * (most + 1))
    assert problem(answer) == (413, "payload_too_large")
    assert "maxInputBytesPerRequest" in answer.json()["detail"]
    await talk.signal(created["id"], "kill")
    assert problem(await talk.input(created["id"], "x")) == (409, "conflict")


async def test_a_process_that_has_closed_its_input_gets_none(talk: Talk) -> None:
    created = await talk.shell("exec 0<&-; echo closed; sleep 600")
    await talk.printed(created["id"], "closed")
    assert problem(await talk.input(created["id"], "x")) == (409, "conflict")
    await talk.signal(created["id"], "kill")


async def test_input_that_is_not_read_waits_until_the_process_ends(talk: Talk) -> None:
    created = await talk.create("sleep", "600")
    await talk.configure(maxInputBytesPerRequest=1_000_000)
    answers: list[httpx2.Response] = []

    async def write() -> None:
        answers.append(await talk.input(created["id"], "x" * 900_000))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        assert (await talk.get(created["id"]))["status"] == "running"  # other requests are answered meanwhile
        await talk.signal(created["id"], "kill")
    assert problem(answers[0]) == (409, "conflict")


async def test_there_are_only_so_many_processes_at_a_time(talk: Talk) -> None:
    running = sum(
        process["status"] == "running"
        for process in (await talk.client.get("/v1/processes")).json()["processes"]
    )
    await talk.configure(maxConcurrentProcesses=running + 1)
    created = await talk.create("sleep", "600")
    answer = await talk.post("", {"command": "true"})
    assert problem(answer) == (409, "conflict")
    assert "maxConcurrentProcesses" in answer.json()["detail"]
    assert (await talk.run("echo one-shot"))["stdout"] == "one-shot\n"
    await talk.signal(created["id"], "kill")
    await talk.create("true")


async def test_limits_are_replaced_as_a_whole(talk: Talk) -> None:
    path = "/v1/processes/config"
    before = (await talk.client.get(path)).json()
    assert before == {
        "maxConcurrentProcesses": 64,
        "defaultRunTimeoutMs": 30_000,
        "maxRunTimeoutMs": 300_000,
        "maxOutputBytes": 1_048_576,
        "maxLogBytesPerProcess": 10_485_760,
        "maxInputBytesPerRequest": 65_536,
    }
    for name in before:
        assert problem(await talk.client.post(path, json={**before, name: 0})) == (400, "invalid_request")
        part = {other: value for other, value in before.items() if other != name}
        assert problem(await talk.client.post(path, json=part)) == (400, "invalid_request")
    assert (await talk.client.get(path)).json() == before
    changed = await talk.configure(maxRunTimeoutMs=1000, maxOutputBytes=5)
    assert changed == {**before, "maxRunTimeoutMs": 1000, "defaultRunTimeoutMs": 1000, "maxOutputBytes": 5}
    assert (await talk.client.get(path)).json() == changed


async def test_the_oldest_processes_that_have_ended_are_forgotten(talk: Talk) -> None:
    # Their logs may take 25 times what one may; 10 bytes each here.
    await talk.configure(maxLogBytesPerProcess=10)
    created = [(await talk.create("printf", "0123456789"))["id"] for _ in range(27)]
    for process_id in created[2:]:
        await talk.ended(process_id)
    for process_id in created[:2]:
        assert (await talk.client.get(f"/v1/processes/{process_id}")).status_code == 404
    assert (await talk.get(created[-1]))["status"] == "exited"
