"""The chat: the line that the user types on, the keys, and the conversations."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import ANSI, AnyFormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import DummyOutput

from sandbox_agent.cli.chat.commands import Commands
from sandbox_agent.cli.chat.output import LiveLines, PromptOutput, wrap
from sandbox_agent.cli.chat.talk import Talk
from sandbox_agent.cli.launch import Launch
from sandbox_agent.cli.logs import configure_logging
from sandbox_agent.cli.output import Screen, one_line, printable
from sandbox_agent.cli.stores import state_file
from sandbox_agent.client.agent import SandboxAgent
from sandbox_agent.client.session import Session
from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.persist.private import create_private, tighten
from sandbox_agent.persist.transfer.sessions import list_all_sessions
from sandbox_agent.wire.acp import TextContent
from sandbox_agent.wire.records import SessionRecord

# Of a session that is continued, so many of the last events are shown.
_SHOWN_EVENTS: Final = 300
_COLUMNS: Final = 80
# Seconds in which the turns have to end when the user leaves: the SDK stops an agent that ignores its
# cancellation after 10.
QUIT_SECONDS: Final = 15.0
_CANCEL_AGAIN_SECONDS: Final = 1.0


class Chat:
    """The chat.

    Args:
        launch: the agent, its sandbox, and the first session.

    Attributes:
        sdk: the client of the server.
        screen: where conversations are shown.
        talks: the open conversations.
        front: the conversation that is shown.
        ended: whether the user has left.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.sdk: SandboxAgent
        self.talks: list[Talk] = []
        self.front: Talk
        self.ended: bool = False
        self._output = PromptOutput(self._invalidate)
        self._live = LiveLines(self._invalidate)
        self.screen: Screen = Screen(self._output, self._output)
        self._reader: asyncio.Task[None] | None = None
        self._command: asyncio.Task[None] | None = None
        self._cancelling: set[asyncio.Task[None]] = set()
        self._main: asyncio.Task[Any] | None = None
        self._exit_code = 0
        self._draft = ""
        # What the user sees that is asked, which an answer is for.
        self._asked: str | None = None
        self._commands = Commands(self)
        history = str(state_file("history"))
        create_private(history)
        tighten([Path(history)])
        self._prompt: PromptSession[str] = PromptSession(
            history=FileHistory(history),
            completer=self._commands.completer,
            complete_while_typing=True,
            key_bindings=self._keys(),
            multiline=True,
            prompt_continuation="  ",
            bottom_toolbar=self._toolbar,
            erase_when_done=True,
        )

    # the loop

    async def run(self) -> int:
        """Run the chat until the user leaves, and return the exit code."""
        configure_logging("warning", "text")
        with self._handle_signals():
            self._main = asyncio.ensure_future(self._run())
            try:
                await self._main
            except asyncio.CancelledError:
                if not self._exit_code:
                    raise
        return self._exit_code

    async def _run(self) -> None:
        writer = asyncio.ensure_future(self._output.run())
        try:
            async with self.launch.open_client(self.screen) as self.sdk:
                record = self.launch.record
                last = 0 if record is None else await self.sdk.persist.last_event_index(record.id)
                session = await self.launch.open_session(self.sdk, "ask", "ask")
                self.add(session, last)
                self.screen.note(
                    "Enter sends, Alt-Enter begins another line, /help lists the commands", "dim"
                )
                try:
                    while not self.ended:
                        await self._read_message()
                finally:
                    await self._stop_talks()
        finally:
            writer.cancel()
            await asyncio.wait({writer})
            self._output.close()

    async def _stop_talks(self) -> None:
        """Cancel the running turns, so that their ends are stored."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + QUIT_SECONDS
        while self.ended and (running := self._running()) and loop.time() < deadline:
            for talk in self.talks:
                if talk.turns:
                    with contextlib.suppress(SandboxAgentError):
                        await talk.session.cancel()
            # Again, because a message may have been sent after the cancellation.
            await asyncio.wait(running, timeout=_CANCEL_AGAIN_SECONDS)
        await self._stop_reader()
        for task in [*self._running(), *self._cancelling]:
            task.cancel()

    def _running(self) -> list[asyncio.Task[None]]:
        return [turn for talk in self.talks for turn in talk.turns]

    async def _read_message(self) -> None:
        draft, self._draft = self._draft, ""
        try:
            text = await self._prompt.prompt_async(self._message, default=draft, handle_sigint=False)
        except EOFError:
            self.ended = True
            return
        self._command = asyncio.ensure_future(self._handle(text))
        try:
            await self._command
        except (SandboxAgentError, NotImplementedError, ValueError) as error:
            self.screen.note(one_line(str(error)), "red")
        except asyncio.CancelledError:
            if not self._command.cancelled() or self._exit_code:
                raise
            self.screen.note("interrupted", "yellow")
        finally:
            self._command = None
            self._asked = self.front.asked_id
        await self._output.drain()

    async def _handle(self, text: str) -> None:
        talk = self.front
        if text.startswith("/") and await self._commands.run(text):
            return
        if talk.asked_id != self._asked:
            if self._asked is None:
                self._draft = text
            self.screen.note("this was not sent: what the agent asks has changed", "yellow")
            return
        if talk.asks is not None:
            if not await talk.answer(text):
                self.screen.note(
                    "that is no answer: answer the agent first, or reject with /decline", "yellow"
                )
            return
        if not text.strip():
            return
        files, talk.files = talk.files, []
        talk.send([*files, TextContent(text=text.strip())])

    # conversations

    def add(self, session: Session, last: int = 0) -> None:
        """Add a conversation and show it.

        Args:
            session: its session.
            last: the index of its last event. The older ones are left out.
        """
        number = max((talk.number for talk in self.talks), default=0) + 1
        shown = max(0, last - _SHOWN_EVENTS)
        talk = Talk(number, session, shown, screen=self.screen, live=self._live, announce=self._announce)
        self.talks.append(talk)
        self._bring_to_front(talk)
        if shown:
            self.screen.note(f"older events: sandbox-agent sessions show {session.id}", "dim")

    async def stored(self) -> list[SessionRecord]:
        """Return the sessions of the store, newest first."""
        async with contextlib.aclosing(list_all_sessions(self.sdk.persist)) as records:
            found = [record async for record in records]
        return found[::-1]

    async def switch(self, talk: Talk) -> None:
        """Show another conversation. The one that was shown continues."""
        if talk is not self.front:
            await self._stop_reader()
            self.front.is_front = False
            self._live.clear()
            self.screen.end_line()
            self._bring_to_front(talk)

    def _bring_to_front(self, talk: Talk) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self.front.is_front = False
        self.front = talk
        self._asked = talk.asked_id
        talk.is_front = True
        self._was_asking = False
        self.screen.note(f"{talk.name}  session {talk.session.id}", "bold")
        self._reader = asyncio.ensure_future(self._show(talk))

    async def _stop_reader(self) -> None:
        if self._reader is not None:
            reader, self._reader = self._reader, None
            reader.cancel()
            await asyncio.wait({reader})

    async def _show(self, talk: Talk) -> None:
        try:
            await talk.show_events(self._on_shown, self._output.drain)
        except SandboxAgentError as error:
            self.screen.note(f"the events can't be read: {one_line(str(error))}", "red")

    def _on_shown(self) -> None:
        """Keep a message that is typed when the agent asks something; drop an answer that came too late."""
        asked = self.front.asked_id
        is_sent = self._prompt.app.future is None or self._prompt.app.future.done()
        if asked != self._asked and self._command is None and not is_sent:
            buffer = self._prompt.default_buffer
            if not buffer.text.startswith("/"):
                if self._asked is None:
                    self._draft = buffer.text
                buffer.reset()
                if asked is None:  # another client has answered
                    buffer.insert_text(self._draft)
                    self._draft = ""
            self._asked = asked
        self._invalidate()

    def _announce(self, text: str) -> None:
        if self.ended:
            return
        self.screen.note(f"{text} (/switch to it)", "bold")

    # the terminal

    def _invalidate(self) -> None:
        with contextlib.suppress(AttributeError):  # the prompt is made after the output
            self._prompt.app.invalidate()

    def _message(self) -> AnyFormattedText:
        output = self._prompt.app.output
        columns = _COLUMNS if isinstance(output, DummyOutput) else output.get_size().columns
        lines = wrap(self._output.partial, columns) if self._output.partial else []
        lines += [f"\x1b[36m{printable(line)[: columns - 1]}\x1b[0m" for line in self._live.lines()]
        asks = self.front.asks
        lines.append("\x1b[1m> \x1b[0m" if asks is None else f"\x1b[33m{printable(asks)}\x1b[0m")
        return ANSI("\n".join(lines))

    def _toolbar(self) -> str:
        talk = self.front
        record = talk.session.record
        settings = [
            str(option.get("currentValue"))
            for option in record.config_options or ()
            if option.get("category") in ("model", "mode")
        ]
        state = f"{len(talk.turns)} running" if talk.turns else "ready"
        others = sum(bool(each.turns) for each in self.talks if each is not talk)
        parts = [talk.name, *settings, state, *([f"{others} others running"] if others else [])]
        parts += [f"{len(talk.files)} files attached"] if talk.files else []
        return printable("  ".join(parts))

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            state = buffer.complete_state
            if state is not None and state.current_completion is not None:
                buffer.complete_state = None
            elif buffer.document.text_before_cursor.endswith("\\"):
                buffer.delete_before_cursor()
                buffer.insert_text("\n")
            elif self.front.asks is not None:  # answers are not part of the history
                event.app.exit(result=buffer.text)
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-c")
        def _(event: KeyPressEvent) -> None:
            if not self.cancel():
                if not event.current_buffer.text:
                    self.screen.note("nothing is running: Ctrl-D or /quit ends the chat", "dim")
                event.current_buffer.reset()

        return keys

    def cancel(self) -> bool:
        """Cancel the turn of the conversation that is shown; return False if none runs."""
        talk = self.front
        if not talk.turns:
            return False
        self.screen.note("cancelling", "yellow")
        task = asyncio.ensure_future(self._cancel(talk))
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)
        return True

    async def _cancel(self, talk: Talk) -> None:
        try:
            await talk.session.cancel()
        except SandboxAgentError as error:
            self.screen.note(one_line(str(error)), "red")

    @contextlib.contextmanager
    def _handle_signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        ends = (signal.SIGTERM, signal.SIGHUP)
        loop.add_signal_handler(signal.SIGINT, self._on_interrupt)
        for number in ends:
            loop.add_signal_handler(number, self._end, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, *ends):
                loop.remove_signal_handler(number)

    def _on_interrupt(self) -> None:
        """React to Ctrl-C while there is no line to type on: a command runs, or the chat starts or ends."""
        if self._command is not None:
            self._command.cancel()
        elif self.ended or not self.talks:
            self._end(signal.SIGINT)
        else:
            self.cancel()

    def _end(self, number: signal.Signals) -> None:
        self._exit_code = 128 + number
        if self._main is not None:
            self._main.cancel()
