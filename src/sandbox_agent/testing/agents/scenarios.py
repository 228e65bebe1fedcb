"""The scenarios: functions that fail with a sentence. They run through the SDK and in server sessions."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, Unpack

from anyio.abc import TaskGroup

from sandbox_agent.engine.permissions import PermissionMode, PermissionReply
from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.testing.agents.bed import AgentBed
from sandbox_agent.testing.agents.conversation import (
    SETTINGS,
    Conversation,
    Route,
    Setting,
    Settings,
    Turn,
    open_conversation,
)
from sandbox_agent.testing.llm import STALLED_TEXT

# What ends a turn that was cancelled, in seconds.
CANCEL_SECONDS = 2.0
# After this the server and the SDK have stopped an agent that ignores a cancel.
STOP_SECONDS = 25.0
_MCP_ATTEMPTS = 5
_SECRET = "marmalade"  # noqa: S105 - a word to remember


class MissingError(Exception):
    """The agent does not have what the scenario needs; the message says what."""


class PartlyError(Exception):
    """The scenario works in part; the message says what does not."""


@dataclass(slots=True)
class Run:
    """A run of the scenarios on one route.

    The last session is kept for the next scenario that wants the same settings, because a server session has
    an agent process of its own.

    Attributes:
        bed: The server with the agent.
        route: What drives the sessions.
        tasks: Runs their turns.
        patience: Factor for the time that a cancelled turn may take, for a machine under load.
    """

    bed: AgentBed
    route: Route
    tasks: TaskGroup
    patience: float = 1.0
    _kept: list[Conversation] = field(default_factory=list[Conversation])
    _settings: str = ""

    async def open(
        self,
        reply: PermissionReply | None = "once",
        *,
        fresh: bool = False,
        **settings: Unpack[Settings],
    ) -> Conversation:
        """Return the kept session if it has these settings; otherwise end it and create one.

        Args:
            reply: How permission requests are answered; None leaves them open.
            fresh: Create a session in any case.
            **settings: How it is created.
        """
        if fresh or not self._kept or self._settings != repr(settings):
            await self.close()
            self._kept.append(await open_conversation(self.bed, self.route, self.tasks, settings))
            self._settings = repr(settings)
        conversation = self._kept[0]
        conversation.reply, conversation.on_request = reply, lambda: None
        return conversation

    async def open_second(self) -> Conversation:
        """Create another session beside the kept one."""
        self._kept.append(await open_conversation(self.bed, self.route, self.tasks, {}))
        return self._kept[-1]

    async def close(self) -> None:
        """End the sessions."""
        while self._kept:
            with suppress(SandboxAgentError):  # it may have failed already
                await self._kept.pop().close()

    def file(self, name: str) -> Path:
        """Return the path of a file in the agent's working directory."""
        return self.bed.work / f"{self.route}-{name}.txt"

    def write(self, path: Path, *, selected: bool = False) -> str:
        """Return a prompt with which the agent, or its selected model, writes "hello" into a file."""
        profile = self.bed.profile
        tool = profile.write_selected if selected and profile.write_selected is not None else profile.write
        if tool is None:
            raise MissingError("the profile does not say how the agent writes a file")
        return tool.directive(path, "hello")


