"""Drivers without a base class keep to what all do, in each spelling of the TypeScript SDK's examples."""

# ruff: noqa: A002, N802

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from sandbox_agent import (
    InMemorySessionPersistDriver,
    ListEventsRequest,
    ListPage,
    ListPageRequest,
    SandboxAgent,
    SessionEvent,
    SessionPersistDriver,
    SessionRecord,
)
from sandbox_agent.persist.plain import adapt_driver
from sandbox_agent.testing.driver_data import make_event
from sandbox_agent.testing.drivers import SessionPersistDriverSuite
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio


def store() -> InMemorySessionPersistDriver:
    return InMemorySessionPersistDriver(max_events_per_session=100_000)


class Keywords:
    """Python's names and keywords, and typed values."""

    def __init__(self) -> None:
        self.kept = store()

    async def get_session(self, session_id: str) -> SessionRecord | None:
        return await self.kept.get_session(session_id)

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        return await self.kept.list_sessions(limit=limit, cursor=cursor)

    async def update_session(self, session: SessionRecord) -> None:
        await self.kept.update_session(session)

    async def list_events(
        self, session_id: str, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        return await self.kept.list_events(session_id, limit=limit, cursor=cursor)

    async def insert_event(self, session_id: str, event: SessionEvent) -> None:
        await self.kept.insert_event(session_id, event)


class Requests:
    """Requests, an event without its session, and dicts with Python's names."""

    def __init__(self) -> None:
        self.kept = store()

    async def get_session(self, id: str) -> Any:
        found = await self.kept.get_session(id)
        return None if found is None else {name: getattr(found, name) for name in found.__struct_fields__}

    async def list_sessions(self, request: ListPageRequest) -> Any:
        page = await self.kept.list_sessions(limit=request.limit, cursor=request.cursor)
        return {"items": page.items, "next_cursor": page.next_cursor}

    async def update_session(self, session: SessionRecord) -> None:
        await self.kept.update_session(session)

    async def list_events(self, request: ListEventsRequest) -> Any:
        return await self.kept.list_events(request.session_id, limit=request.limit, cursor=request.cursor)

    async def insert_event(self, event: SessionEvent) -> None:
        await self.kept.insert_event(event.session_id, event)


class CamelCase:
    """The names, requests and objects of the TypeScript SDK."""

    def __init__(self) -> None:
        self.kept = store()

    async def getSession(self, id: Any) -> Any:
        found = await self.kept.get_session(id)
        return None if found is None else found.to_dict()

    async def listSessions(self, request: Any) -> Any:
        page = await self.kept.list_sessions(limit=request.limit, cursor=request.cursor)
        return {"items": [each.to_dict() for each in page.items], "nextCursor": page.next_cursor}

    async def updateSession(self, session: Any) -> Any:
        assert session.agentSessionId == session.agent_session_id
        await self.kept.update_session(session)

    async def listEvents(self, request: Any) -> Any:
        page = await self.kept.list_events(request.sessionId, limit=request.limit, cursor=request.cursor)
        return {"items": [each.to_dict() for each in page.items], "nextCursor": page.next_cursor}

    async def insertEvent(self, event: Any) -> Any:
        await self.kept.insert_event(event.sessionId, event)


class WithoutAsync:
    """Methods that return their result at once, as lists."""

    def __init__(self) -> None:
        self.sessions: dict[str, SessionRecord] = {}
        self.events: list[SessionEvent] = []
        self.closed = False

    def get_session(self, id: str) -> SessionRecord | None:
        return self.sessions.get(id)

    def list_sessions(self, request: ListPageRequest) -> list[SessionRecord]:
        return list(self.sessions.values())

    def update_session(self, session: SessionRecord) -> None:
        self.sessions[session.id] = session

    def list_events(self, request: ListEventsRequest) -> list[SessionEvent]:
        return [event for event in self.events if event.session_id == request.session_id]

    def insert_event(self, event: SessionEvent) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed = True


class TestPlainDriver(SessionPersistDriverSuite):
    @pytest.fixture(params=[Keywords, Requests])
    def driver(self, request: pytest.FixtureRequest) -> SessionPersistDriver:
        return adapt_driver(request.param())


class TestPlainDriverOfDicts(SessionPersistDriverSuite):
    @pytest.fixture
    def driver(self) -> SessionPersistDriver:
        return adapt_driver(CamelCase())

    async def test_driver_gives_the_bytes_of_an_envelope_back(self, driver: SessionPersistDriver) -> None:
        """A dict has no bytes: the envelope is equal."""
        await driver.append_events("s", [make_event("e1", payload=b'{ "b":1.0, "a":"\\u00e9" }')])
        [event] = (await driver.list_events("s")).items
        assert event.payload == {"b": 1.0, "a": "é"}


class FirstExample:
    """The driver of the TypeScript SDK's documentation, which stores nothing."""

    async def get_session(self, id: Any) -> Any:
        return None

    async def list_sessions(self, request: Any) -> Any:
        return {"items": []}

    async def update_session(self, session: Any) -> Any:
        pass

    async def list_events(self, request: Any) -> Any:
        return {"items": []}

    async def insert_event(self, event: Any) -> Any:
        pass


class FirstExampleInCamelCase:
    async def getSession(self, id: Any) -> Any:
        return None

    async def listSessions(self, request: Any) -> Any:
        return {"items": []}

    async def updateSession(self, session: Any) -> Any:
        pass

    async def listEvents(self, request: Any) -> Any:
        return {"items": []}

    async def insertEvent(self, event: Any) -> Any:
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    with our_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.mark.parametrize("driver", [FirstExample, FirstExampleInCamelCase])
async def test_a_client_takes_the_driver_of_the_typescript_documentation(
    server: ServerProcess, driver: type
) -> None:
    async with SandboxAgent.connect(server.url, persist=driver()) as sdk:
        session = await sdk.create_session(agent="mock")
        assert await session.ask("echo hello") == "hello"
        assert (await sdk.list_sessions()).items == []


@pytest.mark.parametrize("kind", [Keywords, Requests, CamelCase, WithoutAsync])
async def test_a_client_resumes_a_session_from_a_plain_driver(server: ServerProcess, kind: type) -> None:
    plain = kind()
    async with SandboxAgent.connect(server.url, persist=plain) as sdk:
        session = await sdk.create_session(agent="mock", id=f"plain-{kind.__name__}")
        await session.prompt("echo first")
    async with SandboxAgent.connect(server.url, persist=plain) as sdk:
        resumed = await sdk.resume_session(session.id)
        assert await resumed.ask("echo second") == "second"
        events = (await sdk.get_events(session_id=session.id)).items
        assert [event.event_index for event in events] == [*range(1, len(events) + 1)]
    assert not getattr(plain, "closed", False), "a client closes only what it has opened"


async def test_a_plain_driver_is_closed_with_its_adapter() -> None:
    plain = WithoutAsync()
    async with adapt_driver(plain):
        pass
    assert plain.closed
    await adapt_driver(Keywords()).close()


class Half:
    async def getSession(self, key: str) -> None: ...


class Narrow(Keywords):
    async def list_events(self) -> Any: ...  # pyright: ignore[reportIncompatibleMethodOverride]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (3, "persist must be a SessionPersistDriver or a store URL such as 'sqlite:agent.db', not 3"),
        (Keywords, r"persist must be a SessionPersistDriver, not a class: use Keywords\(...\)"),
        (
            Half(),
            "Half is not a driver: it has no list_se",
        ),
        (
            Narrow(),
            r"Narrow.list_events must take \(session_id, limit=, cursor=\) or \(request\)",
        ),
    ],
)
def test_what_is_no_driver_is_refused_at_once(wrong: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SandboxAgent.connect("http://127.0.0.1:1", persist=wrong)


@pytest.mark.parametrize(
    ("method", "returned", "message"),
    [
        ("get_session", "text", "Wrong.get_session must return SessionRecords, or dicts .*, not str"),
        ("get_session", {"id": 3}, "Wrong.get_session must return SessionRecords, .*: Expected `str`"),
        ("list_sessions", None, "Wrong.list_sessions must return a ListPage, a dict .* not NoneType"),
        ("list_sessions", {"items": [], "nextCursor": 3}, "Wrong.list_sessions must return a ListPage"),
    ],
)
async def test_a_wrong_result_names_the_method(method: str, returned: object, message: str) -> None:
    def wrong(_self: object, _argument: object) -> object:
        return returned

    plain = type("Wrong", (WithoutAsync,), {method: wrong})()
    driver = adapt_driver(plain)
    with pytest.raises(TypeError, match=message):
        await (driver.get_session("s") if method == "get_session" else driver.list_sessions())
