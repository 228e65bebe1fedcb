"""Test kit: a scripted agent, a scripted model, and suites for drivers and providers."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandbox_agent.testing.scripted_agent import ScriptedAgent
    from sandbox_agent.testing.scripted_turn import PermissionOutcome, ScriptedTurn

__all__ = ["PermissionOutcome", "ScriptedAgent", "ScriptedTurn"]

_MODULES = {
    "PermissionOutcome": "scripted_turn",
    "ScriptedAgent": "scripted_agent",
    "ScriptedTurn": "scripted_turn",
}


def __getattr__(name: str) -> object:
    # Agent processes and drivers' suites import this package, and need none of it.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
