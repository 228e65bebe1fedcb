"""Counters and histograms of this process, and their exposition as Prometheus text (version 0.0.4).

What can be read when it is requested, such as the agents that run, is not counted here: see
``routes/metrics.py``. Labels have values from short lists, never names, paths or texts of users.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from typing import Literal, NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# A metric has at most so many series, whatever its labels are; more are counted together.
MAX_SERIES = 2000
OTHER = "other"

Labels = tuple[str, ...]
Kind = Literal["counter", "gauge", "histogram"]


class Sample(NamedTuple):
    """One line: a suffix of the metric's name, the labels, and the value."""

    suffix: str
    labels: Mapping[str, str]
    value: float


class Family(NamedTuple):
    """A metric with its samples."""

    name: str
    kind: Kind
    help: str
    samples: Sequence[Sample]


def gauge(name: str, help_text: str, value: float | Mapping[Labels, float], *labels: str) -> Family:
    """Return a gauge: one value, or one for each combination of the labels."""
    return _family(name, "gauge", help_text, value, labels)


def counter(name: str, help_text: str, value: float | Mapping[Labels, float], *labels: str) -> Family:
    """Return a counter that is kept elsewhere; its name ends in ``_total``."""
    return _family(name, "counter", help_text, value, labels)


def _family(
    name: str, kind: Kind, help_text: str, value: float | Mapping[Labels, float], labels: Labels
) -> Family:
    values = value if isinstance(value, Mapping) else {(): value}
    samples = [
        Sample("", dict(zip(labels, given, strict=True)), each) for given, each in sorted(values.items())
    ]
    return Family(name, kind, help_text, samples)


class Counter:
    """A number that only grows, for each combination of its labels; one without labels begins with 0."""

    def __init__(self, name: str, help_text: str, *labels: str) -> None:
        self.name = name
        self._help = help_text
        self._labels = labels
        self._values: dict[Labels, float] = {} if labels else {(): 0.0}

    def add(self, *labels: str, amount: float = 1.0) -> None:
        """Add to the number with these values of the labels."""
        values = self._values
        if labels not in values and len(values) >= MAX_SERIES:
            labels = (OTHER,) * len(labels)
        values[labels] = values.get(labels, 0.0) + amount

    def collect(self) -> Family:
        """Return the metric as it is now."""
        return counter(self.name, self._help, self._values, *self._labels)


class Held:
    """How many of something there are now, for each combination of the labels."""

    def __init__(self, name: str, help_text: str, *labels: str) -> None:
        self.name = name
        self._help = help_text
        self._labels = labels
        self._values: dict[Labels, float] = {}

    @contextmanager
    def held(self, *labels: str) -> Generator[None]:
        """Count one more while the context lasts."""
        self._values[labels] = self._values.get(labels, 0.0) + 1
        try:
            yield
        finally:
            self._values[labels] -= 1

    def collect(self) -> Family:
        """Return the metric as it is now."""
        return gauge(self.name, self._help, self._values, *self._labels)


class Histogram:
    """How often a number of seconds was at most each of its bounds, for each combination of its labels."""

    def __init__(self, name: str, help_text: str, bounds: Sequence[float], *labels: str) -> None:
        self.name = name
        self._help = help_text
        self._bounds = tuple(bounds)
        self._labels = labels
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}
        if not labels:
            self._add(())

    def _add(self, labels: Labels) -> list[int]:
        self._sums.setdefault(labels, 0.0)
        return self._counts.setdefault(labels, [0] * (len(self._bounds) + 1))

    def observe(self, seconds: float, *labels: str) -> None:
        """Count a number with these values of the labels."""
        counts = self._counts.get(labels)
        if counts is None:
            if len(self._counts) >= MAX_SERIES // len(self._bounds):
                labels = (OTHER,) * len(labels)
            counts = self._add(labels)
        counts[bisect_left(self._bounds, seconds)] += 1
        self._sums[labels] += seconds

    def collect(self) -> Family:
        """Return the metric as it is now."""
        bounds = [*(format_value(bound) for bound in self._bounds), "+Inf"]
        samples: list[Sample] = []
        for labels, counts in sorted(self._counts.items()):
            named = dict(zip(self._labels, labels, strict=True))
            sums = list(accumulate(counts))
            samples += [
                Sample("_bucket", {**named, "le": le}, count) for le, count in zip(bounds, sums, strict=True)
            ]
            samples += [Sample("_sum", named, self._sums[labels]), Sample("_count", named, sums[-1])]
        return Family(self.name, "histogram", self._help, samples)


