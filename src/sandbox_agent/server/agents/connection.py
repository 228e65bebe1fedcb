"""One agent process behind one server id: its pipe, its ids, its feed."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import anyio

from sandbox_agent.engine.correlate import EVERYONE, Answer, Correlator, Pending, Submitted
from sandbox_agent.engine.feed import Feed, Slice
from sandbox_agent.engine.ndjson import LineFramer, OversizedLine
from sandbox_agent.errors import (
    AgentProcessExitedError,
    InvalidRequestError,
    RequestTimeoutError,
    StreamError,
)
from sandbox_agent.runtime.process import ExitStatus, Process
from sandbox_agent.server.agents.spill import Spiller
from sandbox_agent.server.streams.viewers import Bell
from sandbox_agent.wire.jsonrpc import NO_ID, Head, InvalidEnvelopeError, dumps, loads, read_head, read_heads

if TYPE_CHECKING:
    from sandbox_agent.server.recorder.recorder import Recorder
    from sandbox_agent.server.recorder.tap import Tap

__all__ = ["AgentConnection"]

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# An agent that closed its stdout can't be heard any more; it has this long to exit by itself.
EOF_EXIT_SECONDS = 1.0
# An agent that closed its stdin is about to exit, or walks down the ladder (a second and a bit); its end
# explains more than a broken pipe.
BROKEN_PIPE_EXIT_SECONDS = 2.0
# A store that hangs must not hold up a DELETE; it does what it was told to when it comes back.
DROP_SECONDS = 0.3
# How much of a line that isn't JSON is shown.
INVALID_RAW_BYTES = 1024 * 1024
# Of these the agent takes as long as it needs.
UNTIMED_METHODS = frozenset({"session/prompt"})

INVALID_STDOUT = "_adapter/invalid_stdout"

Adapter = Callable[[str | None, bytes], bytes]


class _Answer:
    """Who waits for an answer, and for how long."""

    __slots__ = ("future", "timer")

    def __init__(self, future: asyncio.Future[bytes]) -> None:
        self.future = future
        self.timer: asyncio.TimerHandle | None = None


class AgentConnection:
    """A live agent, and its feed, which outlives it until the server id is used again or deleted.

    Args:
        server_id: the id in the path.
        agent: the agent's id.
        process: its process; run() owns it from here.
        spiller: keeps the feed within its memory.
        request_timeout: seconds for requests other than session/prompt.
        adapt: changes an envelope on its way in, for agents that are strict.
        recorder: is told everything that passes; None for a connection that nobody need remember.

    Attributes:
        tap: where the recorder is told.
        on_request: called with every request of the agent and its head, for whoever serves the agent.
    """

    def __init__(
        self,
        server_id: str,
        agent: str,
        process: Process,
        spiller: Spiller,
        *,
        request_timeout: float,
        adapt: Adapter,
        recorder: Recorder | None = None,
    ) -> None:
        self.server_id = server_id
        self.agent = agent
        self.created_at_ms: int = time.time_ns() // 1_000_000
        self._created = time.monotonic()
        self.bell: Bell = Bell()
        self.feed: Feed = Feed(uuid.uuid4().hex, spiller.memory)
        self.ended: asyncio.Event = asyncio.Event()
        self.tap: Tap | None = recorder and recorder.tap(self.feed.epoch, server_id, agent)
        self.on_request: Callable[[Head, bytes], None] | None = None
        self._recorder = recorder
        self._loop = asyncio.get_running_loop()  # asked once: Python 3.11 makes a system call of it
        self._process = process
        self._spiller = spiller
        self._timeout = request_timeout
        self._adapt = adapt
        self._framer = LineFramer()
        self._correlator = Correlator()
        self._unnumbered: list[tuple[Sequence[bytes], str | None]] = []
        self._answers: dict[Pending, _Answer] = {}
        self._status: ExitStatus | None = None
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._status is None

    @property
    def uptime_ms(self) -> int:
        """Milliseconds since it was made, whatever the wall clock does."""
        return round((time.monotonic() - self._created) * 1000)

    @property
    def finished(self) -> bool:
        """Whether the feed is closed: the server id was deleted or is used by another process."""
        return self._closed

    async def run(self) -> None:
        """Read the agent until it ends. Its owner calls this once, in a task of its own."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._process.pump_stderr)
            tasks.start_soon(self._read_on)
            await self._process.wait()
            tasks.cancel_scope.cancel()
        self._end(await self._process.wait())

    async def _read_on(self) -> None:
        try:
            await self._pump()
        except Exception:  # the boundary: what goes wrong with one agent must not end the others
            logger.exception("the output of agent %s can't be taken: ending it", self.agent)
            await self._process.stop()

    async def _pump(self) -> None:
        while await self._process.stdout.listen(self._take):
            await self._spiller.relieve()
            if self._recorder is not None:
                await self._recorder.relieve()
        await anyio.sleep(EOF_EXIT_SECONDS)
        logger.warning("agent %s closed its stdout and goes on: ending it", self.agent)
        await self._process.stop()

    def _take(self, data: bytes) -> bool:
        self._publish(self._framer.feed(data))
        return not (self._spiller.memory.exceeded or (self._recorder is not None and self._recorder.exceeded))

    def _end(self, status: ExitStatus) -> None:
        """Take what the process left in its pipes, then tell everyone, all at once."""
        self._process.sweep()  # first: a grandchild that goes on writing would keep the pipe from draining
        for data in self._process.stdout.read_leftover():
            self._publish(self._framer.feed(data))
        self._publish(self._framer.finish())
        self._process.drain_stderr()
        self._process.close()
        self._status = status
        params = {"success": status.success, "code": status.code}
        exited = dumps({"jsonrpc": "2.0", "method": "_adapter/agent_exited", "params": params})
        if self.tap is not None:
            self.tap.received([exited])
            self.tap.close()
        self._unnumbered.append(([exited], EVERYONE))
        self._number()
        error = self._exit_error()
        for pending in self._correlator.fail_all():
            future = self._forget(pending)
            if future is not None:
                future.set_exception(error)
        self.ended.set()

    def _exit_error(self) -> AgentProcessExitedError:
        status = self._status or ExitStatus(None, None)
        how = f"signal {status.signal}" if status.signal is not None else f"exit code {status.code}"
        return AgentProcessExitedError(
            f"agent process exited: {self.agent} ended with {how}; POST again with ?agent={self.agent} "
            "to start it anew",
            agent=self.agent,
            exitCode=status.code,
            signal=status.signal,
            stderr=self._process.stderr_tail,
        )

    def _publish(self, lines: Sequence[bytes]) -> None:
        """Hand the agent's lines to whoever waits for an answer, and to the feed."""
        if not lines:
            return
        heads = read_heads(lines)
        if heads is None:
            lines, heads = _mended(lines)
        if self.tap is not None:
            self.tap.received(lines)
        published = 0
        answers: list[Answer] = []
        for position, head in enumerate(heads):
            if head.id is NO_ID:
                continue
            if head.method is not None:
                self._correlator.asked(head)
                if self.on_request is not None:
                    self.on_request(head, lines[position])
            elif (answer := self._correlator.answer(head, lines[position])) is not None:
                self._unnumbered.append((lines[published:position], EVERYONE))
                self._unnumbered.append(([answer.feed_line], answer.pending.client))
                answers.append(answer)
                published = position + 1
        self._unnumbered.append((lines[published:], EVERYONE))
        if not answers:
            self._number()
            return
        for answer in answers:
            future = self._forget(answer.pending)
            if future is not None:
                future.set_result(answer.line)
        # who waits goes first; the feed has its turn before the loop looks at any pipe again
        self._loop.call_soon(self._number)

    def _number(self) -> None:
        """Put what was published into the feed, in order, and wake the viewers."""
        unnumbered, self._unnumbered = self._unnumbered, []
        if not self._closed:
            for lines, audience in unnumbered:
                if lines:
                    self.feed.append(lines, audience)
        self.bell.ring()

    async def read(self, cursor: int, viewer: str, *, max_bytes: int) -> Slice:
        """Return what stands in the feed behind the cursor, from memory or from the spill.

        Raises:
            PersistError: the spill can't be read.
        """
        if self._closed:
            return Slice(b"", cursor)
        part = self.feed.read(cursor, viewer, max_bytes=max_bytes)
        if part is None:
            part = await self._spiller.read(self.feed.epoch, cursor, viewer, max_bytes)
        return part

    async def send(
        self,
        client: str,
        head: Head,
        envelope: bytes,
        *,
        recorded: Callable[[], Awaitable[None]] | None = None,
    ) -> bytes | None:
        """Send a client's envelope to the agent and wait for the answer where one is owed.

        A caller that is cancelled or times out leaves the request running: its answer will be in the
        feed.

        Args:
            client: the client's name, or UNNAMED.
            head: the envelope's, from read_head.
            envelope: one JSON-RPC object.
            recorded: awaited when the recorder has been told of a request, before the agent is: a request
                that must not be forgotten is stored first.

        Returns:
            The agent's response with the client's id, or None for a notification or an answer.

        Raises:
            InvalidRequestError: the envelope's id is none.
            AgentProcessExitedError: the agent has ended, or ends before it answers.
            RequestTimeoutError: the agent did not take the envelope, or did not answer, in time.
            StreamError: the agent does not take input and does not exit.
        """
        submitted = self._submit(client, head, envelope)
        if submitted.line is None:
            return None
        timeout = self._time_for(submitted)
        if submitted.pending is None:
            await self._write(client, submitted, submitted.line, timeout)
            return None
        answer = self._answers[submitted.pending] = _Answer(self._loop.create_future())
        try:
            if recorded is not None:
                await self._record(client, submitted, submitted.line, recorded)
            await self._write(client, submitted, submitted.line, timeout, tell=recorded is None)
            self._await(answer, submitted, timeout)
            return await answer.future
        finally:
            self._forget(submitted.pending)
            if answer.future.done() and not answer.future.cancelled():
                answer.future.exception()  # who could not write is told that instead

    def send_nowait(self, client: str, head: Head, envelope: bytes) -> asyncio.Future[bytes] | None:
        """Send a request if the agent takes it at once.

        Returns:
            What will be the agent's response, or fail as send() does; None where nothing was sent: the
            envelope is no request, or the agent has ended or takes no input now. send() says which.
        """
        if self._status is not None or not head.is_request:
            return None
        submitted = self._submit(client, head, envelope)
        if submitted.line is None or submitted.pending is None:
            return None
        if not self._process.write_nowait(submitted.line + b"\n"):
            self._correlator.retract(submitted)
            return None
        if self.tap is not None:
            self.tap.sent(submitted.line, client)
        answer = self._answers[submitted.pending] = _Answer(self._loop.create_future())
        self._await(answer, submitted, self._time_for(submitted))
        return answer.future

    def _submit(self, client: str, head: Head, envelope: bytes) -> Submitted:
        if self._status is not None:
            raise self._exit_error()
        try:
            return self._correlator.submit(client, head, self._adapt(head.method, envelope))
        except InvalidEnvelopeError as error:
            raise InvalidRequestError(f"invalid request: {error}") from None

    def _time_for(self, submitted: Submitted) -> float | None:
        return None if submitted.method in UNTIMED_METHODS else self._timeout

    def _await(self, answer: _Answer, submitted: Submitted, timeout: float | None) -> None:
        if timeout is not None and not answer.future.done():
            answer.timer = self._loop.call_later(timeout, self._expire, submitted)

    def _forget(self, pending: Pending) -> asyncio.Future[bytes] | None:
        """Return who waits for the answer, who from here on does not."""
        answer = self._answers.pop(pending, None)
        if answer is None:
            return None
        if answer.timer is not None:
            answer.timer.cancel()
        return None if answer.future.done() else answer.future

    def _expire(self, submitted: Submitted) -> None:
        if submitted.pending is not None and (future := self._forget(submitted.pending)) is not None:
            future.set_exception(self._timed_out(submitted.method))

    def _timed_out(self, method: str | None) -> RequestTimeoutError:
        return RequestTimeoutError(
            f"timeout: {self.agent} did not answer {method or 'the message'} within {self._timeout:g} s; "
            "it may still do so: its answer will be in the event stream"
        )

    def awaits(self, request_id: bytes) -> bool:
        """Whether the agent's request of that id (JSON) still has no answer."""
        return self._correlator.awaits(request_id)

    async def _record(
        self, client: str, submitted: Submitted, line: bytes, recorded: Callable[[], Awaitable[None]]
    ) -> None:
        if self.tap is not None:
            self.tap.sent(line, client)
        try:
            await recorded()
        except BaseException:
            self._correlator.retract(submitted)
            raise

    async def _write(
        self, client: str, submitted: Submitted, line: bytes, timeout: float | None, *, tell: bool = True
    ) -> None:
        tap = self.tap if tell else None
        if self._process.write_nowait(line + b"\n"):
            if tap is not None:
                tap.sent(line, client)
            return
        begun = asyncio.Event()

        def begin() -> None:
            begun.set()
            if tap is not None:
                tap.sent(line, client)

        try:
            async with asyncio.timeout(timeout):
                await self._process.write(line + b"\n", on_begin=begin)
        except TimeoutError:
            if begun.is_set():
                raise self._timed_out(submitted.method) from None
            self._correlator.retract(submitted)
            raise RequestTimeoutError(
                f"timeout: {self.agent} took no input for {self._timeout:g} s and was not sent "
                f"{submitted.method or 'the answer'}: send it again, or DELETE the connection"
            ) from None
        except BrokenPipeError:
            try:
                async with asyncio.timeout(BROKEN_PIPE_EXIT_SECONDS):
                    await self.ended.wait()
            except TimeoutError:
                raise StreamError(
                    f"stream error: {self.agent} closed its stdin but goes on; DELETE the connection"
                ) from None
            raise self._exit_error() from None

    def with_stderr(self, response: bytes) -> bytes:
        """Return an error response with the stderr tail in ``error.data.agentStderr``.

        Data that is neither an object nor absent is left as the agent wrote it.
        """
        if b'"error"' not in response:
            return response
        try:
            document: dict[str, Any] = loads(response)
        except InvalidEnvelopeError:  # nested as deeply as can just be forwarded
            return response
        error: Any = document.get("error")
        tail = self._process.stderr_tail
        if not tail or not isinstance(error, dict):
            return response
        members = cast("dict[str, Any]", error)
        data: Any = members.get("data")
        if data is None:
            data = members["data"] = {}
        if not isinstance(data, dict):
            return response
        data["agentStderr"] = tail
        return dumps(document)

    async def stop(self) -> None:
        """End the agent and wait until its feed says so."""
        await self._process.stop()
        await self.ended.wait()

    async def close(self) -> None:
        """End the agent, the feed and its viewers."""
        await self.stop()
        if not self._closed:
            self._closed = True
            self.feed.close()
            self.bell.ring()
            with anyio.move_on_after(DROP_SECONDS):
                await self._spiller.drop(self.feed.epoch)


def _mended(lines: Sequence[bytes]) -> tuple[list[bytes], list[Head]]:
    """Read lines one by one; what is no envelope becomes a notification that says so."""
    mended: list[bytes] = []
    heads: list[Head] = []
    for line in lines:
        try:
            if isinstance(line, OversizedLine):
                raise InvalidEnvelopeError(f"line of {line.size} bytes is over the limit")
            heads.append(read_head(line))
            mended.append(line)
        except InvalidEnvelopeError as error:
            heads.append(Head(method=INVALID_STDOUT))
            mended.append(_invalid_stdout(line, str(error)))
    return mended, heads


def _invalid_stdout(line: bytes, error: str) -> bytes:
    params = {"error": error, "raw": line[:INVALID_RAW_BYTES].decode("utf-8", "replace")}
    return dumps({"jsonrpc": "2.0", "method": INVALID_STDOUT, "params": params})
