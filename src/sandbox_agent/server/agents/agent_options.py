"""Modes and models from an agent's config options, in the form that clients of 0.1 read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sandbox_agent.engine.config_options import find_category
from sandbox_agent.wire.jsonrpc import elements, members
from sandbox_agent.wire.sessions import (
    AgentModeInfo,
    AgentModelInfo,
    AgentModelsResponse,
    AgentModesResponse,
)


def modes_of(options: Sequence[dict[str, Any]]) -> AgentModesResponse:
    """Return the modes that an agent's options offer."""
    return AgentModesResponse(
        modes=[
            AgentModeInfo(
                id=str(choice["value"]),
                name=str(choice.get("name") or choice["value"]),
                description=str(choice.get("description") or ""),
            )
            for choice in _choices(find_category(options, "mode"))
        ]
    )


def models_of(options: Sequence[dict[str, Any]]) -> AgentModelsResponse:
    """Return the models that an agent's options offer. Its thought levels are the variants of each model."""
    model = find_category(options, "model")
    level = find_category(options, "thought_level")
    variants = [str(choice["value"]) for choice in _choices(level)] or None
    return AgentModelsResponse(
        models=[
            AgentModelInfo(
                id=str(choice["value"]),
                name=str(choice["name"]) if choice.get("name") else None,
                variants=variants,
                default_variant=_current(level) if variants else None,
            )
            for choice in _choices(model)
        ],
        default_model=_current(model),
    )


def _choices(option: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the choices of a select option, those in groups included."""
    found: list[dict[str, Any]] = []
    for entry in elements(members(option).get("options")):
        choice = members(entry)
        found += [members(each) for each in elements(choice.get("options"))] or [choice]
    return [choice for choice in found if isinstance(choice.get("value"), str)]


def _current(option: dict[str, Any] | None) -> str | None:
    value: object = members(option).get("currentValue")
    return value if isinstance(value, str) else None
