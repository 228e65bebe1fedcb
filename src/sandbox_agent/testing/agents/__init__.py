"""Checks of a real agent against a scripted model: the scenarios of ``sandbox-agent agents check``."""

from sandbox_agent.extras import require_server

require_server("sandbox_agent.testing.agents")

from sandbox_agent.testing.agents.check import Report, Result, check_agent  # noqa: E402 - the error names the extra
from sandbox_agent.testing.agents.profile import Deviation, Profile, profile_of  # noqa: E402 - the error names the extra
from sandbox_agent.testing.agents.scenarios import SCENARIOS, Scenario  # noqa: E402 - the error names the extra

__all__ = [
    "SCENARIOS",
    "Deviation",
    "Profile",
    "Report",
    "Result",
    "Scenario",
    "check_agent",
    "profile_of",
]
