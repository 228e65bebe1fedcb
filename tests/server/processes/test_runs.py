"""One-shot commands: their output, their timeout, and what they leave."""

from __future__ import annotations

import os
import signal

import anyio
import pytest

from tests.server.processes.talk import Talk

pytestmark = pytest.mark.anyio


async def test_a_command_runs_to_its_end(talk: Talk) -> None:
    answer = await talk.run("echo out; echo wrong >&2; echo $COLOR; exit 3", env={"COLOR": "red"}, cwd="/")
    assert answer.pop("durationMs") >= 0
    assert answer == {
        "exitCode": 3,
        "timedOut": False,
        "stdout": "out\nred\n",
        "stderr": "wrong\n",
        "stdoutTruncated": False,
        "stderrTruncated": False,
    }
    assert (await talk.run("pwd", cwd="/"))["stdout"] == "/\n"
    assert (await talk.run("cat"))["stdout"] == ""  # it has no input
    assert (await talk.run("kill -9 $$"))["exitSignal"] == signal.SIGKILL


async def test_output_beyond_the_limit_is_read_and_left_out(talk: Talk) -> None:
    answer = await talk.run("head -c 3000000 /dev/zero; printf end >&2", maxOutputBytes=100)
    assert (len(answer["stdout"]), answer["stdoutTruncated"]) == (100, True)
    assert (answer["stderr"], answer["stderrTruncated"]) == ("end", False)
    exact = await talk.run("printf 12345", maxOutputBytes=5)
    assert (exact["stdout"], exact["stdoutTruncated"]) == ("12345", False)
    none = await talk.run("printf 12345", maxOutputBytes=0)
    assert (none["stdout"], none["stdoutTruncated"]) == ("", True)
    await talk.configure(maxOutputBytes=2)
    assert (await talk.run("printf 12345", maxOutputBytes=4))["stdout"] == "12"
    assert (await talk.run("printf 12345"))["stdout"] == "12"


async def test_output_that_is_not_utf_8_is_replaced(talk: Talk) -> None:
    assert (await talk.run(r"printf '\377a\303'"))["stdout"] == "\ufffda\ufffd"


async def test_a_command_has_a_timeout(talk: Talk) -> None:
    answer = await talk.run("echo begun; exec sleep 600", timeoutMs=300)
    assert (answer["timedOut"], answer["exitCode"], answer["stdout"]) == (True, None, "begun\n")
    assert answer["durationMs"] >= 300
    await talk.configure(defaultRunTimeoutMs=300)
    assert (await talk.run("exec sleep 600"))["timedOut"]
    assert (await talk.run("exec sleep 600", timeoutMs=0))["timedOut"]
    await talk.configure(maxRunTimeoutMs=300)
    assert (await talk.run("exec sleep 600", timeoutMs=600_000))["timedOut"]


async def test_what_a_command_leaves_in_the_background_goes_on_and_can_write(talk: Talk) -> None:
    """It holds the pipes of the command, which are read to their end, and thrown away."""
    script = "( trap 'exit 0' USR1; while true; do echo more; sleep 0.05; done ) & echo $!"
    answer = await talk.run(script)
    pid = int(answer["stdout"].split()[0])
    flood = await talk.run("(head -c 3000000 /dev/zero; echo $? >&2; exec sleep 600) & echo $!")
    left = int(flood["stdout"].split("\0")[-1] or flood["stdout"].strip("\0"))
    with anyio.fail_after(30):
        # The flood ends, although nothing waits for its output: its shell then is the program sleep.
        while (await talk.run(f"cat /proc/{left}/comm"))["stdout"] != "sleep\n":
            pass
    os.kill(pid, 0)
    os.kill(pid, signal.SIGUSR1)
    os.kill(left, signal.SIGTERM)


async def test_many_commands_run_at_a_time(talk: Talk) -> None:
    found: list[str] = []

    async def run(number: int) -> None:
        found.append((await talk.run(f"echo {number}"))["stdout"])

    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(run, number)
    assert sorted(found, key=int) == [f"{number}\n" for number in range(100)]


@pytest.mark.parametrize("member", ["command", "cwd"])
async def test_a_name_that_is_longer_than_a_message_is_no_fault_of_the_server(
    talk: Talk, member: str
) -> None:
    body = {"command": "true", member: "/" + "\u00fc" * 3_000}
    answer = await talk.post("/run", body)
    assert answer.status_code == 400
    assert (await talk.run("echo on"))["stdout"] == "on\n"
