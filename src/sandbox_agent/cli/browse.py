"""The full-screen list of ``sandbox-agent sessions browse``."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Final

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.data_structures import Point
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import ANSI, StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import BufferControl, FormattedTextControl, HSplit, Layout, VSplit, Window
from prompt_toolkit.layout.dimension import Dimension
from prompt_toolkit.layout.processors import BeforeInput

from sandbox_agent.cli.event_printer import EventPrinter
from sandbox_agent.cli.output import Screen, one_line, open_output, printable
from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.transfer.history import read_pages
from sandbox_agent.persist.transfer.lines import export_lines
from sandbox_agent.persist.transfer.sessions import list_all_sessions
from sandbox_agent.wire.jsonrpc import elements, members
from sandbox_agent.wire.records import SessionRecord

# So many of the last events of a session are shown.
_PREVIEW_EVENTS: Final = 300
_TITLE_CHARS: Final = 200
_PAGE: Final = 10
_KEYS: Final = "Enter: chat  Ctrl-E: export  Delete: delete  PgUp, PgDn: scroll  Esc: leave"


class _Capture:
    """A stream that keeps what a screen writes to a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str, /) -> object:
        self.text += text
        return None

    def flush(self) -> object:
        return None

    def isatty(self) -> bool:
        return True


class Browser:
    """The list, its search, and a preview of the selected session.

    Args:
        driver: the store.
    """

    def __init__(self, driver: SessionPersistDriver) -> None:
        self._driver = driver
        self._records: list[SessionRecord] = []
        self._titles: dict[str, str] = {}
        self._found: list[SessionRecord] = []
        self._selected = 0
        self._preview: list[str] = []
        # The first line of the preview that is shown, None for its end.
        self._scrolled: int | None = None
        self._message = ""
        self._confirming: SessionRecord | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._search = Buffer(multiline=False, on_text_changed=lambda _: self._filter())
        self._app: Application[SessionRecord | None] = self._application()

    async def run(self) -> SessionRecord | None:
        """Show the list until the user leaves; return the session to open in a chat, or None."""
        async with aclosing(list_all_sessions(self._driver)) as records:
            self._records = [record async for record in records][::-1]
        self._filter()
        self._start("titles", self._read_titles)
        try:
            return await self._app.run_async()
        finally:
            for task in self._tasks.values():
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks.values())

    # what is shown

    def _filter(self) -> None:
        words = self._search.text.lower().split()
        self._found = [
            record for record in self._records if all(word in self._searched(record) for word in words)
        ]
        self._select(0)

    def _searched(self, record: SessionRecord) -> str:
        folder = (record.session_init or {}).get("cwd", "")
        return f"{record.id} {record.agent} {folder} {self._titles.get(record.id, '')}".lower()

    def _select(self, index: int) -> None:
        self._selected = max(0, min(index, len(self._found) - 1))
        self._preview, self._scrolled, self._message = [], None, ""
        if self._found:
            self._start("preview", partial(self._read_preview, self._found[self._selected]))
        self._app.invalidate()

    @property
    def _current(self) -> SessionRecord | None:
        return self._found[self._selected] if self._found else None

    def _list(self) -> StyleAndTextTuples:
        lines: StyleAndTextTuples = []
        for index, record in enumerate(self._found):
            style = "reverse" if index == self._selected else ""
            ended = " destroyed" if record.destroyed_at is not None else ""
            time = f"{record.created_time.astimezone():%Y-%m-%d %H:%M}"
            title = self._titles.get(record.id) or record.id
            lines.append((style, printable(one_line(f"{time}  {record.agent}{ended}  {title}")) + "\n"))
        return lines or [("", "no session is found" if self._records else "the store has no sessions")]

    def _shown_preview(self) -> ANSI:
        height = self._preview_window.render_info.window_height if self._preview_window.render_info else 40
        end = max(0, len(self._preview) - height)
        start = end if self._scrolled is None else min(self._scrolled, end)
        return ANSI("\n".join(self._preview[start : start + height]))

    def _status(self) -> StyleAndTextTuples:
        if self._confirming is not None:
            name = printable(self._confirming.id)
            return [("reverse", f"delete {name} with its history? y: delete, other keys: keep")]
        return [("", self._message or f"{len(self._found)} of {len(self._records)} sessions   {_KEYS}")]

    # tasks

    def _start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run a task in place of the one with the same name."""
        if name in self._tasks:
            self._tasks[name].cancel()
        self._tasks[name] = asyncio.ensure_future(self._report(work))

    async def _report(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (SandboxAgentError, NotImplementedError, OSError) as error:
            self._message = printable(one_line(str(error)))
        self._app.invalidate()

    async def _read_titles(self) -> None:
        """Read the first prompt of each session."""
        for record in self._records:
            async with aclosing(read_pages(self._driver, record.id)) as pages:
                async for events in pages:
                    prompts = [each.payload for each in events if b'"session/prompt"' in each.payload_json]
                    if prompts:
                        self._titles[record.id] = _title(members(prompts[0].get("params")).get("prompt"))
                    break
            self._app.invalidate()

    async def _read_preview(self, record: SessionRecord) -> None:
        capture = _Capture()
        screen = Screen(capture, capture)
        screen.note(f"session {record.id}", "bold")
        folder = (record.session_init or {}).get("cwd", "")
        screen.note(f"agent {record.agent}  folder {folder}", "dim")
        printer = EventPrinter(screen, client=True)
        for event in await self._driver.tail_events(record.id, limit=_PREVIEW_EVENTS):
            printer.print_event(event)
        screen.end_line()
        self._preview = capture.text.splitlines()

    async def _export(self, record: SessionRecord) -> None:
        path = Path(re.sub(r"[^\w.-]", "_", record.id) + ".jsonl")
        if _exists(path):
            self._message = f"'{path}' exists: move it away, then export again"
            return
        with open_output(path) as file:
            async with aclosing(export_lines(self._driver, _one(record))) as lines:
                async for line in lines:
                    file.write(line + b"\n")
        self._message = f"exported to '{path}'"

    async def _delete(self, record: SessionRecord) -> None:
        await self._driver.delete_session(record.id)
        self._records.remove(record)
        selected = self._selected
        self._filter()
        self._select(selected)
        self._message = f"deleted {printable(record.id)}"

    # the application

    def _application(self) -> Application[SessionRecord | None]:
        search = BufferControl(self._search, input_processors=[BeforeInput("Search: ", style="bold")])
        listed = FormattedTextControl(
            self._list, get_cursor_position=lambda: Point(0, self._selected), show_cursor=False
        )
        self._preview_window = Window(FormattedTextControl(self._shown_preview), wrap_lines=True)
        body = VSplit(
            [
                Window(listed, width=Dimension(preferred=0, weight=2), wrap_lines=False),
                Window(width=1, char="│"),
                HSplit([self._preview_window], width=Dimension(preferred=0, weight=3)),
            ]
        )
        status = Window(FormattedTextControl(self._status), height=1)
        layout = Layout(
            HSplit([Window(search, height=1), Window(height=1, char="─"), body, status]),
            focused_element=search,
        )
        return Application(layout, key_bindings=self._keys(), full_screen=True, mouse_support=False)

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        confirming = Condition(lambda: self._confirming is not None)

        @keys.add("<any>", filter=confirming, eager=True)
        def _(event: KeyPressEvent) -> None:
            record, self._confirming = self._confirming, None
            if record is not None and event.data in ("y", "Y"):
                self._start("delete", partial(self._delete, record))

        @keys.add("up", filter=~confirming)
        def _(_event: KeyPressEvent) -> None:
            self._select(self._selected - 1)

        @keys.add("down", filter=~confirming)
        def _(_event: KeyPressEvent) -> None:
            self._select(self._selected + 1)

        @keys.add("pageup", filter=~confirming)
        def _(_event: KeyPressEvent) -> None:
            last = len(self._preview)
            self._scrolled = max(0, (last if self._scrolled is None else self._scrolled) - _PAGE)

        @keys.add("pagedown", filter=~confirming)
        def _(_event: KeyPressEvent) -> None:
            if self._scrolled is not None:
                self._scrolled += _PAGE

        @keys.add("enter", filter=~confirming)
        def _(event: KeyPressEvent) -> None:
            if self._current is not None:
                event.app.exit(result=self._current)

        @keys.add("c-e", filter=~confirming)
        def _(_event: KeyPressEvent) -> None:
            if self._current is not None:
                self._start("export", partial(self._export, self._current))

        @keys.add("delete", filter=~confirming)
        def _(_event: KeyPressEvent) -> None:
            self._confirming = self._current

        @keys.add("escape", filter=~confirming)
        @keys.add("c-c", filter=~confirming)
        @keys.add("c-d", filter=~confirming)
        def _(event: KeyPressEvent) -> None:
            event.app.exit(result=None)

        return keys


def _title(prompt: object) -> str:
    """Return the last text of a prompt: what is attached comes before it."""
    texts = [str(block["text"]) for block in map(members, elements(prompt)) if "text" in block]
    return one_line(texts[-1])[:_TITLE_CHARS] if texts else ""


async def _one(record: SessionRecord) -> AsyncGenerator[SessionRecord]:
    yield record


def _exists(path: Path) -> bool:
    return path.exists()
