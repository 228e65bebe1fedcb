"""Converts a user's answers to the result of an agent's question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.wire.members import elements, members

# ACP's elicitations, which have a schema for the answer.
_ELICITATIONS = {"elicitation/create", "session/elicitation"}
_TRUE = {"true", "yes"}
_FALSE = {"false", "no"}


def rejection_result(method: str) -> dict[str, Any]:
    """Return the result that declines a question."""
    if method in _ELICITATIONS:
        return {"action": "decline"}
    return {"outcome": {"outcome": "skipped", "reason": "the user rejected the question"}}


def answer_result(method: str, params: dict[str, Any], answers: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the result with the chosen options of each question, in order.

    The answers are the user's choices per question: labels, values or ids of options, or free text.

    Raises:
        InvalidRequestError: there are more answers than questions, or an answer does not match its question.
    """
    if method in _ELICITATIONS:
        schema = members(params.get("requestedSchema"))
        return {"action": "accept", "content": _content(schema, answers)}
    questions = [members(item) for item in elements(params.get("questions"))] or [params]
    _check_count(len(questions), answers)
    chosen: list[dict[str, Any]] = []
    for question, answer in zip(questions, answers, strict=False):
        ids = [_option_id(question, text) for text in answer]
        chosen.append({"questionId": question.get("id"), "selectedOptionIds": ids, "answers": list(answer)})
    return {"outcome": {"outcome": "answered", "answers": chosen}}


def _check_count(questions: int, answers: Sequence[Sequence[str]]) -> None:
    if len(answers) > questions:
        raise InvalidRequestError(
            f"invalid request: the agent asked {questions} question(s), but there are {len(answers)} answers"
        )


def _content(schema: dict[str, Any], answers: Sequence[Sequence[str]]) -> dict[str, Any]:
    properties = members(schema.get("properties"))
    _check_count(len(properties), answers)
    content: dict[str, Any] = {}
    for (name, field), answer in zip(properties.items(), answers, strict=False):
        if answer:
            content[name] = _field_value(name, members(field), answer)
    missing = [name for name in elements(schema.get("required")) if name not in content]
    if missing:
        raise InvalidRequestError(f"invalid request: no answer for {', '.join(map(str, missing))}")
    return content


def _field_value(name: str, field: dict[str, Any], answer: Sequence[str]) -> Any:
    if field.get("type") == "array":
        return [_choice(members(field.get("items")), text) for text in answer]
    if len(answer) != 1:
        raise InvalidRequestError(f"invalid request: {name} must have one answer, not {len(answer)}")
    text = answer[0]
    match field.get("type"):
        case "boolean":
            if text.lower() not in _TRUE | _FALSE:
                raise InvalidRequestError(f"invalid request: {name} must be true or false")
            return text.lower() in _TRUE
        case "integer":
            return _number(name, text, whole=True)
        case "number":
            return _number(name, text, whole=False)
        case _:
            return _choice(field, text)


def _number(name: str, text: str, *, whole: bool) -> float:
    try:
        # int() takes quadratic time for long texts
        number = int(text[:32]) if whole else float(text[:32])
    except ValueError:
        number = float("nan")
    if len(text) > 32 or number != number or number in {float("inf"), float("-inf")}:
        raise InvalidRequestError(f"invalid request: {name} must be {'an integer' if whole else 'a number'}")
    return number


def _choice(field: dict[str, Any], text: str) -> Any:
    for choice in [*elements(field.get("oneOf")), *elements(field.get("anyOf"))]:
        option = members(choice)
        if text in {option.get("const"), option.get("title")}:
            return option.get("const", text)
    return text


def _option_id(question: dict[str, Any], text: str) -> str:
    for each in elements(question.get("options")):
        option = members(each)
        labels = [option.get(name) for name in ("label", "title", "name", "const", "id")]
        if text in labels and isinstance(option.get("id"), str):
            return str(option["id"])
    return text
