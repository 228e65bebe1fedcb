"""Programs for type checkers. ``# error`` ends the lines in which they have to find one."""

OPTIONS = """
from sandbox_agent import ClientOptions, CreateSessionResponse, SandboxAgent, ServerSessionOptions
from sandbox_agent import Session, SessionOptions, sync

async def connect(client: ClientOptions) -> None:
    SandboxAgent.connect("http://127.0.0.1:2468", **client)
    SandboxAgent.connect("http://127.0.0.1:2468", tokn="x")  # error

async def use(sdk: SandboxAgent, options: SessionOptions, on_server: ServerSessionOptions) -> None:
    session: Session = await sdk.create_session(agent="claude", **options)
    await sdk.create_session(agent="an-agent-of-my-own", permision_mode="ask")  # error
    await sdk.create_session(agent="claude", permission_mode="asks")  # error
    made: CreateSessionResponse = await sdk.create_session("s", agent="claude", agent_mode="plan")
    await sdk.create_session("s", agent="claude", agent_mod="plan")  # error
    await sdk.resume_session("s", take_over=True, env={"A": "b"})
    await sdk.resume_session("s", takeover=True)  # error
    await sdk.resume_or_create_session(id="s", agent="codex", modle="x")  # error
    await sdk.sessions.create("s", agent="claude", **on_server)
    await sdk.sessions.create("s", agent="claude", titel="x")  # error
    events = await sdk.get_events("s", offset=3)
    print(events.has_more, (await sdk.get_events(session_id="s")).next_cursor, session, made)
    await sdk.get_events("s", cursor="x")  # error

def use_sync(sdk: sync.SandboxAgent) -> None:
    session: sync.Session = sdk.create_session(agent="claude", mode="plan")
    sdk.create_session(agent="claude", moode="plan")  # error
    print(sdk.create_session("s", agent="claude").healthy, session)
    print(sdk.get_events("s").events, sdk.get_events(session_id="s").items)
"""

DRIVERS = """
from typing import Any
from sandbox_agent import ListEventsRequest, ListPage, ListPageRequest, SandboxAgent
from sandbox_agent import SessionEvent, SessionRecord

class WithoutTypes:
    async def getSession(self, id: Any) -> Any: return None
    async def listSessions(self, request: Any) -> Any: return {"items": []}
    async def updateSession(self, session: Any) -> Any: pass
    async def listEvents(self, request: Any) -> Any: return {"items": []}
    async def insertEvent(self, event: Any) -> Any: pass

class WithTypes:
    async def get_session(self, session_id: str) -> SessionRecord | None:
        return None
    async def list_sessions(self, request: ListPageRequest) -> ListPage[SessionRecord]:
        return ListPage([])
    async def update_session(self, session: SessionRecord) -> None: ...
    async def list_events(self, request: ListEventsRequest) -> ListPage[SessionEvent]:
        return ListPage([])
    async def insert_event(self, event: SessionEvent) -> None: ...

class Half:
    async def get_session(self, session_id: str) -> SessionRecord | None:
        return None

SandboxAgent.connect("http://127.0.0.1:2468", persist=WithTypes())
SandboxAgent.connect("http://127.0.0.1:2468", persist=WithoutTypes())
SandboxAgent.connect("http://127.0.0.1:2468", persist=Half())  # error
SandboxAgent.connect("http://127.0.0.1:2468", persist=3)  # error
"""

EVENTS = """
from typing import assert_type
from sandbox_agent import AgentEvent, ErrorData, ItemDeltaData, ItemEventData, SandboxAgent, SQLiteSink
from sandbox_agent import TurnEventData, UniversalEvent, sync

def by_type(event: AgentEvent) -> str:
    if event.type == "item.delta":
        assert_type(event.data, ItemDeltaData)
        return event.data.delta
    if event.type == "turn.ended" or event.type == "turn.started":
        assert_type(event.data, TurnEventData)
    match event.type:
        case "error":
            assert_type(event.data, ErrorData)
        case "item.started" | "item.completed":
            assert_type(event.data, ItemEventData)
            return event.data.item.kind
        case _:
            print(event.data.delta)  # error
    if event.type == "item.strated":  # error
        return ""
    return any_type(event)

def any_type(event: UniversalEvent) -> str:
    return event.data.delta if isinstance(event.data, ItemDeltaData) else event.type

async def streams(sdk: SandboxAgent) -> list[UniversalEvent]:
    async for event in sdk.stream_events("s"):
        print(by_type(event))
    async for event in sdk.sessions.stream_turn("s", "hello"):
        print(by_type(event))
    page = await sdk.get_events("s", offset=0)
    await SQLiteSink("mirror.db").insert_events("s", page.events)
    return [event for event in page.events if event.type == "error"]

def sync_streams(sdk: sync.SandboxAgent) -> None:
    for event in sdk.sessions.stream_events("s"):
        if event.type == "error":
            print(event.data.message, by_type(UniversalEvent.from_dict(event.to_dict())))

made = UniversalEvent("e", 1, "t", "s", "agent", False, "item.delta", ItemDeltaData("i", "text"))
print(by_type(made), any_type(made), made.data.delta)
UniversalEvent("e", 1, "t", "s", "agent", False, "item.delt", ItemDeltaData("i", "text"))  # error

class Sink:
    async def last_sequence(self, session_id: str, /) -> int:
        return 0
    async def insert_events(self, session_id: str, events: list[AgentEvent], /) -> None:
        print([by_type(event) for event in events])

async def mirror(sdk: SandboxAgent) -> None:
    await sdk.sessions.mirror("s", into=SQLiteSink("mirror.db"))
    await sdk.sessions.mirror("s", into=3)  # error
"""

AGENTS = """
from sandbox_agent import AgentId

known: AgentId = "claude"
own: AgentId = "an-agent-of-my-own"
wrong: AgentId = 3  # error
"""
