"""Runs an agent and records its ACP traffic.

``python -m sandbox_agent.testing.record FILE -- COMMAND [ARGUMENT]...``

The file gets one JSON object a line: ``t`` (seconds since the first line), ``dir`` ("c2a" from the
client to the agent, "a2c" from the agent to the client, "meta") and ``msg``, the message. A line that is not
JSON is a string. Several processes may write to one file. Values of variables whose names say that they are
secret, and what looks like a credential, are replaced by ``[redacted]``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from sandbox_agent.wire.jsonrpc import members

_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$", re.IGNORECASE)
_SECRET = re.compile(r"\b(?:sk|ghp|gho|xox[abp])[-_][A-Za-z0-9_-]{12,}|(?<=[Bb]earer )[\w.~+/-]{8,}=*")
_REDACTED = "[redacted]"
_SHORTEST = 8


class Recorder:
    """Appends messages to a file of recorded traffic."""

    def __init__(self, path: Path, environment: dict[str, str]) -> None:
        """Open the file.

        Args:
            path: The file, which is created for its owner only.
            environment: Variables whose secret values are redacted.
        """
        self._secrets = sorted(
            {
                json.dumps(value)[1:-1]
                for name, value in environment.items()
                if _SECRET_NAME.search(name) and len(value) >= _SHORTEST
            },
            key=len,
            reverse=True,
        )
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        self._start = _start_of(path)

    def write(self, direction: str, message: object) -> None:
        """Append one message."""
        now = time.time()
        with self._lock:
            if self._start is None:
                self._start = now
                self._append({"t": 0.0, "dir": "meta", "msg": {"started": round(now, 3)}})
            self._append({"t": round(now - self._start, 3), "dir": direction, "msg": message})

    def _append(self, line: dict[str, Any]) -> None:
        text = json.dumps(line)
        for secret in self._secrets:
            text = text.replace(secret, _REDACTED)
        os.write(self._file, f"{_SECRET.sub(_REDACTED, text)}\n".encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _start_of(path: Path) -> float | None:
    with path.open(encoding="utf-8") as file:
        first = _parsed(file.readline().encode())
    started = members(members(first).get("msg")).get("started")
    return started if isinstance(started, float) else None


def _pump(source: IO[bytes], target: IO[bytes], recorder: Recorder, direction: str) -> None:
    """Copy lines until the source or the target is closed."""
    try:
        with contextlib.suppress(BrokenPipeError, ValueError):
            while line := source.readline():
                target.write(line)
                target.flush()
                recorder.write(direction, _parsed(line))
    finally:
        with contextlib.suppress(BrokenPipeError):
            target.close()


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line.decode("utf-8", "replace").rstrip("\n")


def main(arguments: list[str]) -> int:
    """Run the command of the arguments, and return its exit code."""
    file, command = arguments[:1], arguments[2:]
    if arguments[1:2] != ["--"] or not command:
        sys.stderr.write("usage: python -m sandbox_agent.testing.record FILE -- COMMAND...\n")
        return 2
    recorder = Recorder(Path(file[0]), dict(os.environ))
    recorder.write("meta", {"cmd": command, "cwd": os.getcwd()})  # noqa: PTH109 - as the system has it
    try:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
    except OSError as error:
        sys.stderr.write(f"{command[0]} can't be started: {error.strerror}\n")
        return 127
    assert child.stdin is not None
    assert child.stdout is not None
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda number, _: child.send_signal(number))
    # It reads until the client closes its end, which may be after the agent has ended.
    threading.Thread(target=_pump, args=(sys.stdin.buffer, child.stdin, recorder, "c2a"), daemon=True).start()
    _pump(child.stdout, sys.stdout.buffer, recorder, "a2c")
    child.stdout.close()  # an agent that still writes must not wait
    code = child.wait()
    recorder.write("meta", {"exit": code})
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    # Without the cleanup of the interpreter, which would wait for the thread that reads standard input.
    os._exit(main(sys.argv[1:]))
