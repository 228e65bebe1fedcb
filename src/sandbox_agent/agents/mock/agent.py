"""The mock agent's ACP methods, and the loop that reads stdin while turns run."""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time

from sandbox_agent.agents.mock import commands
from sandbox_agent.agents.mock.peer import INVALID_PARAMS, Peer, RpcError, as_list, as_object
from sandbox_agent.agents.mock.sessions import Session, SessionStore
from sandbox_agent.agents.mock.turn import Cancelled, Turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    JsonObject = dict[str, Any]

PROTOCOL_VERSION = 1
VERSION = "1.0.0"
_METHOD_NOT_FOUND, _PARSE_ERROR, _INVALID_REQUEST, _INTERNAL = -32601, -32700, -32600, -32603
_RESTORING = ("session/load", "session/resume", "session/list")
# A deaf agent exits by itself after this many seconds.
_DEAF_LIFETIME = 600


class Agent:
    """Answers the client. Requests are handled in order; each session's turns run in their own thread.

    Attributes:
        info: ACP's ``agentInfo``.
        can_restore: Whether sessions can be loaded and resumed.
        peer: The connection to the client.
    """

    def __init__(self, peer: Peer, store: SessionStore) -> None:
        self.info: JsonObject = {"name": "mock", "title": "Mock", "version": VERSION}
        self.can_restore: bool = True
        self.peer = peer
        self._store = store
        self._turns: dict[str, list[Turn]] = {}
        self._queues: dict[str, queue.SimpleQueue[tuple[Turn, list[JsonObject]] | None]] = {}
        self._lock = threading.Lock()
        self._methods: dict[str, Callable[[JsonObject], JsonObject]] = {
            "initialize": self._initialize,
            "authenticate": lambda _params: {},
            "session/new": self._new,
            "session/load": self._load,
            "session/resume": self._resume,
            "session/list": self._list,
            "session/set_mode": self._set_mode,
            "session/set_config_option": self._set_config_option,
        }

    def handle(self, line: bytes) -> None:
        """Handle one line of stdin."""
        try:
            message = as_object(json.loads(line))
        except (ValueError, RecursionError) as error:
            self.peer.respond(None, RpcError(_PARSE_ERROR, f"Parse error: {error}"))
            return
        if message is None:
            self.peer.respond(None, RpcError(_INVALID_REQUEST, "Invalid Request: expected an object"))
        else:
            self._dispatch(message)

    def _dispatch(self, message: JsonObject) -> None:
        method = message.get("method")
        if method is None:
            self.peer.deliver_response(message)
            return
        self.on_message(str(method), message.get("params"))
        if "id" not in message:
            self._handle_notification(str(method), message.get("params"))
        else:
            try:
                self._handle_request(str(method), message.get("params"), message["id"])
            except RpcError as error:
                self.peer.respond(message["id"], error)

    def on_message(self, method: str, params: object) -> None:
        """Note a request or a notification of the client, before it is handled."""

    def on_setting(self, session: Session, option: str, value: str) -> None:
        """Note an option that the client has set."""

    def _handle_notification(self, method: str, params: object) -> None:
        if method == "session/cancel":
            session_id = (as_object(params) or {}).get("sessionId")
            with self._lock:
                turns = list(self._turns.get(str(session_id), []))
            for turn in turns:
                turn.cancel()

    def _handle_request(self, method: str, params: object, request_id: object) -> None:
        known = self._methods.get(method)
        if method in _RESTORING and not self.can_restore:
            known = None
        if known is None and method != "session/prompt":
            raise RpcError(_METHOD_NOT_FOUND, f'"Method not found": {method}', {"method": method})
        members = {} if params is None else as_object(params)
        if members is None:
            raise RpcError(INVALID_PARAMS, "Invalid params: expected an object")
        if known is None:
            self._prompt(members, request_id)
        else:
            self.peer.respond(request_id, known(members))

    def _initialize(self, params: JsonObject) -> JsonObject:
        version = params.get("protocolVersion")
        if isinstance(version, bool) or not str(version).isdigit():
            raise RpcError(INVALID_PARAMS, "Invalid params: protocolVersion must be a number")
        self.peer.client_capabilities = as_object(params.get("clientCapabilities")) or {}
        return {
            "protocolVersion": PROTOCOL_VERSION,
            "agentInfo": self.info,
            "agentCapabilities": {
                "loadSession": self.can_restore,
                "promptCapabilities": {"image": True, "audio": True, "embeddedContext": True},
                "mcpCapabilities": {"http": True, "sse": True},
                "sessionCapabilities": {"list": {}, "resume": {}} if self.can_restore else {},
            },
            "authMethods": [],
        }

    def _new(self, params: JsonObject) -> JsonObject:
        session = self._store.create(_string(params, "cwd"))
        return {"sessionId": session.id, **session.state()}

    def _load(self, params: JsonObject) -> JsonObject:
        session = self._store.open(_string(params, "sessionId"))
        for update in list(session.history):
            self._update(session, update)
        return session.state()

    def _resume(self, params: JsonObject) -> JsonObject:
        return self._store.open(_string(params, "sessionId")).state()

    def _list(self, params: JsonObject) -> JsonObject:
        cwd = params.get("cwd")
        return {"sessions": self._store.list(None if cwd is None else _string(params, "cwd"))}

    def _set_mode(self, params: JsonObject) -> JsonObject:
        session = self._store.get(_string(params, "sessionId"))
        self._set(session, "mode", _string(params, "modeId"))
        return {}

    def _set_config_option(self, params: JsonObject) -> JsonObject:
        session = self._store.get(_string(params, "sessionId"))
        self._set(session, _string(params, "configId"), _string(params, "value"))
        return {"configOptions": session.config_options()}

    def _set(self, session: Session, config_id: str, value: str) -> None:
        self.set_option(session, config_id, value)
        self.on_setting(session, config_id, value)

    def set_option(self, session: Session, config_id: str, value: str) -> None:
        """Set an option of a session and report it.

        Raises:
            RpcError: -32602, there is no such option or value.
        """
        allowed = session.values(config_id)
        if not allowed:
            raise RpcError(INVALID_PARAMS, f"Invalid params: no config option {config_id!r}")
        if value not in allowed:
            raise RpcError(INVALID_PARAMS, f"Invalid params: {config_id} takes {', '.join(allowed)}")
        session.apply({"settings": {config_id: value}})
        if config_id == "mode":
            self._update(session, {"sessionUpdate": "current_mode_update", "currentModeId": value})
        current = session.config_options()
        self._update(session, {"sessionUpdate": "config_option_update", "configOptions": current})

    def _update(self, session: Session, update: JsonObject) -> None:
        self.peer.notify("session/update", {"sessionId": session.id, "update": update})

    def _prompt(self, params: JsonObject, request_id: object) -> None:
        session = self._store.get(_string(params, "sessionId"))
        blocks = [as_object(block) for block in as_list(params.get("prompt")) or [None]]
        known_blocks = [block for block in blocks if block is not None]
        if len(known_blocks) != len(blocks):
            raise RpcError(INVALID_PARAMS, "Invalid params: prompt must be a list of content blocks")
        turn = Turn(self.peer, session, request_id)
        with self._lock:
            self._turns.setdefault(session.id, []).append(turn)
            work = self._queues.get(session.id)
            if work is None:
                work = self._queues[session.id] = queue.SimpleQueue()
                threading.Thread(target=self._work, args=(work,), daemon=True).start()
        work.put((turn, known_blocks))

    def _work(self, work: queue.SimpleQueue[tuple[Turn, list[JsonObject]] | None]) -> None:
        while (item := work.get()) is not None:
            turn, blocks = item
            try:
                response = self._run(turn, blocks)
            except RpcError as error:
                response = error
            except Exception as error:  # noqa: BLE001 - a bug must end in a response
                response = RpcError(_INTERNAL, f"Internal error: {error!r}")
            self._remove_turn(turn)
            self.peer.respond(turn.request_id, response)

    def _run(self, turn: Turn, blocks: list[JsonObject]) -> JsonObject:
        for block in blocks:
            turn.session.record({"sessionUpdate": "user_message_chunk", "content": block})
        try:
            turn.check()
            self.run_turn(turn, blocks)
        except Cancelled:
            return {"stopReason": "cancelled"}
        return {"stopReason": turn.stop_reason, **({} if turn.usage is None else {"usage": turn.usage})}

    def run_turn(self, turn: Turn, blocks: list[JsonObject]) -> None:
        """Do what a prompt of these content blocks asks for, in the thread of its session."""
        others = [_describe(block) for block in blocks if block.get("type") != "text"]
        if others:
            turn.say(f"I was also sent {', '.join(others)}.\n")
        text = prompt_text(blocks)
        commands.run(turn, "nothing" if text is None else text)

    def close(self) -> None:
        """Cancel all turns, and end their threads: the client has gone."""
        with self._lock:
            turns = [turn for turns in self._turns.values() for turn in turns]
            for work in self._queues.values():
                work.put(None)
        for turn in turns:
            turn.cancel()

    def _remove_turn(self, turn: Turn) -> None:
        with self._lock:
            self._turns[turn.session.id].remove(turn)


