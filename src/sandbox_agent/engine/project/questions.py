"""Recognizes and reads questions to the user among an agent's requests.

ACP's own method is ``elicitation/create``. Older agents use extension methods (``cursor/ask_question``,
``_x/ask_user_question``), which are recognized if they contain a question.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from sandbox_agent.engine.project.content import to_json
from sandbox_agent.wire.members import elements, members

_METHODS = {"elicitation/create", "session/elicitation"}


class Question(NamedTuple):
    """The text of a question, and the offered answers."""

    prompt: str
    options: list[str]


def read_question(method: str, params: dict[str, Any]) -> Question | None:
    """Return the question in a request, or None if there is none."""
    if method in _METHODS:
        schema = members(params.get("requestedSchema"))
        return Question(_first(params, "message"), _schema_options(members(schema.get("properties"))))
    if "question" not in method.rpartition("/")[2].lower():
        return None
    nested = [members(item) for item in elements(params.get("questions"))]
    parts = [params, *nested]
    prompts = [prompt for part in parts if (prompt := _first(part, "prompt", "question", "message", "title"))]
    if not prompts:
        return None
    options = [_label(option) for part in parts for option in elements(part.get("options"))]
    return Question("\n".join(dict.fromkeys(prompts)), [option for option in options if option])


def read_answer(result: object) -> str | None:
    """Return the answer in the result of a response as text, or None if the user gave none."""
    given = members(result)
    outcome: Any = given.get("outcome")
    verdict = _first(given, "action") or (
        outcome if isinstance(outcome, str) else _first(members(outcome), "outcome")
    )
    if verdict in {"decline", "cancel", "cancelled", "skipped", "rejected"} or not given:
        return None
    content: Any = next(
        (part[name] for part in (given, members(outcome)) for name in ("content", "answers") if name in part),
        result,
    )
    if isinstance(content, dict):
        values = list(cast("dict[str, Any]", content).values())
        if len(values) == 1 and isinstance(values[0], str):
            return values[0]
    return content if isinstance(content, str) else to_json(content)


def _schema_options(properties: dict[str, Any]) -> list[str]:
    options: list[str] = []
    for value in properties.values():
        field = members(value)
        items = members(field.get("items"))
        if field.get("type") == "boolean":
            options += ["true", "false"]
        for source in (field, items):
            options += [str(name) for name in elements(source.get("enum"))]
            choices = [*elements(source.get("oneOf")), *elements(source.get("anyOf"))]
            options += [label for choice in choices if (label := _label(choice))]
    return options


def _label(option: object) -> str:
    if isinstance(option, str):
        return option
    return _first(members(option), "label", "title", "name", "const", "id")


def _first(given: dict[str, Any], *names: str) -> str:
    for name in names:
        value: Any = given.get(name)
        if isinstance(value, str) and value:
            return value
    return ""
