"""The faults that ``make test-soak`` puts between the client tests and their servers."""

from __future__ import annotations

import asyncio
import time
from typing import Final
from zlib import crc32

from tests.client.gateway import Faults
from tests.support.effort import SOAK

__all__ = ["LONGEST_FAULT", "scheduled_faults"]

IDLE: Final = 1.0
CUT_EVERY: Final = 2.0
PREFIX: Final = "/behind/a/gateway"
SLEEP: Final = 3.0
BLACK_HOLE: Final = 30.0
# What a fault adds to a test: a swallowed request is sent again when its timeout is over.
LONGEST_FAULT: Final = 2 * BLACK_HOLE
# One test of so many has the fault: the group has to end in minutes.
SLEEP_IN: Final = 3
BLACK_HOLE_IN: Final = 20


def scheduled_faults(test: str) -> Faults:
    """Return the faults for a test: all of the continuous ones, and those that its name stands for.

    A name always has the same faults with the same SOAK, so that a failure is reproducible. All connections
    are cut off every 2 s, for the first time within the first second. 503 for 3 s begins when the first or
    second prompt arrives, before it is forwarded. A black hole of 30 s begins when a prompt arrives, or after
    the server has received it.
    """
    choice, which = divmod(crc32(f"{test} {SOAK}".encode()), 2)
    # Most tests end within a second.
    first_cut = CUT_EVERY * (1 + choice % 8) / 16
    sleeps_at = 1 + which if choice % SLEEP_IN == 0 else 0
    hole_is_late = bool(which)
    has_hole = choice % BLACK_HOLE_IN == 1
    prompts = 0
    asleep_until = 0.0

    def open_hole() -> None:
        faults.black_hole = hole = asyncio.Event()
        asyncio.get_running_loop().call_later(BLACK_HOLE, hole.set)

    def on_request(line: str, body: bytes) -> None:
        nonlocal prompts, asleep_until
        if is_prompt(line, body):
            prompts += 1
            if prompts == sleeps_at:
                asleep_until = time.monotonic() + SLEEP
            if prompts == 1 and has_hole and not hole_is_late:
                open_hole()

    def answer(_line: str) -> tuple[int, dict[str, str]] | None:
        return (503, {}) if time.monotonic() < asleep_until else None

    def swallow(line: str, body: bytes) -> bool:
        if has_hole and hole_is_late and faults.black_hole is None and is_prompt(line, body):
            open_hole()
        return False

    faults = Faults(
        idle=IDLE,
        cut_every=CUT_EVERY,
        first_cut=first_cut,
        prefix=PREFIX,
        answer=answer,
        swallow=swallow,
        on_request=on_request,
    )
    return faults


def is_prompt(line: str, body: bytes) -> bool:
    """Return whether a request starts a turn, of an ACP session or of a session of the server."""
    method, path, _ = line.split(" ")
    return method == "POST" and (b'"session/prompt"' in body or "/messages" in path)