def _string(params: JsonObject, name: str) -> str:
    value = params.get(name)
    if not isinstance(value, str) or not value:
        raise RpcError(INVALID_PARAMS, f"Invalid params: {name} must be a string")
    return value


def prompt_text(blocks: list[JsonObject]) -> str | None:
    """Return the user's text, if any: the last one, because in a restored session the history comes first."""
    texts = [str(block.get("text", "")) for block in blocks if block.get("type") == "text"]
    return texts[-1] if texts else None


def _describe(block: JsonObject) -> str:
    kind = str(block.get("type"))
    inner = as_object(block.get("resource")) or block
    facts = [str(inner[key]) for key in ("uri", "mimeType") if inner.get(key)]
    bodies = [inner[key] for key in ("data", "text", "blob") if isinstance(inner.get(key), str)]
    facts += [f"{len(body)} characters" for body in bodies]
    return f"{kind} ({', '.join(facts)})"


def serve() -> int:
    """Serve ACP on stdin and stdout until stdin ends, and return the exit code."""
    peer = Peer(sys.stdout.fileno())

    def terminate(_signal: int, _frame: object) -> None:
        if not peer.deaf:
            os._exit(143)

    def interrupt(_signal: int, _frame: object) -> NoReturn:
        os._exit(130)

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, interrupt)
    try:
        store = SessionStore(os.environ.get("SANDBOX_AGENT_MOCK_STATE") or None)
    except OSError as error:
        sys.stderr.write(f"mock: SANDBOX_AGENT_MOCK_STATE must be a writable folder: {error}\n")
        return 1
    agent = Agent(peer, store)
    for line in sys.stdin.buffer:
        if line.strip():
            agent.handle(line)
    if peer.deaf:
        time.sleep(_DEAF_LIFETIME)
    return 0
