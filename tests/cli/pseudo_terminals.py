"""The command on a pseudo-terminal, and what the terminal shows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

import pyte

from tests.cli.conftest import COMMAND, SECONDS, Shell

COLUMNS, LINES = 100, 120


def read_until(stream: int, wanted: bytes) -> bytes:
    """Read from a descriptor until it has said something."""
    said, deadline = b"", time.monotonic() + SECONDS
    while wanted not in said:
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(stream, 4096) if ready else b""
        assert piece, f"it never said {wanted!r}: {said!r}"
        said += piece
    return said


class Terminal:
    """The command on a pseudo-terminal."""

    def __init__(
        self, shell: Shell, *words: str, env: dict[str, str] | None = None, stdin: bytes | None = None
    ) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.child = subprocess.Popen(
            [*COMMAND, *words],
            cwd=shell.folder,
            env={**shell.env, "TERM": "xterm", **(env or {})},
            stdin=slave if stdin is None else subprocess.PIPE,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        if stdin is not None:
            assert self.child.stdin is not None
            self.child.stdin.write(stdin)
            self.child.stdin.close()

    def until(self, wanted: bytes) -> bytes:
        """Return what it wrote up to there."""
        return read_until(self.master, wanted)

    def type(self, text: bytes) -> None:
        """Type something."""
        os.write(self.master, text)

    def end(self) -> tuple[int, bytes]:
        """Return its exit code, and what it still wrote."""
        said = b""
        try:
            while piece := os.read(self.master, 4096):
                said += piece
        except OSError:
            pass  # Linux: the other side is closed
        os.close(self.master)
        return self.child.wait(SECONDS), said


def drawn(output: bytes) -> list[str]:
    """Return the lines that a terminal shows in the end."""
    screen = pyte.Screen(COLUMNS, 200)
    pyte.ByteStream(screen).feed(output)
    return [line.rstrip() for line in screen.display if line.strip()]


class Display(Terminal):
    """A program that draws on the whole terminal, or changes lines."""

    def __init__(self, shell: Shell, *words: str, env: dict[str, str] | None = None) -> None:
        super().__init__(shell, *words, env=env)
        self.screen = pyte.Screen(COLUMNS, LINES)
        # The answers to questions such as that for the position of the cursor.
        self.screen.write_process_input = self._answer
        self.stream = pyte.ByteStream(self.screen)
        self.written = b""

    def _answer(self, data: str) -> None:
        os.write(self.master, data.encode())

    def end(self) -> tuple[int, bytes]:
        """Return its exit code, and what it still wrote."""
        rest = b""
        with contextlib.suppress(OSError):  # Linux: the other side is closed
            while piece := os.read(self.master, 65536):
                rest += piece
                self.stream.feed(piece)
        os.close(self.master)
        self.written += rest
        return self.child.wait(SECONDS), rest

    def text(self) -> str:
        """Return what the terminal shows."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def shows(self, *wanted: str, gone: str | None = None) -> str:
        """Wait until the terminal shows all of it, and no longer what is gone."""
        deadline = time.monotonic() + SECONDS
        while True:
            text = self.text()
            if all(each in text for each in wanted) and (gone is None or gone not in text):
                return text
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            try:
                piece = os.read(self.master, 65536) if ready else b""
            except OSError:
                piece = b""
            assert piece, f"it never showed {wanted!r} without {gone!r}:\n{text}"
            self.written += piece
            self.stream.feed(piece)