Function: TypeAlias = Callable[[Run], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario.

    Attributes:
        name: Its name.
        title: What it shows, in one line.
        run: Runs it; the exception says what is wrong.
    """

    name: str
    title: str
    run: Function


SCENARIOS: dict[str, Scenario] = {}


def _scenario(function: Function) -> Function:
    """Add a scenario. The function's docstring is its title."""
    name = function.__name__  # type: ignore[attr-defined]
    title = (function.__doc__ or "").strip()
    SCENARIOS[name] = Scenario(name, title, function)
    return function


# what the agent says


@_scenario
async def text(run: Run) -> None:
    """The model's text is the agent's text."""
    conversation = await run.open()
    turn = await conversation.prompt("Sum this up. [[say It is fine 👋.]]")
    assert "It is fine 👋." in turn.text, f"the text was {turn.text!r}"
    if turn.text.strip() != "It is fine 👋.":
        raise PartlyError(f"more was said than the model's text: {turn.text[:80]!r}")
    assert turn.stop_reason == "end_turn", f"the turn ended with {turn.stop_reason}"


@_scenario
async def thinking(run: Run) -> None:
    """The model's thoughts are shown as thoughts."""
    conversation = await run.open()
    turn = await conversation.prompt("[[think Seven times six, then.]] [[say 42]]")
    assert "Seven times six, then." in turn.thoughts, f"the thoughts were {turn.thoughts!r}"
    assert "42" in turn.text, f"the text was {turn.text!r}"


# tools and permissions


@_scenario
async def tool_allowed(run: Run) -> None:
    """A tool runs when its permission request is answered with `once`."""
    conversation, path = await run.open(permission_mode=_asking(run)), run.file("allowed")
    await conversation.prompt(run.write(path))
    assert path.is_file(), "the file was not written"
    assert path.read_text().strip() == "hello", f"the file has {path.read_text()!r}"


@_scenario
async def tool_rejected(run: Run) -> None:
    """A tool does not run when its permission request is rejected."""
    conversation, path = await run.open("reject", permission_mode="ask"), run.file("rejected")
    turn = await conversation.prompt(run.write(path))
    assert turn.asked, "no permission was requested"
    assert not path.exists(), "the file was written although that was rejected"


@_scenario
async def ask(run: Run) -> None:
    """With the permission mode `ask`, nothing is written before the answer."""
    await _asks(run, await run.open(permission_mode="ask"), run.file("asked"))


@_scenario
async def allow(run: Run) -> None:
    """With the permission mode `allow`, a tool runs without a permission request that waits."""
    conversation, path = await run.open(None, permission_mode="allow"), run.file("allow")
    await conversation.prompt(run.write(path))
    assert path.is_file(), "the file was not written"


# cancellation


@_scenario
async def cancel_streaming(run: Run) -> None:
    """Cancel ends a turn that streams, and the session goes on."""
    conversation = await run.open()
    turn = await conversation.start("[[slow 100]]")
    assert await turn.until(lambda turn: "piece 1" in turn.text), f"no text was streamed: {turn.error}"
    await _cancel(run, conversation, turn)
    await _goes_on(conversation)


@_scenario
async def cancel_asking(run: Run) -> None:
    """Cancel ends a turn whose permission request waits, and nothing is written."""
    conversation, path = await run.open(None, permission_mode="ask"), run.file("cancelled")
    turn = await conversation.start(run.write(path))
    assert await turn.until(lambda turn: turn.asked > 0), "no permission was requested"
    await _cancel(run, conversation, turn)
    assert not path.exists(), "the file was written"
    await _goes_on(conversation)


# input


@_scenario
async def image(run: Run) -> None:
    """An image of the prompt reaches the model."""
    conversation = await run.open()
    marker = f"look at this for {run.route}"
    data = base64.b64encode(_png()).decode()
    await conversation.prompt(
        [
            {"type": "text", "text": f"{marker} [[say I see it.]]"},
            {"type": "image", "mimeType": "image/png", "data": data},
        ]
    )
    requests = await run.bed.requests_with(marker)
    assert any(request.images for request in requests), "the model's request has no image"


@_scenario
async def mcp_tool(run: Run) -> None:
    """A tool of an MCP server is called."""
    conversation = await run.open(mcp_servers=[run.bed.mcp_server()], permission_mode=_asking(run))
    profile, marker = run.bed.profile, f"add for {run.route}"
    results: tuple[str, ...] = ()
    for attempt in range(_MCP_ATTEMPTS):  # some agents connect to the server in the background
        await conversation.prompt(f"{marker}, {attempt} {profile.mcp_call}")
        requests = await run.bed.requests_with(f"{marker}, {attempt}")
        results = max((request.results for request in requests), key=len)
        if "The sum is 42." in "\n".join(results):
            return
    raise AssertionError(f"the model received {results!r}")


@_scenario
async def two_sessions(run: Run) -> None:
    """Two sessions run at the same time without mixing."""
    first, second = await run.open(), await run.open_second()
    slow = await first.start("[[slow 200]]")
    assert await slow.until(lambda turn: "piece 0" in turn.text), f"no text was streamed: {slow.error}"
    fast = await second.prompt("[[say A short answer.]]")
    assert not slow.ended, "the second session waited for the first"
    assert "piece" not in fast.text, "the texts are mixed"
    assert "short" not in slow.text, "the texts are mixed"
    await first.cancel()
    assert await slow.end(), "the first turn did not end"


# a model that fails


@_scenario
async def error_400(run: Run) -> None:
    """HTTP 400 of the model: a clear error, or cancel ends the turn."""
    await _fails_clearly(run, 400)


@_scenario
async def error_401(run: Run) -> None:
    """HTTP 401 of the model: a clear error, or cancel ends the turn."""
    await _fails_clearly(run, 401)


@_scenario
async def error_500(run: Run) -> None:
    """HTTP 500 of the model: a clear error, or cancel ends the turn."""
    await _fails_clearly(run, 500)


@_scenario
async def hang(run: Run) -> None:
    """A model that never answers: cancel ends the turn."""
    conversation = await run.open()
    marker = f"nothing for {run.route}"
    turn = await conversation.start(f"{marker} [[hang]]")
    await run.bed.requests_with(marker)
    await _cancel(run, conversation, turn)
    await _goes_on(conversation)


# losses


@_scenario
async def kill_idle(run: Run) -> None:
    """SIGKILL of the idle agent: the next prompt finds the history."""
    conversation = await _with_secret(run, fresh=True)
    await run.bed.kill_agent()
    await _remembers(run, conversation, "killed while idle")


@_scenario
async def kill_in_turn(run: Run) -> None:
    """SIGKILL of the agent in a turn: the turn ends with an error, the next finds the history."""
    conversation = await _with_secret(run)
    turn = await conversation.start("[[stall]]")
    assert await turn.until(lambda turn: STALLED_TEXT in turn.text), f"no text was streamed: {turn.error}"
    await run.bed.kill_agent()
    assert await turn.end(), "the turn did not end"
    assert turn.error, f"the turn ended without an error: {turn.stop_reason}"
    await _remembers(run, conversation, "killed in a turn")


@_scenario
async def kill_server(run: Run) -> None:
    """SIGKILL of the server: the next prompt finds the history."""
    conversation = await _with_secret(run)
    await run.bed.kill_server()
    await _remembers(run, conversation, "server killed")


# settings


@_scenario
async def model(run: Run) -> None:
    """The selected model is used."""
    await _uses_model(run, await _with_settings(run, "model"), "[[say model selected]]")


@_scenario
async def mode(run: Run) -> None:
    """The selected mode is kept."""
    await _keeps(run, await _with_settings(run, "mode"), "mode")


@_scenario
async def thought_level(run: Run) -> None:
    """The selected thought level is kept."""
    await _keeps(run, await _with_settings(run, "thought_level"), "thought_level")


@_scenario
async def option(run: Run) -> None:
    """Another option is set, and is kept over a restore."""
    wanted = run.bed.profile.option
    if wanted is None:
        found = await (await run.open()).other_options()
        assert not found, f"the profile names no option, but the agent has {', '.join(found)}"
        raise MissingError("there is no other option to set")
    config_id, value = wanted
    before = (await (await run.open()).other_options()).get(config_id)
    assert before != value, f"the option {config_id} is {value} already"
    conversation = await run.open(options={config_id: value})
    for kill in (None, run.bed.kill_agent):
        if kill is not None:
            await kill()
        await conversation.prompt("[[say option set]]")
        now = (await conversation.other_options()).get(config_id)
        assert now == value, f"the option {config_id} is {now}, not {value}"


@_scenario
async def settings_restored(run: Run) -> None:
    """Model, thought level and the permission mode `ask` are kept over three restores."""
    wanted = _wanted(run)
    conversation = await run.open(
        permission_mode=_asking(run),
        model=_value(run, "model") if "model" in wanted else None,
        thought_level=_value(run, "thought_level") if "thought_level" in wanted else None,
    )
    await conversation.prompt("[[say before]]")
    before = await _known_settings(run, conversation)
    for kill in (run.bed.kill_agent, run.bed.kill_server, run.bed.kill_agent):
        await kill()
        await conversation.prompt("[[say restored]]")
    after = await _known_settings(run, conversation)
    assert after == before, f"the settings were {before}, and are {after}"
    if "model" in wanted:
        await _uses_model(run, conversation, "[[say the same model]]")
    if _asking(run) is not None and run.bed.profile.write is not None:
        await _asks(run, conversation, run.file("restored"), selected="model" in wanted)


def _asking(run: Run) -> PermissionMode | None:
    """Return the permission mode `ask`, or None for an agent that has none."""
    deviation = run.bed.profile.deviation(run.route, "ask")
    return None if deviation is not None and deviation.outcome == "none" else "ask"


async def _asks(run: Run, conversation: Conversation, path: Path, *, selected: bool = False) -> None:
    def exists() -> bool:
        return path.exists()

    written_before: list[bool] = []
    conversation.on_request = lambda: written_before.append(exists())
    turn = await conversation.prompt(run.write(path, selected=selected))
    assert turn.asked, f"no permission was requested, and the file {'exists' if exists() else 'does not'}"
    assert not any(written_before), "the file was written before the answer"
    assert exists(), "the file was not written after the answer"


async def _cancel(run: Run, conversation: Conversation, turn: Turn) -> None:
    await _end(run, conversation, turn)
    assert turn.error is None, f"the cancelled turn ended with an error: {turn.error}"
    assert turn.cancelled, f"the turn ended with {turn.stop_reason}, not as cancelled"


async def _end(run: Run, conversation: Conversation, turn: Turn) -> None:
    """Cancel a turn and wait for its end."""
    await conversation.cancel()
    if not await turn.end(CANCEL_SECONDS * run.patience):
        assert await turn.end(STOP_SECONDS), "the turn did not end after its cancel"
        raise PartlyError(f"the turn did not end within {CANCEL_SECONDS:g} s of its cancel")


async def _goes_on(conversation: Conversation) -> None:
    turn = await conversation.prompt("[[say Still here.]]")
    assert "Still here." in turn.text, f"the next text was {turn.text!r}"


async def _with_secret(run: Run, *, fresh: bool = False) -> Conversation:
    conversation = await run.open(fresh=fresh)
    await conversation.prompt(f"The secret word is {_SECRET}. [[say I will remember that.]]")
    return conversation


async def _remembers(run: Run, conversation: Conversation, what: str) -> None:
    answer = f"{what}, {run.route}"
    turn = await conversation.prompt(f"What was the word? [[say {answer}]]")
    assert answer in turn.text, f"the text was {turn.text!r}"
    requests = await run.bed.requests_with(answer)
    assert any(_SECRET in request.text for request in requests), "the model was not given the history"


def _wanted(run: Run) -> list[Setting]:
    """Return the settings that the agent can have at the same time."""
    profile = run.bed.profile
    return [name for name in SETTINGS if _value(run, name) and profile.deviation(run.route, name) is None]


async def _known_settings(run: Run, conversation: Conversation) -> dict[str, str]:
    """Return the settings, without those that the agent does not report as it should."""
    found = await conversation.settings()
    return {
        name: value for name, value in found.items() if run.bed.profile.deviation(run.route, name) is None
    }


async def _with_settings(run: Run, name: Setting) -> Conversation:
    """Return a session with the settings that the agent can have, and that one.

    Raises:
        MissingError: The agent has no such setting.
    """
    wanted = _wanted(run)
    if name not in wanted:
        if _value(run, name) is None:
            found = await (await run.open()).settings()
            assert name not in found, f"the profile names no {name}, but the agent has {found.get(name)}"
            raise MissingError(f"there is no {name} to select")
        wanted = [name]
    return await run.open(
        model=_value(run, "model") if "model" in wanted else None,
        mode=_value(run, "mode") if "mode" in wanted else None,
        thought_level=_value(run, "thought_level") if "thought_level" in wanted else None,
    )


def _value(run: Run, name: Setting) -> str | None:
    value: str | None = getattr(run.bed.profile, name)
    return value


async def _keeps(run: Run, conversation: Conversation, name: Setting) -> None:
    await conversation.prompt("[[say selected]]")
    found = (await conversation.settings()).get(name)
    assert found == _value(run, name), f"the {name} is {found}, not {_value(run, name)}"


async def _uses_model(run: Run, conversation: Conversation, directive: str) -> None:
    profile = run.bed.profile
    await conversation.prompt(f"model for {run.route} {directive}")
    requests = await run.bed.requests_with(f"model for {run.route} {directive}")
    sent, wanted = {request.model for request in requests}, profile.model_sent or profile.model or ""
    assert any(wanted in each for each in sent), f"the model {' and '.join(sent)} was asked, not {wanted}"
    await _keeps(run, conversation, "model")


async def _fails_clearly(run: Run, status: int) -> None:
    conversation = await run.open()
    turn = await conversation.start(f"[[error {status}]]")
    if not await turn.end(run.bed.profile.retry_seconds):
        await _end(run, conversation, turn)
    said = f"{turn.error or ''}{turn.text}"
    if not (turn.cancelled or "scripted error" in said or str(status) in said):
        raise PartlyError(f"the turn ended without the reason: {said!r}")
    await _goes_on(conversation)


def _png() -> bytes:
    """Return a small image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = 32
    rows = b"".join(b"\0" + bytes([row * 8, 128, 64]) * size for row in range(size))
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
