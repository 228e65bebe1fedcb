"""Commands that put load on the client or misbehave: floods, delays, crashes, invalid output."""

from __future__ import annotations

import os
import sys
import time

from sandbox_agent.agents.mock.peer import INVALID_PARAMS, RpcError, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox_agent.agents.mock.turn import Turn

    Command = Callable[[Turn, str], None]

# Bytes per write. A write blocks until it is in the pipe, and cancellation is checked between writes.
_BATCH_BYTES = 256 * 1024
# A spawned child exits by itself after this many seconds.
_LIFETIME = 600


def _parse_numbers(rest: str, usage: str, count: int) -> list[float]:
    words = rest.split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(0 <= number < float("inf") for number in numbers):
        raise RpcError(INVALID_PARAMS, f"Invalid params: expected the prompt `{usage}`")
    return numbers


def _burst(turn: Turn, rest: str) -> None:
    count, size = (int(number) for number in _parse_numbers(rest, "burst N SIZE", 2))
    before, after = turn.template()
    filler = b"x" * size
    batch = max(1, _BATCH_BYTES // (len(before) + len(after) + size))
    for start in range(1, count + 1, batch):
        turn.check()
        stop = min(start + batch, count + 1)
        heads = [b"%06d " % number for number in range(start, stop)]
        texts = [head + filler[len(head) :] for head in heads]
        turn.peer.write(before + (after + before).join(texts) + after)


def _stream(turn: Turn, rest: str) -> None:
    count, interval = _parse_numbers(rest, "stream N MS", 2)
    begin = time.monotonic()
    for number in range(1, int(count) + 1):
        turn.chunk(f"{number:06d} ")
        turn.sleep(max(0.0, begin + number * interval / 1000 - time.monotonic()))
    turn.keep_text(f"I streamed {int(count)} chunks.")


def _sleep(turn: Turn, rest: str) -> None:
    (seconds,) = _parse_numbers(rest, "sleep S", 1)
    turn.sleep(seconds)
    turn.say(f"I slept {seconds:g} s.")


def _stall(turn: Turn, _rest: str) -> None:
    turn.cancelled.wait()
    turn.check()


def _die(turn: Turn, rest: str) -> None:
    code = int(_parse_numbers(rest or "1", "die CODE", 1)[0])
    turn.chunk("I am about to die.")
    sys.stderr.write(f"mock: dying with code {code}, as the prompt asked\n")
    sys.stderr.flush()
    os._exit(code & 0xFF)


def _deaf(turn: Turn, _rest: str) -> None:
    turn.peer.deaf = True
    turn.say("I no longer listen to SIGTERM or the end of stdin.")


def _spawn(turn: Turn, rest: str) -> None:
    import subprocess

    # The child inherits stdout and stderr, so the pipes stay open after the agent exits.
    script = f"trap '' TERM; exec sleep {_LIFETIME}" if rest == "deaf" else f"exec sleep {_LIFETIME}"
    child = subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.DEVNULL)  # noqa: S603 - fixed
    turn.say(f"I started process {child.pid} in my process group.")


def _garbage(turn: Turn, _rest: str) -> None:
    before, after = turn.template()
    turn.peer.write(b"this line is not JSON\n")
    turn.peer.write(b'{"jsonrpc":"2.0","method":"session/update","params":{"unfinished":\n')
    turn.peer.write(b'{"jsonrpc":"2.0","method":"_mock/noise","params":{"text":"\xff\xfe\x80"}}\n')
    turn.peer.write(b"\n")
    turn.peer.write(before + b"CRLF " + after[:-1] + b"\r\n")
    half = len(before) // 2
    turn.peer.write_parts([before[:half], before[half:] + b"half ", after], turn.cancelled)
    turn.say("That was garbage.")


def _ask_extension(turn: Turn, _rest: str) -> None:
    question = {"question": "Which colour?", "options": ["red", "blue"]}
    (response,) = turn.ask("_mock/question", [question])
    if "error" in response:
        turn.say(f"The client refused: {encode(response['error']).decode()}")
    else:
        turn.say(f"The client answered: {encode(response.get('result')).decode()}")


FAULTS: dict[str, tuple[Command, str]] = {
    "burst": (_burst, "N SIZE: N chunks of SIZE bytes, numbered, as fast as they are read"),
    "stream": (_stream, "N MS: N chunks, one each MS milliseconds"),
    "sleep": (_sleep, "S: waits S seconds"),
    "stall": (_stall, "never answers; cancel it"),
    "die": (_die, "CODE: exits in the middle of the turn"),
    "deaf": (_deaf, "ignores SIGTERM and the end of stdin from now on"),
    "spawn": (_spawn, "[deaf] starts a child that outlives the agent; a deaf one ignores SIGTERM"),
    "garbage": (_garbage, "lines that are no JSON or no UTF-8, an empty one, CRLF, and one in two halves"),
    "ask-extension": (_ask_extension, "asks the client something that ACP doesn't know"),
}
