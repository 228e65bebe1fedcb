"""The slash commands of a chat, and their completion."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from sandbox_agent.cli.attachments import file_block
from sandbox_agent.cli.event_printer import format_usage
from sandbox_agent.cli.output import one_line
from sandbox_agent.engine.permissions import PERMISSION_MODES, is_permission_mode
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.wire.jsonrpc import elements, members

if TYPE_CHECKING:
    from sandbox_agent.cli.chat.app import Chat

# So many of the newest sessions of the store are listed.
_LISTED: Final = 20


class _Command(NamedTuple):
    run: Callable[[str], Awaitable[None]]
    argument: str
    help: str


class Commands:
    """The commands.

    Args:
        chat: the chat that they change.

    Attributes:
        chat: the chat.
        completer: completes their names and arguments.
    """

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.completer: Completer = _Completer(self)
        self.known: dict[str, _Command] = {
            "/help": _Command(self._help, "", "list the commands"),
            "/model": _Command(self._model, "[ID]", "list the models, or switch to one"),
            "/mode": _Command(self._mode, "[ID]", "list the agent's modes, or switch to one"),
            "/permissions": _Command(
                self._permissions, "[MODE]", "show or set what the agent may do unasked"
            ),
            "/file": _Command(self._file, "PATH", "send a file with the next message"),
            "/cancel": _Command(self._cancel, "", "cancel the running turn, as Ctrl-C does"),
            "/decline": _Command(self._decline, "", "reject what the agent asks"),
            "/cost": _Command(self._cost, "", "show the tokens and the cost of the session"),
            "/sessions": _Command(self._sessions, "", "list the open sessions, and the newest of the store"),
            "/switch": _Command(self._switch, "[NUMBER]", "show another open session; this one continues"),
            "/new": _Command(self._new, "[AGENT]", "open a new session"),
            "/resume": _Command(self._resume, "ID", "open a session of the store"),
            "/quit": _Command(self._quit, "", "cancel what runs and end the chat, as Ctrl-D does"),
        }

    async def run(self, text: str) -> bool:
        """Run the command that a line names; return False if it is a command of the agent."""
        name, _, rest = text.partition(" ")
        command = self.known.get(name.strip())
        if command is not None:
            await command.run(rest.strip())
        elif name in self.chat.front.commands:
            return False
        else:
            self._note(
                f"no command {name}: /help lists them; put a space before a message that begins with /"
            )
        return True

    def _note(self, line: str) -> None:
        self.chat.screen.note(line)

    async def _help(self, _rest: str) -> None:
        for name, command in self.known.items():
            self._note(f"  {f'{name} {command.argument}':<20} {command.help}")
        for name in self.chat.front.commands:
            self._note(f"  {one_line(name):<20} (of the agent)")
        self._note("  Alt-Enter, or a backslash at the end of a line, begins another line")

    async def _model(self, rest: str) -> None:
        if rest:
            await self.chat.front.session.set_model(rest)
            self._note(f"model  {rest}")
        else:
            self._list("model")

    async def _mode(self, rest: str) -> None:
        if rest:
            await self.chat.front.session.set_mode(rest)  # the event of the change is shown
        else:
            self._list("mode")

    def _list(self, category: str) -> None:
        current, values = self.choices(category)
        if not values:
            self._note(f"the agent offers no choice of {category}")
        for value, name in values.items():
            self._note(f"  {'*' if value == current else ' '} {value:<24} {one_line(name)}".rstrip())

    def choices(self, category: str) -> tuple[str | None, dict[str, str]]:
        """Return the current and the possible values of a setting, with their names."""
        record = self.chat.front.session.record
        for option in record.config_options or ():
            if option.get("category") == category:
                listed = [
                    value for each in elements(option.get("options")) for value in _values(members(each))
                ]
                return str(option.get("currentValue")), dict(listed)
        if category == "mode" and record.modes:
            modes = [members(each) for each in elements(record.modes.get("availableModes"))]
            named = {str(each.get("id")): str(each.get("name") or "") for each in modes}
            return str(record.modes.get("currentModeId")), named
        return None, {}

    async def _permissions(self, rest: str) -> None:
        session = self.chat.front.session
        if is_permission_mode(rest):
            await session.set_permission_mode(rest)
        elif rest:
            raise InvalidRequestError(f"'{rest}' must be one of {', '.join(PERMISSION_MODES)}")
        self._note(f"permissions  {session.permission_mode or 'as the agent decides'}")

    async def _file(self, rest: str) -> None:
        chat = self.chat
        path = _file_path(rest)
        info = await chat.sdk.get_agent(chat.front.session.agent)
        block = file_block(path, info.id, info.capabilities, chat.launch.path_in_sandbox)
        chat.front.files.append(block)
        self._note(f"file   {path.name} is sent with the next message")

    async def _cancel(self, _rest: str) -> None:
        if not self.chat.cancel():
            self._note("nothing is running")

    async def _decline(self, _rest: str) -> None:
        if self.chat.front.asks is None:
            self._note("the agent asks nothing")
        await self.chat.front.decline()

    async def _cost(self, _rest: str) -> None:
        usage = self.chat.front.printer.usage
        self._note("usage  not reported by the agent" if usage is None else f"usage  {format_usage(usage)}")

    async def _sessions(self, _rest: str) -> None:
        chat = self.chat
        for talk in chat.talks:
            mark = "*" if talk is chat.front else " "
            state = "asks" if talk.session.pending_permissions() else "running" if talk.turns else "ready"
            self._note(f"{mark} {talk.name}  {state}  {talk.session.id}")
        opened = {talk.session.id for talk in chat.talks}
        for record in [each for each in await chat.stored() if each.id not in opened][:_LISTED]:
            self._note(
                f"      {record.agent}  {record.created_time.astimezone():%Y-%m-%d %H:%M}  {record.id}"
            )

    async def _switch(self, rest: str) -> None:
        talks = self.chat.talks
        if not rest:
            after = talks.index(self.chat.front) + 1
            await self.chat.switch(talks[after % len(talks)])
            return
        found = [talk for talk in talks if rest in (str(talk.number), talk.session.id)]
        if not found:
            raise InvalidRequestError(f"no session '{rest}' is open: /sessions lists them, /resume opens one")
        await self.chat.switch(found[0])

    async def _new(self, rest: str) -> None:
        chat = self.chat
        agent = rest or chat.front.session.agent
        chat.add(await chat.launch.create_session(chat.sdk, agent, "ask", "ask"))

    async def _resume(self, rest: str) -> None:
        chat = self.chat
        opened = [talk for talk in chat.talks if talk.session.id == rest]
        if opened:
            await chat.switch(opened[0])
            return
        if not rest:
            raise InvalidRequestError("pass the id of a session: /sessions lists them")
        last = await chat.sdk.persist.last_event_index(rest)
        session = await chat.sdk.resume_session(rest, permission_policy="ask", question_policy="ask")
        chat.add(session, last)

    async def _quit(self, _rest: str) -> None:
        self.chat.ended = True


def _file_path(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise InvalidRequestError(f"there is no file '{text}'")
    return path


def _values(option: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the values of an element of a config option, which may be a group."""
    each = [members(value) for value in elements(option.get("options"))] if "options" in option else [option]
    return [(str(value.get("value")), str(value.get("name") or "")) for value in each]


class _Completer(Completer):
    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, rest = text.partition(" ")
        if space and name == "/file":
            yield from self._paths.get_completions(Document(rest), complete_event)
            return
        for word, about in self._words(name, bool(space)):
            given = rest if space else name
            if word.startswith(given):
                yield Completion(word, start_position=-len(given), display_meta=about)

    def _words(self, name: str, has_argument: bool) -> Iterable[tuple[str, str]]:
        chat = self._commands.chat
        if not has_argument:
            own = [(word, "of the agent") for word in chat.front.commands]
            return [*((word, each.help) for word, each in self._commands.known.items()), *own]
        if name in ("/model", "/mode"):
            return self._commands.choices(name[1:])[1].items()
        if name == "/permissions":
            return [(mode, "") for mode in PERMISSION_MODES]
        if name == "/switch":
            return [(str(talk.number), talk.name) for talk in chat.talks]
        return []
