"""How chosen settings are set and confirmed: boolean options, which are also written as text."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox_agent.engine.settings import AgentSettings, Call, Failure, ReadReported


def confirm(wanted: Any, reported: Any, *, current: Any = False) -> tuple[list[Any], list[Failure]]:
    """Return the values that were sent, and the failures, where the agent reports a value at the end."""
    option = {"id": "effort", "name": "", "category": "thought_level", "type": "boolean"}
    settings = AgentSettings("n", options=[{**option, "currentValue": current}])
    steps = settings.confirm({"thought_level": wanted})
    sent: list[Any] = []
    try:
        while True:
            step = next(steps)
            if isinstance(step, Call):
                sent.append(step.params["value"])
            elif isinstance(step, ReadReported):
                step.values = {"thought_level": reported}
    except StopIteration as end:
        return sent, end.value


@pytest.mark.parametrize("wanted", [True, "true"])
@pytest.mark.parametrize("reported", [True, "true"])
def test_a_boolean_option_that_was_chosen_as_text_is_confirmed(wanted: Any, reported: Any) -> None:
    assert confirm(wanted, reported) == ([True], [])


@pytest.mark.parametrize("wanted", [True, "true"])
@pytest.mark.parametrize("reported", [False, "false", 1])
def test_a_boolean_option_with_another_value_is_not_confirmed(wanted: Any, reported: Any) -> None:
    sent, failures = confirm(wanted, reported)
    assert sent == [True, True]
    assert [failure.kind for failure in failures] == ["reverted"]
