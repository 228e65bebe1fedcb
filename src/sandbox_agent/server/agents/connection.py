"""One agent process under one server id: its pipes, its request ids, its feed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import anyio

from sandbox_agent.engine.correlate import (
    EVERYONE,
    UNNAMED,
    Correlator,
    MatchedResponse,
    Submitted,
)
from sandbox_agent.engine.feed import SENT, Feed, Slice
from sandbox_agent.engine.ndjson import LineFramer
from sandbox_agent.engine.repair import LineReader
from sandbox_agent.errors import (
    AgentProcessExitedError,
    GoneError,
    InvalidRequestError,
    RequestTimeoutError,
    StreamError,
)
from sandbox_agent.runtime.process import ExitStatus, Process
from sandbox_agent.server.agents.clients import Clients, sent_event
from sandbox_agent.server.agents.exits import count_exit, exit_error
from sandbox_agent.server.agents.openings import (
    OPENING_METHODS,
    Configuration,
    add_servers,
    prepare,
    report_left_out,
)
from sandbox_agent.server.agents.publication import Publication
from sandbox_agent.server.agents.repeats import Repeats, identify
from sandbox_agent.server.agents.responses import Responses
from sandbox_agent.server.agents.spill import Spiller
from sandbox_agent.server.agents.stderr import with_stderr
from sandbox_agent.server.agents.workspaces import Workspaces
from sandbox_agent.server.files.baselines import Baselines
from sandbox_agent.server.streams.usage import Usage
from sandbox_agent.server.streams.viewers import Signal
from sandbox_agent.wire.jsonrpc import NO_ID, Head, InvalidEnvelopeError, dumps

if TYPE_CHECKING:
    from sandbox_agent.server.recorder import Recorder, Tap

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# An agent that closed its stdout can't be heard any more; it has this long to exit by itself.
EOF_EXIT_SECONDS = 1.0
# An agent that closed its stdin is about to exit, or is being stopped (a second and a bit); its exit explains
# more than a broken pipe.
BROKEN_PIPE_EXIT_SECONDS = 2.0
# The agent may take any time for these.
UNTIMED_METHODS = frozenset({"session/prompt"})

Adapter = Callable[[str | None, bytes], bytes]


class AgentConnection:
    """A running agent and its feed. The feed outlives it until the server id is used again or deleted.

    Args:
        server_id: the id in the path.
        agent: the agent's id.
        process: its process; from here on owned by run().
        spiller: keeps the feed within its memory.
        request_timeout: seconds for requests other than session/prompt.
        adapt: changes an envelope that is sent, for agents that are strict.
        recorder: records all envelopes; None for a connection that is not a session's.
        env: the variables that the agent got besides those that agents inherit.
        configuration: what sessions get by their folder; None without.
        baselines: records the workspaces of the sessions that clients create; None without.

    Attributes:
        tap: records the connection.
        clients: the named clients: who reads the feed, and what they sent.
        usage: the clients that use the connection.
        managed: a session of the server uses it, and ends it.
        on_request: called with every request of the agent and its head.
        stopping: whether the agent is being ended on purpose.
        initialized: the agent's response to initialize; None before.
        opened: the agent's newest response to session/new, with what it offers; None before.
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
        env: Mapping[str, str] | None = None,
        configuration: Configuration | None = None,
        baselines: Baselines | None = None,
    ) -> None:
        self.server_id = server_id
        self.env: dict[str, str] = dict(env or {})
        self.agent = agent
        self.created_at_ms: int = time.time_ns() // 1_000_000
        self._created = self._turn_active = time.monotonic()
        self._publication = Publication(spiller)
        self.signal: Signal = self._publication.signal
        self.feed: Feed = self._publication.feed
        self.usage: Usage = Usage()
        self.managed: bool = False
        self.ended: asyncio.Event = asyncio.Event()
        self.tap: Tap | None = recorder and recorder.tap(self.feed.epoch, server_id, agent)
        self.on_request: Callable[[Head, bytes], None] | None = None
        self.clients: Clients = Clients()
        self._recorder = recorder
        self._loop = asyncio.get_running_loop()  # kept: Python 3.11 makes a system call for it each time
        self._process = process
        self._spiller = spiller
        self._timeout = request_timeout
        self._adapt = adapt
        self._configuration = configuration
        self._workspaces = Workspaces(agent, baselines)
        self._framer = LineFramer()
        self._correlator = Correlator()
        self._reader = LineReader(self._correlator)
        self._responses = Responses(agent, request_timeout)
        self._repeats = Repeats()
        self._status: ExitStatus | None = None
        self._excess: str | None = None
        self.stopping: bool = False
        self.initialized: bytes | None = None
        self.opened: bytes | None = None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._status is None

    @property
    def pid(self) -> int:
        """The process id of the agent."""
        return self._process.pid

    @property
    def uptime_ms(self) -> int:
        """Milliseconds since it was created, whatever the wall clock does."""
        return round((time.monotonic() - self._created) * 1000)

    @property
    def runs_turn(self) -> bool:
        """Whether a turn runs or waits for an answer of the client."""
        return self._correlator.prompted

    @property
    def idle_seconds(self) -> float | None:
        """How long no client has used the connection and no turn was active; None while that is so.

        A turn in which the agent waits for an answer is active only until the agent's last output.
        """
        idle = self.usage.idle_seconds
        if idle is None or (self._correlator.prompted and not self._correlator.agent_waits):
            return None
        return min(idle, time.monotonic() - self._turn_active)

    @property
    def prompts(self) -> int:
        """How many prompts were sent to the agent."""
        return self._correlator.prompts

    @property
    def finished(self) -> bool:
        """Whether the feed is closed: the server id was deleted or is used by another process."""
        return self._publication.closed

    # the agent's output

    async def run(self) -> None:
        """Read the agent until it ends. Its owner calls this once, in a task of its own."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._process.pump_stderr)
            tasks.start_soon(self._read_output)
            await self._process.wait()
            tasks.cancel_scope.cancel()
        await self._process.sweep()  # first: a grandchild that writes would keep the pipe from draining
        self._end(await self._process.wait())

    async def _read_output(self) -> None:
        try:
            await self._pump()
        except Exception:  # the boundary: a failure with one agent must not end the others
            logger.exception("the output of agent %s can't be processed: ending it", self.agent)
            await self._process.stop()

    async def _pump(self) -> None:
        """Read stdout, with backpressure: while the store can't keep up, the pipe is not read."""
        while await self._process.stdout.listen(self._receive):
            await self._spiller.spill_excess()
            if self._recorder is not None:
                await self._recorder.wait_below_limit()
        await anyio.sleep(EOF_EXIT_SECONDS)
        logger.warning("agent %s closed its stdout and still runs: ending it", self.agent)
        await self._process.stop()

    def _receive(self, data: bytes) -> bool:
        """Process bytes of stdout; return whether to continue at once."""
        self._deliver(self._framer.feed(data))
        return not (
            self._spiller.memory.over_limit or (self._recorder is not None and self._recorder.over_limit)
        )

    def _end(self, status: ExitStatus) -> None:
        """Deliver what the process left in its pipes, then publish its exit, without a pause."""
        for data in self._process.stdout.read_leftover():
            self._deliver(self._framer.feed(data))
        self._deliver(self._framer.finish())
        self._process.drain_stderr()
        self._process.close()
        self._status = status
        self._excess = self._excess or (None if self.stopping else status.excess)
        count_exit(self.agent, killed=bool(self._excess), stopped=self.stopping)
        params: dict[str, object] = {"success": status.success, "code": status.code}
        if self._excess is not None:
            params["reason"] = self._excess
        if self.tap is not None and self.stopping:
            self.tap.stop()
        self.announce("_adapter/agent_exited", params)
        if self.tap is not None:
            self.tap.close()
        self._workspaces.end()
        error = self._exit_error()
        for pending in self._correlator.fail_all():
            future = self._responses.remove(pending)
            if future is not None:
                future.set_exception(error)
        self.ended.set()

    def _exit_error(self) -> AgentProcessExitedError:
        return exit_error(self.agent, self._status, self._excess, self._process.stderr_tail)

    def _deliver(self, lines: Sequence[bytes]) -> None:
        """Record the agent's lines, and pass them to the requests that wait for them and to the feed."""
        if self._correlator.prompted:
            self._turn_active = time.monotonic()
        for messages, heads in self._reader.read(lines):
            if messages:
                self._deliver_messages(messages, heads)

    def _deliver_messages(self, lines: Sequence[bytes], heads: Sequence[Head]) -> None:
        if self.tap is not None:
            self.tap.received(lines)
        published = 0
        answers: list[MatchedResponse] = []
        for position, head in enumerate(heads):
            if head.id is NO_ID:
                continue
            if head.method is not None:
                self._correlator.register_agent_request(head)
                if self.on_request is not None:
                    self.on_request(head, lines[position])
            elif (answer := self._correlator.match_response(head, lines[position])) is not None:
                self._publication.add(lines[published:position], EVERYONE)
                self._publication.add([answer.feed_line], answer.pending.client)
                answers.append(answer)
                published = position + 1
        self._publication.add(lines[published:], EVERYONE)
        if not answers:
            self._publication.publish()
            return
        for answer in answers:
            if answer.pending.method == "session/new":
                self.opened = answer.line
            elif answer.pending.method == "initialize":
                self.initialized = answer.line
            future = self._responses.remove(answer.pending)
            if future is not None:
                future.set_result(answer.line)
        # Waiting requests are answered first; the feed follows before the loop reads any pipe again.
        self._loop.call_soon(self._publication.publish)

    def announce(self, method: str, params: Mapping[str, object]) -> None:
        """Record a notification of the server in all sessions, and append it to the feed."""
        line = dumps({"jsonrpc": "2.0", "method": method, "params": params})
        if self.tap is not None:
            self.tap.received([line])
        self._publication.add([line], EVERYONE)
        self._publication.publish()

    async def read(self, cursor: int, viewer: str, *, max_bytes: int) -> Slice:
        """Return what is in the feed after the cursor, from memory or from the spill."""
        return await self._publication.read(cursor, viewer, max_bytes=max_bytes)

    # the agent's input

    async def send(
        self,
        client: str,
        head: Head,
        envelope: bytes,
        *,
        key: str | None = None,
        wait: float | None = None,
    ) -> bytes | None:
        """Send a client's envelope to the agent, and wait for the response to a request (see submit).

        An envelope that was sent before (see repeats) is not sent again: its response is returned. A caller
        that is cancelled or times out leaves the request running: its response will be in the feed.

        Args:
            client: the client's name, or UNNAMED.
            head: the envelope's, from read_head.
            envelope: one JSON-RPC object.
            key: the Idempotency-Key: identifies a notification or a response, and is in the ``sent`` event.
            wait: how long to wait for the response, in seconds; None waits until the request's timeout.

        Returns:
            The agent's response with the client's id; None for other envelopes, or when the wait has ended.

        Raises:
            AgentProcessExitedError: the agent has ended, or ends before it responds.
            RequestTimeoutError: the agent did not read the envelope, or did not respond, in time.
            GoneError: the agent has responded, and the server no longer keeps the response.
        """
        identity = identify(client, head, envelope, key)
        if identity is None:
            response = await self.submit(client, head, envelope, key=key)
        elif self._repeats.is_closed(identity):
            return self._repeated_response(identity, head, wait)
        else:
            response = await self._repeats.deliver(
                identity, lambda: self.submit(client, head, envelope, key=key, timed=False)
            )
        if response is None:
            return None
        if wait is not None and not (wait and (await asyncio.wait({response}, timeout=wait))[0]):
            response.add_done_callback(_retrieve)
            return None
        if identity is None:
            return await response
        timeout = None if head.method in UNTIMED_METHODS else self._timeout
        await asyncio.wait({response}, timeout=timeout)  # others may wait for it, too
        if not response.done():
            raise self._responses.timed_out(head.method)
        return response.result()

    def _repeated_response(self, identity: bytes, head: Head, wait: float | None) -> bytes | None:
        if wait == 0 or not head.is_request:
            return None
        response = self._repeats.response(identity)
        if response is None and wait is None:
            raise GoneError(
                f"gone: {self.agent} has responded to this {head.method} already, and the server no longer "
                "keeps the response; it is in the event stream"
            )
        return response

    async def submit(
        self,
        client: str,
        head: Head,
        envelope: bytes,
        *,
        key: str | None = None,
        stored_first: bool = False,
        timed: bool = True,
    ) -> asyncio.Future[bytes] | None:
        """Record a client's envelope and write it to the agent.

        Args:
            client: the client's name, or UNNAMED.
            head: the envelope's, from read_head.
            envelope: one JSON-RPC object.
            key: the Idempotency-Key; a named client's envelope that has one is in the feed as ``sent``.
            stored_first: write a request only once the store has it, however long that takes.
            timed: whether the response fails when it is late.

        Returns:
            The future response of a request, with the client's id; it fails as send() does.

        Raises:
            InvalidRequestError: the envelope's id is invalid, or the folder's configuration is damaged.
            AgentProcessExitedError: the agent has ended, or ends before it reads the envelope.
            RequestTimeoutError: the agent did not read the envelope in time.
            StreamError: the agent does not read its input and does not exit.
        """
        additions = await prepare(
            self._configuration, head, envelope, agent=self.agent, env=self.env, initialized=self.initialized
        )
        await self._workspaces.wait(head, envelope)
        submitted = self._correlate(client, head, envelope)
        if submitted.line is None:
            return None
        timeout = None if submitted.method in UNTIMED_METHODS else self._timeout
        pending = submitted.pending
        sent = None if client == UNNAMED or key is None else (key, sent_event(client, key, envelope))
        if pending is None:
            await self._write(client, submitted, submitted.line, timeout, sent, record=submitted.line)
            return None
        line = add_servers(submitted.line, additions.servers)
        response = self._responses.add(pending)
        if not self.managed:
            self._workspaces.watch(head, envelope, response)
        try:
            if stored_first and self.tap is not None:
                await self._store_first(self.tap, client, submitted, submitted.line)
                await self._write(client, submitted, line, timeout, sent)
            else:
                await self._write(client, submitted, line, timeout, sent, record=submitted.line)
        except BaseException:
            self._responses.remove(pending)
            if not response.cancel():
                _retrieve(response)  # the caller gets the error of the write instead
            raise
        # A caller that is cancelled while it waits cancels the future.
        response.add_done_callback(lambda _: self._responses.remove(pending))
        response.add_done_callback(partial(report_left_out, self.announce, additions, envelope))
        if timed and timeout is not None:
            self._responses.start_timer(submitted)
        return response

    def submit_nowait(self, client: str, head: Head, envelope: bytes) -> asyncio.Future[bytes] | None:
        """Send a request if the agent reads it at once.

        Returns:
            The future response, as of submit(); None if nothing was sent: the envelope is not a request,
            opens a session or may have to wait, or the agent has ended or does not read now.
        """
        if self._status is not None or not head.is_request or head.method in OPENING_METHODS:
            return None
        if self._workspaces.may_hold(head):
            return None
        submitted = self._correlate(client, head, envelope)
        if submitted.line is None or submitted.pending is None:
            return None
        if not self._process.write_nowait(submitted.line + b"\n"):
            self._correlator.retract(submitted)
            return None
        if self.tap is not None:
            self.tap.sent(submitted.line, client)
        response = self._responses.add(submitted.pending)
        if submitted.method not in UNTIMED_METHODS:
            self._responses.start_timer(submitted)
        return response

    def _correlate(self, client: str, head: Head, envelope: bytes) -> Submitted:
        if self._status is not None:
            raise self._exit_error()
        try:
            return self._correlator.submit(client, head, self._adapt(head.method, envelope))
        except InvalidEnvelopeError as error:
            raise InvalidRequestError(f"invalid request: {error}") from None

    def awaits(self, request_id: bytes) -> bool:
        """Return whether the agent's request of that id (JSON) still has no response."""
        return self._correlator.awaits(request_id)

    async def _store_first(self, tap: Tap, client: str, submitted: Submitted, line: bytes) -> None:
        tap.sent(line, client)
        try:
            await tap.wait_stored()
        except BaseException:
            self._correlator.retract(submitted)
            raise

    async def _write(
        self,
        client: str,
        submitted: Submitted,
        line: bytes,
        timeout: float | None,
        sent: tuple[str, bytes] | None,
        *,
        record: bytes | None = None,
    ) -> None:
        begun = asyncio.Event()

        def begin() -> None:
            begun.set()
            if record is not None and self.tap is not None:
                self.tap.sent(record, client)
            if sent is not None:
                self.clients.sent(sent[0])
                self._publication.add([sent[1]], SENT)
                self._publication.publish()

        if self._process.write_nowait(line + b"\n"):
            begin()
            return

        try:
            async with asyncio.timeout(timeout):
                await self._process.write(line + b"\n", on_begin=begin)
        except TimeoutError:
            if begun.is_set():
                raise self._responses.timed_out(submitted.method) from None
            self._correlator.retract(submitted)
            raise RequestTimeoutError(
                f"timeout: {self.agent} read no input for {self._timeout:g} s and was not sent "
                f"{submitted.method or 'the answer'}: send it again, or DELETE the connection"
            ) from None
        except BrokenPipeError:
            try:
                async with asyncio.timeout(BROKEN_PIPE_EXIT_SECONDS):
                    await self.ended.wait()
            except TimeoutError:
                raise StreamError(
                    f"stream error: {self.agent} closed its stdin but still runs; DELETE the connection"
                ) from None
            raise self._exit_error() from None

    def with_stderr(self, response: bytes) -> bytes:
        """Return an error response with the end of stderr; other responses are returned unchanged."""
        return with_stderr(response, self._process.stderr_tail)

    async def stop(self) -> None:
        """End the agent and wait until its feed says so."""
        self.stopping = True
        await self._process.stop()
        await self.ended.wait()

    async def kill(self, reason: str) -> None:
        """End the agent because it uses too much: its exit says so."""
        self._excess = reason
        await self._process.kill()

    async def close(self) -> None:
        """End the agent, the feed and its viewers."""
        await self.stop()
        await self._publication.close()


def _retrieve(response: asyncio.Future[bytes]) -> None:
    """Mark an exception as retrieved: no caller waits for the response."""
    if not response.cancelled():
        response.exception()
