"""Retention believes the clock only if that cannot erase everything by mistake."""

from __future__ import annotations

from sandbox_agent.server.recorder.retention import CONFIRM_SECONDS, TrustedClock

DAY = 24 * 60 * 60 * 1000
YEAR = 365 * DAY
NOW = 50 * YEAR


class Clocks:
    """The wall clock and the monotonic one of a machine."""

    def __init__(self) -> None:
        self.wall = NOW
        self.seconds = 1_000.0

    def trusted(self, newest_ms: int | None) -> TrustedClock:
        """Return a clock with a tolerance of 30 days."""
        return TrustedClock(newest_ms, 30 * DAY, wall_ms=lambda: self.wall, monotonic=lambda: self.seconds)

    def pass_by(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds
        self.wall += round(seconds * 1000)


def test_a_clock_that_follows_the_newest_event_is_believed() -> None:
    clocks = Clocks()
    for newest in (None, NOW, NOW - 29 * DAY, NOW + YEAR):
        assert clocks.trusted(newest).read_ms() == NOW


def test_a_clock_that_is_far_ahead_is_believed_after_an_hour() -> None:
    clocks = Clocks()
    clock = clocks.trusted(NOW - 10 * YEAR)
    assert clock.read_ms() is None
    clocks.pass_by(CONFIRM_SECONDS - 1)
    assert clock.read_ms() is None
    clocks.pass_by(1)
    assert clock.read_ms() == clocks.wall
    clocks.pass_by(40 * DAY / 1000)  # of uptime
    assert clock.read_ms() == clocks.wall


def test_a_clock_that_jumps_while_the_server_runs_is_not_believed() -> None:
    clocks = Clocks()
    clock = clocks.trusted(NOW)
    assert clock.read_ms() == NOW
    clocks.wall += 10 * YEAR
    assert clock.read_ms() is None
    clocks.pass_by(CONFIRM_SECONDS / 2)
    clocks.wall += YEAR  # it is not even stable
    assert clock.read_ms() is None
    clocks.pass_by(CONFIRM_SECONDS / 2)
    assert clock.read_ms() is None
    clocks.wall -= 11 * YEAR
    assert clock.read_ms() == clocks.wall  # it was set right again
