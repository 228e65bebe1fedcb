"""One conversation of a chat: a session, its running turns, and what of it was shown."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from sandbox_agent.cli.chat.output import LiveLines
from sandbox_agent.cli.event_printer import EventPrinter
from sandbox_agent.cli.output import Screen, one_line
from sandbox_agent.cli.prompts import parse_answer, request_title, show_question, show_request
from sandbox_agent.client.session import Session
from sandbox_agent.engine.questions import is_answer
from sandbox_agent.errors import ConnectionLostError, SandboxAgentError
from sandbox_agent.wire.acp import AvailableCommandsUpdate, ContentBlock, SessionInfoUpdate
from sandbox_agent.wire.questions import QuestionField
from sandbox_agent.wire.records import SessionEvent
from sandbox_agent.wire.requests import PermissionReply, PermissionRequest, QuestionRequest

_REPLIES: Final[dict[str, PermissionReply]] = {
    "y": "once",
    "yes": "once",
    "a": "always",
    "always": "always",
    "n": "reject",
    "no": "reject",
}


class Talk:
    """A conversation.

    Args:
        number: its number in the chat.
        session: its session.
        shown: the index of the last event that needs not be shown.
        screen: where to show it while it is in front.
        live: shows its plan and running tools while it is in front.
        announce: called with what happens while it is not in front.

    Attributes:
        is_front: whether it is shown.
        files: what is sent with the next message.
        turns: the tasks of the running and the waiting turns.
        commands: the names of the agent's own commands.
    """

    def __init__(
        self,
        number: int,
        session: Session,
        shown: int,
        *,
        screen: Screen,
        live: LiveLines,
        announce: Callable[[str], None],
    ) -> None:
        self.number = number
        self.session = session
        self.is_front: bool = False
        self.files: list[ContentBlock] = []
        self.turns: set[asyncio.Task[None]] = set()
        self.commands: list[str] = []
        self.printer: EventPrinter = EventPrinter(screen, client=True, live=live)
        self.title: str = ""
        self._shown = shown
        self._screen = screen
        self._live = live
        self._announce = announce
        # The requests that the user has seen: only these can be answered.
        self._asked: set[str] = set()
        # The answers to the fields of a question, by its id.
        self._answers: dict[str, dict[str, list[str]]] = {}
        session.on_permission_request(self._on_permission)
        session.on_question(self._on_question)

    @property
    def name(self) -> str:
        """Its number and its agent, and its title if it has one."""
        title = f" ({one_line(self.title)})" if self.title else ""
        return f"[{self.number}] {self.session.agent}{title}"

    # events

    async def show_events(self, on_shown: Callable[[], None], written: Callable[[], Awaitable[None]]) -> None:
        """Show the events that were not shown, and then all new ones, until the task is cancelled.

        Args:
            on_shown: called after each event.
            written: waits until what was shown is on the terminal. Only then is a request asked about.
        """
        async for event in self.session.events(after=self._shown):
            request = self._show(event)
            self._shown = max(self._shown, event.event_index)
            if request is not None:
                try:
                    await written()
                finally:
                    self._asked.add(request)
            on_shown()

    def _show(self, event: SessionEvent) -> str | None:
        """Show an event; return its id if it is an open request."""
        self.printer.print_event(event)
        match event.update:
            case PermissionRequest() as request if self._is_open(request):
                self._screen.note(f"permission  {request_title(request)}", "yellow")
                show_request(self._screen, request)
                return request.id
            case QuestionRequest() as question if self._is_open(question):
                show_question(self._screen, question)
                return question.id
            case AvailableCommandsUpdate(available_commands=commands):
                self.commands = [f"/{command.name}" for command in commands]
            case SessionInfoUpdate(title=str(title)):
                self.title = title
            case _:
                pass
        return None

    def _is_open(self, request: PermissionRequest | QuestionRequest) -> bool:
        pending = [*self.session.pending_permissions(), *self.session.pending_questions()]
        return any(each.id == request.id for each in pending)

    # turns

    def send(self, blocks: list[ContentBlock]) -> None:
        """Send a message, after those that are waiting."""
        task = asyncio.ensure_future(self._run_turn(blocks))
        self.turns.add(task)
        task.add_done_callback(self.turns.discard)

    async def _run_turn(self, blocks: list[ContentBlock]) -> None:
        try:
            response = await self.session.prompt(blocks)
        except ConnectionLostError as error:
            self._live.clear()
            self._report(f"connection lost: {error}. The next message restores the session", failed=True)
        except SandboxAgentError as error:
            self._live.clear()
            self._report(f"failed: {error}", failed=True)
        else:
            if not self.is_front:
                self._announce(f"{self.name} has ended its turn: {response.stop_reason}")

    def _report(self, text: str, *, failed: bool) -> None:
        if self.is_front:
            self._screen.note(one_line(text), "red" if failed else "yellow")
        else:
            self._announce(f"{self.name} {one_line(text)}")

    # requests

    def _on_permission(self, request: PermissionRequest) -> None:
        if not self.is_front:
            self._announce(f"{self.name} asks for permission: {request_title(request)}")

    def _on_question(self, question: QuestionRequest) -> None:
        if not self.is_front:
            self._announce(f"{self.name} asks: {one_line(question.message)}")

    @property
    def permission(self) -> PermissionRequest | None:
        """The oldest open permission request that the user has seen."""
        return next((each for each in self.session.pending_permissions() if each.id in self._asked), None)

    @property
    def question(self) -> QuestionRequest | None:
        """The oldest open question that the user has seen, if there is no permission request."""
        if self.permission is not None:
            return None
        return next((each for each in self.session.pending_questions() if each.id in self._asked), None)

    @property
    def field(self) -> QuestionField | None:
        """The first field of the question that has no answer."""
        question = self.question
        if question is None:
            return None
        given = self._answers.get(question.id, {})
        return next((field for field in question.fields if field.name not in given), None)

    @property
    def asked_id(self) -> str | None:
        """The id of what the user is asked now, or None."""
        if (request := self.permission) is not None:
            return request.id
        if (question := self.question) is None:
            return None
        field = self.field
        return f"{question.id} {'' if field is None else field.name}"

    @property
    def asks(self) -> str | None:
        """What the user is asked now, or None."""
        if (request := self.permission) is not None:
            offered = {"once": "[y]es", "always": "[a]lways"}
            replies = [word for reply, word in offered.items() if reply in request.available_replies]
            return f"{request_title(request)}: {' / '.join([*replies, '[n]o'])}? "
        if self.question is not None:
            field = self.field
            return "Enter to send the answers? " if field is None else f"{one_line(field.title)}? "
        return None

    async def answer(self, text: str) -> bool:
        """Answer what is asked; return False if the text is no answer."""
        if (request := self.permission) is not None:
            reply = _REPLIES.get(text.strip().lower())
            if reply is None or (reply != "reject" and reply not in request.available_replies):
                return False
            await self.session.respond_permission(request.id, reply)
            return True
        question = self.question
        if question is None:
            return False
        if (field := self.field) is not None:
            given = parse_answer(field, text.strip())
            if given is None or not is_answer(field, given):
                return False
            self._answers.setdefault(question.id, {})[field.name] = given
        if self.field is None:
            await self.session.respond_question(question.id, self._answers.pop(question.id, {}))
        return True

    async def decline(self) -> None:
        """Reject the permission request, or decline the question."""
        if (request := self.permission) is not None:
            await self.session.respond_permission(request.id, "reject")
        elif (question := self.question) is not None:
            self._answers.pop(question.id, None)
            await self.session.respond_question(question.id, None)
