"""Answers in the shape that the agent asked for: read back, they are what the user said."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox_agent.engine.questions import (
    Answers,
    answer_lists,
    answer_result,
    cancellation_result,
    read_answer,
    rejection_result,
)
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.wire.questions import read_fields

FORM = {
    "message": "Well?",
    "requestedSchema": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "sure": {"type": "boolean"},
            "count": {"type": "integer"},
            "share": {"type": "number"},
            "colour": {"type": "string", "oneOf": [{"const": "#f00", "title": "Red"}]},
            "tags": {"type": "array", "items": {"anyOf": [{"const": "a", "title": "A"}]}},
        },
        "required": ["name"],
    },
}


def test_an_elicitation_is_answered_by_its_schema():
    answers = [["Ann"], ["Yes"], ["7"], ["0.5"], ["Red"], ["A", "other"]]
    assert answer_result("elicitation/create", FORM, answers) == {
        "action": "accept",
        "content": {
            "name": "Ann",
            "sure": True,
            "count": 7,
            "share": 0.5,
            "colour": "#f00",
            "tags": ["a", "other"],
        },
    }


def test_a_field_that_need_not_be_answered_is_left_out():
    assert answer_result("elicitation/create", FORM, [["Ann"], [], ["7"]])["content"] == {
        "name": "Ann",
        "count": 7,
    }


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [[]],
        [["Ann", "Bob"]],
        [["Ann"], ["perhaps"]],
        [["Ann"], [], ["7.5"]],
        [["Ann"], [], ["9" * 100_000]],
        [["Ann"], [], [], ["nan"]],
        [["Ann"]] * 7,
    ],
)
def test_answers_that_do_not_fit_are_refused(answers: list[list[str]]):
    with pytest.raises(InvalidRequestError):
        answer_result("elicitation/create", FORM, answers)


def test_a_question_of_an_extension_is_answered_with_the_ids_of_its_options():
    params: dict[str, Any] = {
        "questions": [
            {
                "id": "q1",
                "prompt": "Which?",
                "options": [{"id": "o1", "label": "One"}, {"id": "o2", "label": "Two"}],
            },
            {"id": "q2", "prompt": "Why?"},
        ]
    }
    result = answer_result("cursor/ask_question", params, [["Two"], ["because"]])
    chosen = result["outcome"]["answers"]
    assert [answer["questionId"] for answer in chosen] == ["q1", "q2"]
    assert [answer["selectedOptionIds"] for answer in chosen] == [["o2"], ["because"]]
    assert "because" in (read_answer(result) or "")


@pytest.mark.parametrize("method", ["elicitation/create", "cursor/ask_question", "_x/ask_user_question"])
def test_a_rejection_is_read_as_none(method: str):
    assert read_answer(rejection_result(method)) is None


@pytest.mark.parametrize("method", ["elicitation/create", "cursor/ask_question"])
def test_a_cancellation_is_read_as_none(method: str):
    assert read_answer(cancellation_result(method)) is None


# Recorded from claude-agent-acp 0.101.0, with a shorter text.
CLAUDE: dict[str, Any] = {
    "mode": "form",
    "message": "Which?",
    "requestedSchema": {
        "type": "object",
        "properties": {
            "question_0": {
                "type": "string",
                "title": "H",
                "oneOf": [
                    {"const": "A", "title": "A", "description": "a"},
                    {"const": "B", "title": "B", "description": "b"},
                ],
            },
            "question_0_custom": {
                "type": "string",
                "title": "Other",
                "description": "Type your own answer (optional).",
            },
        },
    },
}


def test_the_fields_of_a_form_are_read_from_its_schema():
    choice, other = read_fields("elicitation/create", CLAUDE)
    assert (choice.name, choice.title, choice.kind, choice.required) == ("question_0", "H", "choice", False)
    assert [(each.value, each.label, each.description) for each in choice.options] == [
        ("A", "A", "a"),
        ("B", "B", "b"),
    ]
    assert (other.title, other.kind, other.options) == ("Other", "text", [])
    kinds = [(each.name, each.kind, each.required) for each in read_fields("elicitation/create", FORM)]
    assert kinds == [
        ("name", "text", True),
        ("sure", "boolean", False),
        ("count", "integer", False),
        ("share", "number", False),
        ("colour", "choice", False),
        ("tags", "multi_choice", False),
    ]


def test_the_questions_of_an_extension_are_fields():
    option = {"id": "o1", "label": "One"}
    params = {"questions": [{"id": "q1", "prompt": "Which?", "options": [option], "allowMultiple": True}]}
    (which,) = read_fields("cursor/ask_question", params)
    assert (which.name, which.title, which.kind) == ("q1", "Which?", "multi_choice")
    (single,) = read_fields("_mock/question", {"question": "Which?", "options": ["red", "blue"]})
    assert (single.title, single.kind, [each.value for each in single.options]) == (
        "Which?",
        "choice",
        ["red", "blue"],
    )


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("Ann", [["Ann"]]),
        (True, [["true"]]),
        (["Ann", True, 7, 0.5, "Red", ["A", "b"]], [["Ann"], ["true"], ["7"], ["0.5"], ["Red"], ["A", "b"]]),
        ({"tags": ["A"], "name": "Ann"}, [["Ann"], [], [], [], [], ["A"]]),
        ([], []),
    ],
)
def test_answers_are_given_alone_in_order_or_by_name(answers: Answers, expected: list[list[str]]):
    assert answer_lists(read_fields("elicitation/create", FORM), answers) == expected


def test_options_may_be_any_json():
    choices = [{"const": 7}, {"const": {"a": 1}, "title": "Odd"}, {"title": "Plain"}]
    params = {"requestedSchema": {"properties": {"odd": {"oneOf": choices}}}}
    (odd,) = read_fields("elicitation/create", params)
    assert [each.label for each in odd.options] == ["7", "Odd", "Plain"]
    values = [
        answer_result("elicitation/create", params, [[text]])["content"]["odd"]
        for text in ("7", "Odd", "Plain", "else")
    ]
    assert values == [7, {"a": 1}, "Plain", "else"]


def test_an_answer_to_an_unknown_field_is_refused():
    with pytest.raises(InvalidRequestError, match="no field 'nom', only name, sure"):
        answer_lists(read_fields("elicitation/create", FORM), {"nom": "Ann"})
