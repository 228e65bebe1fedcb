"""Answers in the shape that the agent asked for: read back, they are what the user said."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox_agent.engine.project.open_requests import read_answer
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.server.permissions.question_answers import answer_result, rejection_result

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
