"""The states of workspaces at the start of sessions, from which their differences are made."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync

from sandbox_agent.errors import ConflictError, RequestTimeoutError, SandboxAgentError
from sandbox_agent.persist.store import SessionRow, SessionStore
from sandbox_agent.server.files.snapshots import Difference, Snapshots, WorkTree, find_work_tree
from sandbox_agent.server.files.tree import FileTree

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# A first prompt does not wait longer for the state of its workspace, which is then not recorded.
RECORD_SECONDS: Final = 10.0
COMPARE_SECONDS: Final = 60.0
# An agent that has not created the session by then is not expected to.
NAME_SECONDS: Final = 600.0
PRUNE_SECONDS: Final = 3600.0
# The sessions of newer states may not be stored yet.
PRUNE_AGE_SECONDS: Final = 3600.0
_PAGE: Final = 1000


class Recording:
    """The state of a workspace, which is being recorded.

    Attributes:
        session: the session that it is kept for, once it is named; "" for none.
        made: set when the state is recorded, or will not be.
        named: set when ``session`` is known.
        kept: set when the state is kept, or never will be.
        deadline: until when the state may be made, on the clock of anyio.
    """

    def __init__(self) -> None:
        self.session: str = ""
        self.made: anyio.Event = anyio.Event()
        self.named: anyio.Event = anyio.Event()
        self.kept: anyio.Event = anyio.Event()
        self.deadline: float = anyio.current_time() + RECORD_SECONDS
        self._scope = anyio.CancelScope(deadline=self.deadline)
        self._given_up = False

    @contextmanager
    def making(self) -> Generator[None]:
        """Make the state in this context, which ends early at the deadline or when it is given up.

        Raises:
            TimeoutError: it was not made: what was read so far counts for nothing.
        """
        with self._scope:
            yield
        self._given_up = self._given_up or self._scope.cancelled_caught
        self.made.set()
        if self._given_up:
            raise TimeoutError

    def give_up(self) -> None:
        """Do not record the state unless it is made: the workspace may change from now on."""
        if not self.made.is_set():
            self._given_up = True
            self._scope.cancel()
            self.made.set()

    def name(self, session: str) -> None:
        """Keep it for a session (see ``name_of``), or drop it: "". Only the first call counts."""
        if not self.named.is_set():
            self.session = session
            self.named.set()


class Baselines:
    """Records the states of workspaces, and compares workspaces with them.

    Args:
        tree: the files that the server gives access to: of others, there are no differences.
        folder: where the states are kept.
        store: the sessions that exist; the states of others are deleted.
    """

    def __init__(self, tree: FileTree, folder: Path, store: SessionStore) -> None:
        self._tree = tree
        self._snapshots = Snapshots(folder)
        self._store = store
        self._tasks: TaskGroup | None = None
        self._recording: set[Recording] = set()

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """Record while the context lasts."""
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._prune)
            try:
                yield
            finally:
                self._tasks.cancel_scope.cancel()
        self._tasks = None

    def begin(self, directory: str) -> Recording:
        """Record the state of a workspace that an agent is about to work in."""
        recording = Recording()
        if self._tasks is None:
            recording.made.set()
        else:
            self._recording.add(recording)
            self._tasks.start_soon(self._record, recording, directory)
        return recording

    async def compare(self, row: SessionRow) -> Difference:
        """Return how the workspace of a session differs from its state at the start.

        Raises:
            ConflictError: the workspace is not in a Git repository, its state was not recorded, or Git is not
                installed.
            PermissionDeniedError: ``--fs-root`` excludes the workspace.
            RequestTimeoutError: it took too long.
        """
        tree = await run_sync(self._find, row.directory or "")
        if tree is None:
            raise ConflictError(
                f"conflict: the workspace of this session, {row.directory}, is not in a Git repository"
            )
        name = name_of(row)
        for recording in list(self._recording):
            if recording.session == name:
                await recording.kept.wait()
        if not await run_sync(self._snapshots.has, tree, name):
            raise ConflictError(
                f"conflict: the state of {tree.top} at the start of this session was not recorded: it was "
                "not a Git repository then, Git was not installed, or it was too large"
            )
        try:
            with anyio.fail_after(COMPARE_SECONDS):
                return await self._snapshots.compare(tree, name)
        except TimeoutError:
            raise RequestTimeoutError(
                f"timeout: {tree.top} could not be compared within {COMPARE_SECONDS:g} s: let .gitignore "
                "name what is made by a build"
            ) from None

    def _find(self, directory: str) -> WorkTree | None:
        if not directory.startswith("/"):
            return None
        tree = find_work_tree(directory)
        if tree is not None:
            for folder in tree:  # each must be one that the server gives access to
                with self._tree.open_folder(str(folder)):
                    pass
        return tree

    async def _record(self, recording: Recording, directory: str) -> None:
        tree: WorkTree | None = None
        found: str | None = None
        try:
            with recording.making():
                tree = await run_sync(self._find, directory)
                if tree is not None:
                    found = await self._snapshots.take(tree)
            if tree is None or found is None:
                return
            with anyio.move_on_after(NAME_SECONDS):
                await recording.named.wait()
            if recording.session:
                await self._snapshots.keep(tree, recording.session, found)
        except TimeoutError:
            logger.info("the state of %s is not recorded: it took too long", directory)
        except SandboxAgentError as error:
            logger.info("the state of %s is not recorded: %s", directory, error)
        except Exception:  # the boundary: what is in a workspace must not end the server
            logger.exception("the state of %s is not recorded", directory)
        finally:
            recording.made.set()
            recording.kept.set()
            self._recording.discard(recording)

    async def _prune(self) -> None:
        while True:
            try:
                before = time.time() - PRUNE_AGE_SECONDS
                names = {name_of(row) async for row in self._rows()}
                await run_sync(self._snapshots.prune, names, before)
            except (SandboxAgentError, OSError) as error:
                logger.warning("states of deleted sessions are not deleted: %s", error)
            await anyio.sleep(PRUNE_SECONDS)

    async def _rows(self) -> AsyncIterable[SessionRow]:
        cursor: str | None = None
        while True:
            rows, cursor = await self._store.sessions(limit=_PAGE, cursor=cursor)
            for row in rows:
                yield row
            if cursor is None:
                return


def name_of(row: SessionRow) -> str:
    """Return the name of a session's state: an agent's session may have another id in each store."""
    return (
        managed_name(row.session_id) if row.managed else native_name(row.agent, row.native_session_id or "")
    )


def managed_name(session_id: str) -> str:
    """Return the name of the state of a session that the server drives."""
    return f"session\0{session_id}"


def native_name(agent: str, native_session_id: str) -> str:
    """Return the name of the state of a session that a client drives."""
    return f"agent\0{agent}\0{native_session_id}"
