"""The vocabulary of questions, in the SDK, the server and the command line.

ACP's method for questions is ``elicitation/create``: a form with a schema for each field. Older agents use
extension methods (``cursor/ask_question``, ``_x/ask_user_question``), which are recognized if they contain a
question. An answer is a list per field: the chosen options (labels, values or ids), or free text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.wire.jsonrpc import dumps, elements, members
from sandbox_agent.wire.questions import ELICITATIONS, QuestionField, first_text

_TRUE = {"true", "yes"}
_FALSE = {"false", "no"}


def read_answer(result: object) -> str | None:
    """Return the answer in the result of a response as text, or None if the user gave none."""
    given = members(result)
    outcome: Any = given.get("outcome")
    verdict = first_text(given, "action") or (
        outcome if isinstance(outcome, str) else first_text(members(outcome), "outcome")
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
    return content if isinstance(content, str) else dumps(content).decode()


# fields

Answer = str | bool | int | float
Answers = Answer | Sequence[Answer | Sequence[Answer]] | Mapping[str, Answer | Sequence[Answer]]


def answer_lists(fields: Sequence[QuestionField], answers: Answers) -> list[list[str]]:
    """Return the answers of a question as a list per field.

    Args:
        fields: the question's fields.
        answers: one answer, a list with the answer of each field, or a mapping by the fields' names. Several
            choices of one field are a list.

    Raises:
        InvalidRequestError: a name is unknown.
    """
    if isinstance(answers, Mapping):
        by_name = answers
        names = [each.name for each in fields]
        for name in by_name:
            if name not in names:
                raise InvalidRequestError(
                    f"invalid request: the question has no field '{name}', only {', '.join(names) or 'none'}"
                )
        return [_texts(by_name.get(name, [])) for name in names]
    if isinstance(answers, str | bool | int | float):
        return [_texts(answers)]
    return [_texts(each) for each in answers]


def _texts(answer: Answer | Sequence[Answer]) -> list[str]:
    if isinstance(answer, bool):
        return ["true" if answer else "false"]
    if isinstance(answer, str | int | float):
        return [str(answer)]
    return [text for each in answer for text in _texts(each)]


# answering


def is_answer(asked: QuestionField, answer: Sequence[str]) -> bool:
    """Return whether a field of a form accepts the answer."""
    if not answer:
        return not asked.required
    kinds = {"multi_choice": "array", "choice": "string", "text": "string"}
    try:
        _field_value(asked.name, {"type": kinds.get(asked.kind, asked.kind)}, answer)
    except InvalidRequestError:
        return False
    return True


def rejection_result(method: str) -> dict[str, Any]:
    """Return the result that declines a question."""
    if method in ELICITATIONS:
        return {"action": "decline"}
    return {"outcome": {"outcome": "skipped", "reason": "the user rejected the question"}}


def cancellation_result(method: str) -> dict[str, Any]:
    """Return the result of a question whose turn was cancelled."""
    return {"action": "cancel"} if method in ELICITATIONS else {"outcome": {"outcome": "cancelled"}}


def answer_result(method: str, params: dict[str, Any], answers: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the result with the chosen options of each question, in order.

    The answers are the user's choices per question: labels, values or ids of options, or free text.

    Raises:
        InvalidRequestError: there are more answers than questions, or an answer does not match its question.
    """
    if method in ELICITATIONS:
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
        value: object = option.get("const", text)
        if text in (value, option.get("title")) or (isinstance(value, int | float) and text == str(value)):
            return value
    return text


def _option_id(question: dict[str, Any], text: str) -> str:
    for each in elements(question.get("options")):
        option = members(each)
        labels = [option.get(name) for name in ("label", "title", "name", "const", "id")]
        if text in labels and isinstance(option.get("id"), str):
            return str(option["id"])
    return text
