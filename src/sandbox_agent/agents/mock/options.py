"""The mock agent's config options: modes, models and thought levels."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    JsonObject = dict[str, Any]

# The (value, name, description) of each choice, by config id.
_CHOICES: dict[str, list[tuple[str, str, str]]] = {
    "mode": [
        ("default", "Default", "Asks before it pretends to do something dangerous"),
        ("acceptEdits", "Accept Edits", "Pretends to edit without asking"),
        ("plan", "Plan Mode", "Plans and does nothing"),
    ],
    "model": [
        ("mock", "Mock", "Says what it is told to"),
        ("mock-fast", "Mock Fast", "The same, sooner"),
    ],
    "thought_level": [
        ("low", "Low", "Thinks little"),
        ("medium", "Medium", "Thinks"),
        ("high", "High", "Thinks a lot"),
    ],
}
_TITLES = {
    "mode": ("Mode", "Session permission mode"),
    "model": ("Model", "AI model to use"),
    "thought_level": ("Thought level", "How long the model thinks before it answers"),
}
DEFAULTS = {"mode": "default", "model": "mock", "thought_level": "medium"}


def values(config_id: str) -> list[str]:
    """Return the allowed values of an option, or an empty list if the option does not exist."""
    return [value for value, _, _ in _CHOICES.get(config_id, [])]


def config_options(current: dict[str, str]) -> list[JsonObject]:
    """Return ACP's ``configOptions``. Each id equals its category."""
    return [
        {
            "id": config_id,
            "name": _TITLES[config_id][0],
            "description": _TITLES[config_id][1],
            "category": config_id,
            "type": "select",
            "currentValue": current[config_id],
            "options": [
                {"value": value, "name": name, "description": description}
                for value, name, description in choices
            ],
        }
        for config_id, choices in _CHOICES.items()
    ]


def modes(current: dict[str, str]) -> JsonObject:
    """Return ACP's ``modes``."""
    return {
        "currentModeId": current["mode"],
        "availableModes": [
            {"id": value, "name": name, "description": description}
            for value, name, description in _CHOICES["mode"]
        ],
    }
