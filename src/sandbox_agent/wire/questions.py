"""Questions of agents: what they ask, and the answers that they offer.

ACP's method for questions is ``elicitation/create``: a form with a schema for each field. Older agents use
extension methods (``cursor/ask_question``, ``_x/ask_user_question``), which are recognized if they contain a
question.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from sandbox_agent.wire.jsonrpc import elements, members
from sandbox_agent.wire.serial import Serializable

# ACP's elicitations, which have a schema for the answer.
ELICITATIONS = frozenset({"elicitation/create", "session/elicitation"})


class Question(NamedTuple):
    """The text of a question, and the offered answers."""

    prompt: str
    options: list[str]


def read_question(method: str, params: dict[str, Any]) -> Question | None:
    """Return the question in a request, or None if there is none."""
    if method in ELICITATIONS:
        schema = members(params.get("requestedSchema"))
        return Question(first_text(params, "message"), _schema_options(members(schema.get("properties"))))
    if "question" not in method.rpartition("/")[2].lower():
        return None
    nested = [members(item) for item in elements(params.get("questions"))]
    parts = [params, *nested]
    prompts = [
        prompt for part in parts if (prompt := first_text(part, "prompt", "question", "message", "title"))
    ]
    if not prompts:
        return None
    options = [label_of(option) for part in parts for option in elements(part.get("options"))]
    return Question("\n".join(dict.fromkeys(prompts)), [option for option in options if option])


FieldKind = Literal["text", "choice", "multi_choice", "boolean", "integer", "number"]


class QuestionOption(Serializable, msgspec.Struct, frozen=True, rename="camel"):
    """An answer that a question offers.

    Attributes:
        value: what an answer contains.
        label: its text for people.
        description: more about it, or "".
    """

    value: str
    label: str
    description: str = ""


class QuestionField(Serializable, msgspec.Struct, frozen=True, rename="camel"):
    """One part of a question: a field of ACP's form, or one of the questions of an extension.

    Attributes:
        name: its key in ``answers`` by name.
        title: its text for people.
        description: more about it, or "".
        kind: "text" is free text; "choice" is one of the options, "multi_choice" any number of them.
        options: the options of a choice, and "true" and "false" of a "boolean".
        required: whether the agent needs an answer.
        default: the answer that the agent suggests, in ACP's shape, or None.
    """

    name: str
    title: str
    description: str
    kind: FieldKind
    options: list[QuestionOption]
    required: bool
    default: Any = None


def read_fields(method: str, params: Mapping[str, Any]) -> list[QuestionField]:
    """Return the parts of a question, in the order of their answers."""
    if method not in ELICITATIONS:
        parts = [members(item) for item in elements(params.get("questions"))] or [dict(params)]
        return [_extension_field(part, number) for number, part in enumerate(parts)]
    schema = members(params.get("requestedSchema"))
    required = elements(schema.get("required"))
    properties = members(schema.get("properties"))
    return [_form_field(name, members(each), name in required) for name, each in properties.items()]


def _form_field(name: str, schema: Mapping[str, Any], required: bool) -> QuestionField:
    is_list = schema.get("type") == "array"
    source = members(schema.get("items")) if is_list else schema
    choices = [*elements(source.get("oneOf")), *elements(source.get("anyOf")), *elements(source.get("enum"))]
    options = [_option(each) for each in choices]
    kind: FieldKind = "multi_choice" if is_list else "choice" if options else "text"
    match schema.get("type"):
        case "boolean":
            kind, options = "boolean", [QuestionOption("true", "true"), QuestionOption("false", "false")]
        case "integer" | "number" as number:
            kind = number
        case _:
            pass
    title = first_text(dict(schema), "title") or name
    return QuestionField(
        name, title, first_text(dict(schema), "description"), kind, options, required, schema.get("default")
    )


def _extension_field(part: dict[str, Any], number: int) -> QuestionField:
    options = [_option(each) for each in elements(part.get("options"))]
    takes_many = any(part.get(name) is True for name in ("multiSelect", "allowMultiple", "multiple"))
    kind: FieldKind = "text" if not options else "multi_choice" if takes_many else "choice"
    title = first_text(part, "prompt", "question", "message", "title")
    name = first_text(part, "id", "header") or f"question_{number}"
    return QuestionField(name, title, first_text(part, "description"), kind, options, required=False)


def _option(given: object) -> QuestionOption:
    option = members(given)
    label = label_of(given) or str(option.get("const", given))
    return QuestionOption(
        first_text(option, "const", "id", "value") or label, label, first_text(option, "description")
    )


def _schema_options(properties: dict[str, Any]) -> list[str]:
    options: list[str] = []
    for value in properties.values():
        schema = members(value)
        if schema.get("type") == "boolean":
            options += ["true", "false"]
        for source in (schema, members(schema.get("items"))):
            options += [str(name) for name in elements(source.get("enum"))]
            choices = [*elements(source.get("oneOf")), *elements(source.get("anyOf"))]
            options += [label for choice in choices if (label := label_of(choice))]
    return options


def label_of(option: object) -> str:
    """Return the text of an option for people; an empty string if it has none."""
    if isinstance(option, str):
        return option
    return first_text(members(option), "label", "title", "name", "const", "id")


def first_text(given: dict[str, Any], *names: str) -> str:
    """Return the first of the members that is a text and not empty; otherwise an empty string."""
    for name in names:
        value: Any = given.get(name)
        if isinstance(value, str) and value:
            return value
    return ""
