"""The error tree and its table."""

from __future__ import annotations

import inspect

import pytest

from sandbox_agent import errors
from sandbox_agent.errors import (
    TABLE,
    URN_PREFIX,
    AcpRpcError,
    ErrorRow,
    ProblemError,
    SandboxAgentError,
    error_from_problem,
)

CONTRACT = {
    "invalid_request": 400,
    "unsupported_agent": 400,
    "mode_not_supported": 400,
    "token_invalid": 401,
    "permission_denied": 403,
    "not_found": 404,
    "session_not_found": 404,
    "agent_not_installed": 404,
    "not_acceptable": 406,
    "conflict": 409,
    "session_already_exists": 409,
    "gone": 410,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "install_failed": 500,
    "agent_process_exited": 500,
    "stream_error": 502,
    "store_unavailable": 503,
    "timeout": 504,
}


def test_the_table_has_the_contracts_names_and_statuses() -> None:
    assert {row.name: row.status for row in TABLE if row.name is not None} == CONTRACT


def test_every_error_of_the_tree_is_in_the_table_and_in_the_drawing() -> None:
    leaves = {
        value
        for value in vars(errors).values()
        if inspect.isclass(value)
        and issubclass(value, SandboxAgentError)
        and value not in (SandboxAgentError, ProblemError)
    }
    assert {row.error for row in TABLE} == leaves
    for leaf in leaves:
        assert leaf.__name__ in (errors.__doc__ or "")
        assert leaf.__name__ in errors.__all__


def test_every_exit_code_says_failure_and_none_is_the_shells() -> None:
    assert all(1 <= row.exit_code < 126 for row in TABLE)


@pytest.mark.parametrize("row", [row for row in TABLE if row.name is not None], ids=lambda row: row.name)
def test_a_problem_comes_back_as_the_error_that_it_was(row: ErrorRow) -> None:
    assert issubclass(row.error, ProblemError)
    sent = row.error("what happened: what to do", agent="mock", nothing=None)
    problem = sent.to_problem()
    assert problem["type"] == URN_PREFIX + str(row.name)
    assert problem["status"] == row.status
    assert list(problem) == ["type", "title", "status", "detail", "agent"]
    back = error_from_problem(row.status or 0, problem)
    assert type(back) is row.error
    assert str(back) == "what happened: what to do"
    assert back.problem == problem
    assert isinstance(back, ProblemError)
    assert back.extensions == {"agent": "mock"}
    assert back.to_problem() == problem


@pytest.mark.parametrize(
    "problem", [None, {}, {"type": "about:blank"}, {"type": None, "title": "No"}, {"type": 7}]
)
def test_an_unknown_problem_is_a_plain_error_with_its_status(problem: dict[str, object] | None) -> None:
    error = error_from_problem(418, problem)
    assert type(error) is SandboxAgentError
    assert error.status == 418
    assert str(error)


@pytest.mark.parametrize(
    ("code", "message", "data", "text"),
    [
        (-32603, "it broke", None, "Internal agent error: it broke"),
        # gemini
        (
            -32603,
            "Internal error",
            {"details": "Cannot enable privileged approval modes in an untrusted folder."},
            "Internal agent error: Cannot enable privileged approval modes in an untrusted folder.",
        ),
        (-32603, "Internal error", "Missing provider", "Internal agent error: Missing provider"),  # goose
        (-32000, "Authentication required", None, "Authentication required"),  # codex
        (-32000, "Authentication required.", {"message": "log in"}, "Authentication required: log in"),
        (1, "odd", {"error": {"message": "nested"}}, "odd: nested"),
        (1, "said already", {"details": "already"}, "said already"),
        (1, "x", {"details": "key sk-ant-api03-abcdefghijkl is invalid"}, "x: key [redacted] is invalid"),
        (1, "Authorization: Bearer abcdefgh.ijkl-mn", [], "Authorization: Bearer [redacted]"),
        (1, "long", "y" * 5_000, "long: " + "y" * 994 + "…"),
    ],
)
def test_an_error_of_an_agent_says_its_reason(code: int, message: str, data: object, text: str) -> None:
    error = AcpRpcError(code, message, data)
    assert str(error) == text
    assert (error.rpc_message, error.data) == (message, data)
