"""The mock agent's sessions with their settings, in memory and optionally in a folder that outlives it."""

from __future__ import annotations

import json
import os
import threading
import time

from sandbox_agent.agents.mock.peer import NOT_FOUND, RpcError, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    JsonObject = dict[str, Any]
    Choices = dict[str, list[tuple[str, str, str]]]

# The (value, name, description) of each choice, by config id.
CHOICES: dict[str, list[tuple[str, str, str]]] = {
    "mode": [
        ("default", "Default", "Asks before it pretends to do something dangerous"),
        ("acceptEdits", "Accept Edits", "Pretends to edit without asking"),
        ("plan", "Plan Mode", "Plans and does nothing"),
    ],
    "model": [
        ("mock", "Mock", "Says what it is told to"),
        ("mock-fast", "Mock Fast", "The same, sooner"),
    ],
    "thought_level": [
        ("low", "Low", "Thinks little"),
        ("medium", "Medium", "Thinks"),
        ("high", "High", "Thinks a lot"),
    ],
}
_TITLES = {
    "mode": ("Mode", "Session permission mode"),
    "model": ("Model", "AI model to use"),
    "thought_level": ("Thought level", "How long the model thinks before it answers"),
}
DEFAULTS = {"mode": "default", "model": "mock", "thought_level": "medium"}


def _open_private(path: str, flags: int) -> int:
    # A conversation is its owner's.
    return os.open(path, flags, 0o600)


class Session:
    """A session.

    Its file is a journal with one JSON object per line: first ``{"session": …}``, then ``{"update": …}``,
    ``{"settings": …}`` and ``{"title": …}`` as they happen.
    """

    def __init__(self, session_id: str, cwd: str, path: str | None, choices: Choices = CHOICES) -> None:
        self.id = session_id
        self.cwd = cwd
        self.title: str | None = None
        self.updated_at: str = _now()
        self.settings: dict[str, str] = {
            config_id: DEFAULTS[config_id] if choices is CHOICES else values[0][0]
            for config_id, values in choices.items()
        }
        self.history: list[JsonObject] = []
        self._path = path
        self._choices = choices
        self._lock = threading.Lock()

    def values(self, config_id: str) -> list[str]:
        """Return the allowed values of an option, or an empty list if the option does not exist."""
        return [value for value, _, _ in self._choices.get(config_id, [])]

    def state(self) -> JsonObject:
        """Return ACP's ``modes`` and ``configOptions``, as responses of ``session/new`` have them."""
        modes = {"modes": self._modes()} if "mode" in self._choices else {}
        return {**modes, "configOptions": self.config_options()}

    def config_options(self) -> list[JsonObject]:
        """Return ACP's ``configOptions``. Each id equals its category."""
        return [
            {
                "id": config_id,
                "name": _TITLES[config_id][0],
                "description": _TITLES[config_id][1],
                "category": config_id,
                "type": "select",
                "currentValue": self.settings[config_id],
                "options": [
                    {"value": value, "name": name, "description": description}
                    for value, name, description in choices
                ],
            }
            for config_id, choices in self._choices.items()
        ]

    def _modes(self) -> JsonObject:
        return {
            "currentModeId": self.settings["mode"],
            "availableModes": [
                {"id": value, "name": name, "description": description}
                for value, name, description in self._choices["mode"]
            ],
        }

    def record(self, update: JsonObject) -> None:
        """Store an update for ``session/load``."""
        self.apply({"update": update})

    def apply(self, entry: JsonObject, *, write: bool = True) -> None:
        """Apply a journal entry. Unless it was read from the journal, write it there."""
        with self._lock:
            if "update" in entry:
                self.history.append(entry["update"])
            elif "settings" in entry:
                self.settings.update(entry["settings"])
            elif "title" in entry:
                self.title = entry["title"]
            self.updated_at = entry.setdefault("at", _now())
            if write and self._path is not None:
                with open(self._path, "ab", buffering=0, opener=_open_private) as journal:
                    journal.write(encode(entry) + b"\n")

    def info(self) -> JsonObject:
        """Return ACP's SessionInfo."""
        return {"sessionId": self.id, "cwd": self.cwd, "title": self.title, "updatedAt": self.updated_at}


class SessionStore:
    """The sessions of this process and of its folder.

    Args:
        folder: Where to store sessions, or None for memory only.
        choices: The values of the sessions' options.
    """

    def __init__(self, folder: str | None, choices: Choices = CHOICES) -> None:
        self._folder = folder
        self._choices = choices
        self._sessions: dict[str, Session] = {}
        if folder is not None:
            os.makedirs(folder, 0o700, exist_ok=True)  # noqa: PTH103 - pathlib costs start-up

    def create(self, cwd: str) -> Session:
        """Create a session."""
        raw = os.urandom(16).hex()
        session_id = f"mock-{raw[:8]}-{raw[8:16]}-{raw[16:]}"
        session = self._sessions[session_id] = Session(session_id, cwd, self._path(session_id), self._choices)
        session.apply({"session": session_id, "cwd": cwd})
        return session

    def get(self, session_id: str) -> Session:
        """Return the session that this process has open.

        Raises:
            RpcError: -32002, the session was neither created nor loaded in this process.
        """
        session = self._sessions.get(session_id)
        if session is None:
            raise RpcError(NOT_FOUND, f"Resource not found: {session_id}", {"uri": session_id})
        return session

    def open(self, session_id: str) -> Session:
        """Return the session, and load it from its file if necessary.

        Raises:
            RpcError: -32002, the session does not exist.
        """
        if session_id not in self._sessions and (session := self._read(session_id)) is not None:
            self._sessions[session_id] = session
        return self.get(session_id)

    def list(self, cwd: str | None) -> list[JsonObject]:
        """Return the info of all sessions, or of those with this working directory, newest first."""
        if self._folder is not None:
            for name in os.listdir(self._folder):  # noqa: PTH208 - pathlib costs start-up
                session_id = name.removesuffix(".jsonl")
                if session_id not in self._sessions and (session := self._read(session_id)) is not None:
                    self._sessions[session_id] = session
        infos = [s.info() for s in self._sessions.values() if cwd is None or s.cwd == cwd]
        return sorted(infos, key=lambda info: str(info["updatedAt"]), reverse=True)

    def _path(self, session_id: str) -> str | None:
        return None if self._folder is None else f"{self._folder}/{session_id}.jsonl"

    def _read(self, session_id: str) -> Session | None:
        path = self._path(session_id)
        # The id comes from the client and becomes a file name: accept only what create() generates.
        if path is None or not session_id.replace("-", "").isalnum():
            return None
        try:
            with open(path, "rb") as journal:  # noqa: PTH123 - pathlib costs start-up
                lines = journal.read().splitlines()
            head = json.loads(lines[0])
        except (OSError, ValueError, IndexError):
            return None
        session = Session(session_id, head["cwd"], path, self._choices)
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the process died while writing this line
            session.apply(entry, write=False)
        return session


def _now() -> str:
    seconds = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"
