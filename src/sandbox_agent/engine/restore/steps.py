"""What a restore asks of who runs it; each step is given its outcome before the next is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sandbox_agent.engine.restore.replay_check import Told
from sandbox_agent.wire.records import SessionEvent

__all__ = ["AskOptions", "Call", "ReadNewest", "Refusal", "Step"]


class Refusal(NamedTuple):
    """Why a call has no result.

    Attributes:
        message: for people.
        code: the JSON-RPC error's; None where no answer came in time.
    """

    message: str
    code: int | None = None


class Call:
    """Send this to the agent, and set ``result`` or ``refusal``.

    Attributes:
        method: ACP's.
        params: its params.
        opens: the agent session that the call opens; its updates until the response are the past.
        may_fail: whether the restore goes on when it is refused; else the error is the restore's.
        result: the agent's answer.
        refusal: why there is none.
        told: what the agent told again, where it opens a session.
    """

    def __init__(
        self, method: str, params: Mapping[str, Any], *, opens: str | None = None, may_fail: bool = True
    ) -> None:
        self.method = method
        self.params: dict[str, Any] = dict(params)
        self.opens = opens
        self.may_fail = may_fail
        self.result: dict[str, Any] = {}
        self.refusal: Refusal | None = None
        self.told: Told | None = None


class AskOptions:
    """Set ``options`` to what the agent's sessions can be set to, where that is known from elsewhere."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] | None = None


class ReadNewest:
    """Set ``events`` to the newest ``limit`` events of the plan's history, oldest of them first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.events: Sequence[SessionEvent] = ()


Step = Call | AskOptions | ReadNewest
