"""Find and change config options and modes in the shape of ACP. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

Option = dict[str, Any]
Options = list[Option]


def valid_options(value: object) -> Options | None:
    """Return the options that are well formed, or None if the value is not a list."""
    if not isinstance(value, list):
        return None
    return [
        cast("Option", item)
        for item in cast("list[object]", value)
        if isinstance(item, dict)
        and all(isinstance(cast("Option", item).get(name), str) for name in ("id", "name", "type"))
    ]


def find_category(options: Sequence[Option], category: str) -> Option | None:
    """Return the first option of the category, or None."""
    return next((option for option in options if option.get("category") == category), None)


def find_option(options: Sequence[Option] | None, config_id: str | None) -> Option | None:
    """Return the option of that id, or None."""
    return next((option for option in options or () if option.get("id") == config_id), None)


def _choices(entries: object) -> list[Option]:
    found: list[Option] = []
    if not isinstance(entries, list):
        return found
    for entry in cast("list[object]", entries):
        if not isinstance(entry, dict):
            continue
        choice = cast("Option", entry)
        if isinstance(choice.get("value"), str):
            found.append(choice)
        else:
            found += _choices(choice.get("options"))
    return found


def allowed_values(option: Mapping[str, Any]) -> list[str]:
    """Return the values of a select option, groups included; empty if any value is allowed."""
    if option.get("type") != "select":
        return []
    return list(dict.fromkeys(str(choice["value"]) for choice in _choices(option.get("options"))))


def current_value(options: Sequence[Option] | None, category: str) -> str | None:
    """Return the current value of the category's option, or None."""
    option = find_category(options or [], category)
    value: object = option.get("currentValue") if option else None
    return value if isinstance(value, str) and value else None


def with_value(options: Options | None, config_id: str, value: object) -> Options | None:
    """Return the options with one current value changed, or None if there are none."""
    if options is None:
        return None
    return [
        {**option, "currentValue": value} if option.get("id") == config_id else option for option in options
    ]


def with_mode_option(options: Options | None, mode_id: str) -> Options | None:
    """Return the options with the mode option's current value changed."""
    option = find_category(options or [], "mode")
    return options if option is None else with_value(options, str(option["id"]), mode_id)


def with_current_mode(modes: Mapping[str, Any] | None, mode_id: str) -> dict[str, Any]:
    """Return the modes with another current one."""
    base: dict[str, Any] = {"availableModes": []}
    if modes and isinstance(modes.get("availableModes"), list):
        base = dict(modes)
    return {**base, "currentModeId": mode_id}


def modes_from_options(options: Sequence[Option] | None) -> dict[str, Any] | None:
    """Return modes in the shape of session/new, made from the mode option, or None if there is none."""
    option = find_category(options or [], "mode")
    if option is None or option.get("type") != "select" or not isinstance(option.get("options"), list):
        return None
    available = [
        {
            "id": choice["value"],
            "name": choice.get("name") or choice["value"],
            "description": choice.get("description"),
        }
        for choice in _choices(option["options"])
    ]
    current: object = option.get("currentValue")
    first = available[0]["id"] if available else ""
    return {
        "currentModeId": current if isinstance(current, str) and current else first,
        "availableModes": available,
    }


def setting(options: Sequence[Option] | None, modes: Mapping[str, Any] | None, category: str) -> str | None:
    """Return the current value of a category, or None if it is unknown."""
    value = current_value(options, category)
    if value is None and category == "mode":
        current: object = (modes or {}).get("currentModeId")
        return current if isinstance(current, str) and current else None
    return value
