"""Find and change config options and modes in the shape of ACP. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

Option = dict[str, Any]
Options = list[Option]

# Where an option holds what this project adds to it.
_MEMBER = "sandbox-agent"


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


def options_of(result: Mapping[str, Any]) -> Options | None:
    """Return the options in the result that opens a session, or None if it has none.

    ``modes`` and ``models``, which older agents report instead, become options of these categories. Such an
    option names the method that sets it, because no option of that id exists for the agent.
    """
    options = valid_options(result.get("configOptions"))
    found = options or []
    models = result.get("models")
    if find_category(found, "model") is None and isinstance(models, dict):
        listed = cast("Option", models)
        found = [*found, *_listed("model", "session/set_model", listed, "availableModels", "modelId")]
    modes = result.get("modes")
    if find_category(found, "mode") is None and isinstance(modes, dict):
        listed = cast("Option", modes)
        found = [*found, *_listed("mode", "session/set_mode", listed, "availableModes", "id")]
    return found or options


def _listed(category: str, method: str, listed: Option, member: str, key: str) -> Options:
    available = listed.get(member)
    entries = cast("list[object]", available) if isinstance(available, list) else []
    choices = [cast("Option", entry) for entry in entries if isinstance(entry, dict)]
    choices = [choice for choice in choices if isinstance(choice.get(key), str)]
    current = listed.get("currentModeId" if category == "mode" else "currentModelId")
    if not choices:
        return []
    return [
        {
            "id": category,
            "name": category.capitalize(),
            "category": category,
            "type": "select",
            "currentValue": current,
            "options": [
                {
                    "value": choice[key],
                    "name": choice.get("name") or choice[key],
                    "description": choice.get("description"),
                }
                for choice in choices
            ],
            "_meta": {_MEMBER: {"method": method}},
        }
    ]


def setter_of(option: Mapping[str, Any]) -> str:
    """Return the method that sets the option."""
    meta = option.get("_meta")
    own = cast("Option", meta).get(_MEMBER) if isinstance(meta, dict) else None
    method = cast("Option", own).get("method") if isinstance(own, dict) else None
    return method if method in ("session/set_mode", "session/set_model") else "session/set_config_option"


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


def accepted_value(option: Mapping[str, Any], value: object) -> object:
    """Return the value as the option takes it: a boolean for "true" or "false" of a boolean option."""
    if option.get("type") == "boolean" and value in ("true", "false"):
        return value == "true"
    return value


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