def expose(families: Iterable[Family]) -> str:
    """Return metrics in Prometheus text format."""
    lines: list[str] = []
    for family in families:
        lines += [f"# HELP {family.name} {_escape(family.help)}", f"# TYPE {family.name} {family.kind}"]
        for suffix, labels, value in family.samples:
            shown = ",".join(f'{name}="{_escape_label(text)}"' for name, text in labels.items())
            shown = f"{{{shown}}}" if shown else ""
            lines.append(f"{family.name}{suffix}{shown} {format_value(value)}")
    return "\n".join([*lines, ""])


def format_value(value: float) -> str:
    """Return a number as Prometheus writes it: without a fraction if it has none."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(float(value))


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _escape_label(text: str) -> str:
    return _escape(text).replace('"', r"\"")


# A request may wait for an agent, a turn for a user.
_REQUEST_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120, 600)
_TURN_BOUNDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
_COMMIT_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2)

REQUESTS = Counter(
    "sandbox_agent_http_requests_total",
    "Requests, by the template of their path, method and status.",
    *("route", "method", "status"),
)
REQUEST_SECONDS = Histogram(
    "sandbox_agent_http_request_duration_seconds",
    "Time until the response begins.",
    _REQUEST_BOUNDS,
    *("route", "method"),
)
STREAMS = Held("sandbox_agent_streams_open", "Open event streams and WebSockets, by route.", "route", "type")
REFUSED = Counter(
    "sandbox_agent_http_refused_total",
    "Requests that were refused before they reached a route, by status: 401 no valid token, 403 and 421 "
    "another site's page or name, 408, 414 and 431 limits of a head, 503 limits of connections and requests.",
    "status",
)
REFUSED_CONNECTIONS = Counter(
    "sandbox_agent_http_refused_connections_total", "Connections beyond --max-connections."
)
GAPS = Counter(
    "sandbox_agent_stream_gaps_total",
    "Gap events sent to viewers whose next events were erased or dropped, by kind of the stream.",
    "stream",
)
RESETS = Counter(
    "sandbox_agent_stream_resets_total", "Reset events sent to viewers whose connection is a different one."
)
AGENT_STARTS = Counter("sandbox_agent_agent_starts_total", "Started agents.", "agent")
AGENT_START_FAILURES = Counter(
    "sandbox_agent_agent_start_failures_total", "Agents that could not be started.", "agent"
)
AGENT_EXITS = Counter(
    "sandbox_agent_agent_exits_total",
    "Ended agents: stopped by the server, killed for a limit, or exited by themselves.",
    *("agent", "reason"),
)
CRASH_LOOPS = Counter(
    "sandbox_agent_agent_crash_loops_total",
    "Refusals to start the agent of a session again because it ended by itself too often.",
    "agent",
)
TURNS = Counter("sandbox_agent_turns_total", "Ended turns, by their outcome.", "agent", "outcome")
TURN_SECONDS = Histogram(
    "sandbox_agent_turn_duration_seconds", "Time from a prompt to the end of its turn.", _TURN_BOUNDS, "agent"
)
TOKENS = Counter(
    "sandbox_agent_tokens_total", "Tokens of ended turns, as far as agents report them.", "agent", "type"
)
COST = Counter(
    "sandbox_agent_cost_total", "Cost of ended turns, as far as agents report it.", "agent", "currency"
)
EVENTS = Counter("sandbox_agent_events_stored_total", "Stored events of sessions.")
ENVELOPES = Counter("sandbox_agent_envelopes_stored_total", "Stored ACP messages of sessions.")
COMMIT_SECONDS = Histogram(
    "sandbox_agent_store_commit_duration_seconds", "Time of the store's commits that succeed.", _COMMIT_BOUNDS
)
COMMIT_FAILURES = Counter(
    "sandbox_agent_store_failures_total", "Failures of the store, and commits that took more than 2 seconds."
)
PROCESS_STARTS = Counter(
    "sandbox_agent_processes_started_total", "Started processes of /v1/processes, by how they began.", "kind"
)

COUNTED: tuple[Counter | Held | Histogram, ...] = (
    *(REQUESTS, REQUEST_SECONDS, STREAMS, REFUSED, REFUSED_CONNECTIONS, GAPS, RESETS),
    *(AGENT_STARTS, AGENT_START_FAILURES, AGENT_EXITS, CRASH_LOOPS, TURNS, TURN_SECONDS, TOKENS, COST),
    *(EVENTS, ENVELOPES, COMMIT_SECONDS, COMMIT_FAILURES, PROCESS_STARTS),
)


@lru_cache(1024)
def _status_label(status: int) -> str:
    return str(int(status))


def count_request(route: str, method: str, status: int, seconds: float) -> None:
    """Count a request whose response begins now."""
    REQUESTS.add(route, method, _status_label(status))
    REQUEST_SECONDS.observe(seconds, route, method)
