"""Runs the scenarios with an agent, and compares the results with what is known about it."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec

from sandbox_agent.agents.info import agent_info
from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.testing.agents.bed import AgentBed, open_bed, processes_of
from sandbox_agent.testing.agents.conversation import ROUTES, Route
from sandbox_agent.testing.agents.log import check_log
from sandbox_agent.testing.agents.profile import Outcome, Profile, profile_of
from sandbox_agent.testing.agents.scenarios import (
    SCENARIOS,
    MissingError,
    PartlyError,
    Run,
    Scenario,
)

# The longest scenario: an agent that starts four times on a loaded machine.
SCENARIO_SECONDS = 240.0
_FAILURES = (AssertionError, MissingError, PartlyError, SandboxAgentError, TimeoutError, ValueError)
# What holds after all scenarios, with the titles of their rows.
FINAL = {
    "log": "the server's log has no gaps, no open items and nothing unparsed",
    "processes": "no process of an ended agent is left after a scenario, and none when the server has ended",
}


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a scenario.

    Attributes:
        scenario: Its name.
        route: "sdk" or "sessions"; "server" for what holds for both.
        outcome: "ok", "partly", "none" (the agent has no such thing) or "failed".
        reason: Why it is not "ok".
        expected: Whether this is what is known about the agent.
        seconds: How long it took.
    """

    scenario: str
    route: str
    outcome: Outcome
    reason: str | None = None
    expected: bool = True
    seconds: float = 0.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The results of a check.

    Attributes:
        agent: The agent's id.
        version: Its version, if that is known.
        date: The day of the check.
        system: The operating system.
        results: The results.
    """

    agent: str
    version: str | None
    date: str
    system: str
    results: list[Result]

    @property
    def is_expected(self) -> bool:
        """Whether all results are those that are known about the agent."""
        return all(result.expected for result in self.results)


async def check_agent(
    agent: str,
    *,
    profile: Profile | None = None,
    command: Sequence[str] | None = None,
    only: Collection[str] = (),
    routes: Sequence[Route] = ROUTES,
    record: Path | None = None,
    patience: float = 1.0,
    on_result: Callable[[Result], None] = lambda _: None,
) -> Report:
    """Run the scenarios with an agent in a temporary folder.

    Args:
        agent: The agent's id.
        profile: What is known about it; None for the profile of this package.
        command: Its command; None for the one that is installed.
        only: The scenarios to run; empty for all.
        routes: What drives the sessions.
        record: A file for the agent's ACP traffic, or None.
        patience: Factor for the time that a cancelled turn may take, for a machine under load.
        on_result: Called with each result.

    Raises:
        AgentNotInstalledError: The agent is not installed.
        UnsupportedAgentError: No agent has this id.
    """
    profile = profile or profile_of(agent)
    version = agent_info(agent).version if command is None else None
    results: list[Result] = []

    def add(result: Result) -> None:
        results.append(result)
        on_result(result)

    chosen = [scenario for name, scenario in SCENARIOS.items() if not only or name in only]
    with tempfile.TemporaryDirectory(prefix="sandbox-agent-check-", ignore_cleanup_errors=True) as name:
        folder = Path(os.path.realpath(name))  # noqa: ASYNC240 - a moment
        async with open_bed(agent, profile, folder, command=command, record=record) as bed:
            for route in routes:
                async with anyio.create_task_group() as tasks:
                    run = Run(bed, route, tasks, patience)
                    for scenario in chosen:
                        add(await _run(run, scenario))
                    await run.close()
                    tasks.cancel_scope.cancel()
            if not only or "log" in only:
                add(_judge(profile, "log", "server", await _log_failure(bed), 0.0))
        if (not only or "processes" in only) and sys.platform == "linux":
            left = processes_of(folder / "home")
            failure = AssertionError(f"still running: {', '.join(left.values())}") if left else None
            add(_judge(profile, "processes", "server", failure, 0.0))
    today = datetime.now(UTC).date().isoformat()
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return Report(agent=agent, version=version, date=today, system=system, results=results)


async def _run(run: Run, scenario: Scenario) -> Result:
    started = time.monotonic()
    failure: Exception | None = None
    try:
        with anyio.fail_after(SCENARIO_SECONDS):
            await scenario.run(run)
            strays = await run.bed.strays()
            assert not strays, f"processes of agents that have ended are left: {', '.join(strays)}"
    except _FAILURES as error:
        failure = error
        # The next scenario must not find a turn that runs, or an agent that has died.
        with anyio.move_on_after(SCENARIO_SECONDS):
            await run.close()
    return _judge(run.bed.profile, scenario.name, run.route, failure, time.monotonic() - started)


async def _log_failure(bed: AgentBed) -> Exception | None:
    try:
        await check_log(bed.sdk)
    except AssertionError as error:
        return error
    return None


def _judge(profile: Profile, scenario: str, route: str, failure: Exception | None, seconds: float) -> Result:
    """Return the result: what was seen, or what is known if that fits."""
    seen: Outcome = "failed"
    if failure is None:
        seen = "ok"
    elif isinstance(failure, MissingError):
        seen = "none"
    elif isinstance(failure, PartlyError):
        seen = "partly"
    # pytest adds lines to an assertion.
    text = None if failure is None else str(failure).partition("\n")[0] or "it did not end in time"
    deviation = profile.deviation(route, scenario)
    outcome, reason, expected = seen, text, seen == "ok"
    if deviation is not None:
        expected = text is not None and deviation.seen in text
        if expected:
            outcome, reason = deviation.outcome, deviation.reason
        elif seen == "ok":
            reason = f"this works now, but was expected not to: {deviation.reason}"
    return Result(
        scenario=scenario,
        route=route,
        outcome=outcome,
        reason=reason,
        expected=expected,
        seconds=round(seconds, 2),
    )
