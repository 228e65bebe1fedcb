"""A session's open questions: delivered to listeners, answered, declined."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from sandbox_agent.client.broker import Pending, RequestBroker
from sandbox_agent.client.tasks import TaskOwner
from sandbox_agent.engine.questions import (
    Answers,
    answer_lists,
    answer_result,
    cancellation_result,
    rejection_result,
)
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.wire.requests import QuestionRequest

logger: logging.Logger = logging.getLogger("sandbox_agent.client")


QuestionListener = Callable[[QuestionRequest], Awaitable[object] | object]
QuestionPolicy = Literal["ask"] | Callable[[QuestionRequest], "Awaitable[Answers | None] | Answers | None"]


class QuestionBroker(RequestBroker[QuestionRequest]):
    """Holds one session's questions until they are answered.

    They go to the listeners; without any, the policy answers. The policy "ask" waits for a listener that
    comes later. Without a policy too, a question is declined.
    """

    def __init__(self, session_id: str, tasks: TaskOwner) -> None:
        super().__init__(session_id, tasks, "question", lambda each: cancellation_result(each.method))
        self._policy: QuestionPolicy | None = None

    @property
    def policy(self) -> QuestionPolicy | None:
        """The policy that answers if there is no listener."""
        return self._policy

    @policy.setter
    def policy(self, policy: QuestionPolicy | None) -> None:
        if policy is not None and not callable(policy) and policy != "ask":
            raise ValueError(f'question_policy must be "ask" or a function, not {policy!r}')
        self._policy = policy

    @property
    def can_answer(self) -> bool:
        """Whether there is a listener or a policy."""
        return bool(self._listeners) or self._policy is not None

    async def open(self, pending: Pending[QuestionRequest], *, must_ask: bool = False) -> None:
        """Deliver a question to the listeners, or answer it by the policy.

        Args:
            pending: the question, as ``add`` returned it.
            must_ask: only a listener may answer it; without one it is declined.
        """
        request = pending.request
        if not self._deliver(pending):
            return  # a caller that reads the events has answered it
        if self._listeners:
            self._notify_all(request)
        elif callable(self._policy) and not must_ask:
            await self._answer_by_policy(pending, self._policy)
        elif self._policy is None or must_ask:
            logger.warning(
                "question %s of session %s is declined: there is no listener and no policy",
                request.id,
                self._session_id,
            )
            await self._answer(pending, rejection_result(request.method))

    async def _answer_by_policy(
        self,
        pending: Pending[QuestionRequest],
        policy: Callable[[QuestionRequest], Awaitable[Answers | None] | Answers | None],
    ) -> None:
        request = pending.request
        try:
            decided = policy(request)
            answers = await decided if inspect.isawaitable(decided) else decided
            try:
                result = _result(request, answers)
            except (InvalidRequestError, TypeError) as error:
                self.note_failure(request, error)
                result = rejection_result(request.method)
        except Exception:
            # The boundary to the user's policy: the agent needs a response in any case.
            logger.exception("the question policy of session %s failed: declined", self._session_id)
            result = rejection_result(request.method)
        if request.id in self._pending:
            await self._answer(pending, result)

    def respond(self, question_id: str, answers: Answers | None) -> Awaitable[None]:
        """Answer a question; it is sent at once, even if the result is not awaited.

        Raises:
            InvalidRequestError: the answers do not match the question; it stays open.
            SandboxAgentError: no such question is open.
        """
        pending = self._find(question_id)
        return self._send(pending, _result(pending.request, answers))


def _result(request: QuestionRequest, answers: Answers | None) -> dict[str, Any]:
    if answers is None:
        return rejection_result(request.method)
    return answer_result(request.method, request.raw_request, answer_lists(request.fields, answers))
