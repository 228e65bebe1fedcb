"""Checks of a real agent against a scripted model: the scenarios of ``sandbox-agent agents check``."""

from sandbox_agent.testing.agents.check import Report, Result, check_agent
from sandbox_agent.testing.agents.profile import Deviation, Profile, profile_of
from sandbox_agent.testing.agents.scenarios import SCENARIOS, Scenario

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
