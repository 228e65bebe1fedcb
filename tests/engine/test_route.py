"""Which session an envelope belongs to: tables, and the recorded traffic of eight agents."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sandbox_agent.engine.route import MAX_HELD_BYTES, Held, Route, Router
from sandbox_agent.wire.records import Sender

TRAFFIC = Path(__file__).parent / "golden" / "traffic"
AGENTS = ["claude", "codex", "copilot", "gemini", "goose", "opencode", "pi", "qwen"]


class Seen(NamedTuple):
    """A route, as far as the tables care."""

    to: str
    before: int = 0
    flags: str = ""


def line(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **members}).encode()


def request(number: object, method: str, **params: Any) -> bytes:
    return line(id=number, method=method, params=params)


def told(method: str, **params: Any) -> bytes:
    return line(method=method, params=params)


def update(native: object, text: str = "hi") -> bytes:
    content = {"type": "text", "text": text}
    return told(
        "session/update",
        sessionId=native,
        update={"sessionUpdate": "agent_message_chunk", "content": content},
    )


def result(number: object, **members: Any) -> bytes:
    return line(id=number, result=members)


def error(number: object) -> bytes:
    return line(id=number, error={"code": -1, "message": "no"})


def seen(to: str | Route) -> Seen:
    if isinstance(to, str):
        return Seen(to)
    name = "held" if to.held else "every" if to.every else to.native or ("bound" if to.bound else "none")
    flags = "".join(
        letter for letter, on in (("o", to.opened), ("c", to.closed), ("b", to.bound and to.native)) if on
    )
    return Seen(name, len(to.before), flags)


def run(*steps: tuple[str, bytes], router: Router | None = None) -> list[Seen]:
    router = router or Router()
    senders: dict[str, Sender] = {">": "client", "<": "agent"}
    return [seen(router.route(senders[side], [envelope])[0]) for side, envelope in steps]


NEW = (">", request(1, "session/new", cwd="/w"))
MADE = ("<", result(1, sessionId="A"))

TABLE: dict[str, tuple[Sequence[tuple[str, bytes]], list[Seen]]] = {
    "what is said before a session belongs to the connection": (
        [(">", request(0, "initialize")), ("<", result(0)), ("<", told("_auth/status"))],
        [Seen("none"), Seen("none"), Seen("none")],
    ),
    "a session begins with the request that made it": ([NEW, MADE], [Seen("held"), Seen("A", 1, "o")]),
    "an update before the response brings the request": (
        [NEW, ("<", update("A")), MADE, ("<", update("A"))],
        [Seen("held"), Seen("A", 1, "o"), Seen("A"), Seen("A")],
    ),
    "of two that make sessions nobody knows which an update means": (
        [
            NEW,
            (">", request(2, "session/new", cwd="/v")),
            ("<", update("B")),
            ("<", result(2, sessionId="B")),
            MADE,
        ],
        [Seen("held"), Seen("held"), Seen("B", 0, "o"), Seen("B", 1), Seen("A", 1, "o")],
    ),
    "a request that was taken for another session's is in its own, too": (
        [NEW, ("<", update("child")), MADE],
        [Seen("held"), Seen("child", 1, "o"), Seen("A", 1, "o")],
    ),
    "one that fails belongs to the connection": (
        [NEW, ("<", error(1)), ("<", update("A"))],
        [Seen("held"), Seen("none", 1), Seen("A", 0, "o")],
    ),
    "a history that is told before the response to a load is that session's": (
        [
            (">", request("x", "session/load", sessionId="A", cwd="/w")),
            ("<", update("A")),
            ("<", result("x")),
        ],
        [Seen("held"), Seen("A", 1, "o"), Seen("A")],
    ),
    "a load that fails makes no session": (
        [(">", request(1, "session/load", sessionId="A")), ("<", error(1))],
        [Seen("held"), Seen("none", 1)],
    ),
    "a resume without a history is known by its request": (
        [(">", request(1, "session/resume", sessionId="A")), ("<", line(id=1, result=None))],
        [Seen("held"), Seen("A", 1, "o")],
    ),
    "a load of an open session goes there at once, and so does its failure": (
        [NEW, MADE, (">", request(2, "session/load", sessionId="A")), ("<", error(2))],
        [Seen("held"), Seen("A", 1, "o"), Seen("A"), Seen("A")],
    ),
    "a fork belongs to the new session": (
        [
            NEW,
            MADE,
            (">", request(2, "session/fork", sessionId="A")),
            ("<", result(2, sessionId="F")),
            ("<", update("A")),
        ],
        [Seen("held"), Seen("A", 1, "o"), Seen("held"), Seen("F", 1, "o"), Seen("A")],
    ),
    "a turn and the agent's requests": (
        [
            NEW,
            MADE,
            (">", request(2, "session/prompt", sessionId="A")),
            ("<", request(0, "session/request_permission", sessionId="A")),
            (">", result(0, outcome={"outcome": "cancelled"})),
            ("<", request(0, "_vendor/thing")),
            (">", result(0)),
            (">", told("session/cancel", sessionId="A")),
            ("<", result(2, stopReason="end_turn")),
            ("<", result(2, stopReason="end_turn")),
        ],
        [Seen("held"), Seen("A", 1, "o")]
        + [Seen(name) for name in ("A", "A", "A", "none", "none", "A", "A", "none")],
    ),
    "ids are the same in either spelling": (
        [
            NEW,
            MADE,
            (">", b'{"id":7,"method":"session/prompt","params":{"sessionId":"A"}}'),
            ("<", b'{"id":7.0,"result":{}}'),
            (">", b'{"id":"\\u0061","method":"session/prompt","params":{"sessionId":"A"}}'),
            ("<", b'{"result":{},"id":"a"}'),
        ],
        [Seen("held"), Seen("A", 1, "o"), Seen("A"), Seen("A"), Seen("A"), Seen("A")],
    ),
    "a cancel of a request goes where the request went": (
        [
            NEW,
            MADE,
            (">", request(2, "session/prompt", sessionId="A")),
            (">", told("$/cancel_request", requestId=2)),
            ("<", request("p", "session/request_permission", sessionId="A")),
            ("<", told("$/cancel_request", requestId="p")),
            ("<", told("$/cancel_request", requestId="q")),
        ],
        [Seen("held"), Seen("A", 1, "o"), Seen("A"), Seen("A"), Seen("A"), Seen("A"), Seen("none")],
    ),
    "a closed session is not open": (
        [
            NEW,
            MADE,
            (">", request(2, "session/close", sessionId="A")),
            ("<", result(2)),
            (">", told("session/cancel", sessionId="A")),
            ("<", update("A")),
        ],
        [Seen("held"), Seen("A", 1, "o"), Seen("A"), Seen("A", 0, "c"), Seen("none"), Seen("A", 0, "o")],
    ),
    "a prompt to a session that the agent doesn't know makes none": (
        [
            (">", request(1, "session/prompt", sessionId="X")),
            ("<", error(1)),
            (">", told("session/cancel", sessionId="X")),
        ],
        [Seen("held"), Seen("none", 1), Seen("none")],
    ),
    "a prompt to a session that the agent does know makes one": (
        [(">", request(1, "session/prompt", sessionId="X")), ("<", update("X")), ("<", result(1))],
        [Seen("held"), Seen("X", 1, "o"), Seen("X")],
    ),
    "what the server says of the agent concerns every session": (
        [("<", told("_adapter/agent_exited", code=1)), ("<", told("_adapter/invalid_stdout"))],
        [Seen("every"), Seen("every")],
    ),
    "what the server says of one session concerns that session": (
        [NEW, MADE, ("<", told("_adapter/left_out", sessionId="A"))],
        [Seen("held"), Seen("A", 1, "o"), Seen("A")],
    ),
    "odd envelopes belong to the connection": (
        [
            ("<", b"not json"),
            ("<", b"[1]"),
            ("<", update(7)),
            ("<", line(method="session/update", params=[1])),
            ("<", line(id=None, result={})),
            (">", line(id={"a": 1}, method="x")),
            ("<", update("")),
        ],
        [Seen("none")] * 7,
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_an_envelope_goes_to(name: str):
    steps, expected = TABLE[name]
    assert run(*steps) == expected


def test_a_bound_connection_gives_what_it_makes_to_its_session():
    router = Router()
    router.bind()
    assert run(NEW, ("<", update("A")), MADE, router=router) == [
        Seen("bound"),
        Seen("A", 0, "ob"),
        Seen("A", 0, "b"),
    ]
    assert run(
        (">", request(2, "session/load", sessionId="B")),
        ("<", error(2)),
        (">", request(3, "session/new")),
        ("<", result(3, sessionId="C")),
        ("<", update("stranger")),
        router=router,
    ) == [Seen("bound"), Seen("bound"), Seen("bound"), Seen("C", 0, "ob"), Seen("stranger", 0, "o")]


def test_a_session_that_is_forgotten_is_opened_anew_by_whoever_goes_on():
    router = Router()
    run(NEW, MADE, router=router)
    router.forget("A")
    assert run((">", request(2, "session/prompt", sessionId="A")), ("<", update("A")), router=router) == [
        Seen("held"),
        Seen("A", 1, "o"),
    ]


def test_a_peer_that_asks_for_ever_costs_a_bounded_number_of_requests():
    router = Router(max_pending=10, max_sessions=3)
    for number in range(100):
        run((">", request(number, "session/new")), ("<", request(number, "x/y")), router=router)
    assert router.held_bytes <= 10 * len(request(99, "session/new"))
    opened = [run(("<", update(f"s{number}")), router=router)[0].to for number in range(5)]
    assert opened == ["s0", "s1", "s2", "none", "none"]


def test_what_is_held_is_bounded_in_bytes():
    router = Router()
    big = "x" * (MAX_HELD_BYTES // 2)
    found = run(*[(">", request(number, "session/new", cwd=big)) for number in range(3)], router=router)
    assert [route.to for route in found] == ["held", "none", "none"]
    assert run(("<", result(1, sessionId="A")), router=router) == [Seen("A", 0, "o")]
    # What was released makes room.
    run(("<", result(0, sessionId="B")), router=router)
    assert run((">", request(9, "session/new", cwd=big)), router=router)[0].to == "held"


def test_a_held_request_comes_back_as_it_was_with_its_stamp():
    router = Router()
    router.route("client", [NEW[1]], stamp="then")
    (route,) = router.route("agent", [MADE[1]])
    assert isinstance(route, Route)
    assert route.before == (Held(NEW[1], "then"),)
    assert route.reply is not None
    assert (route.reply.method, route.reply.succeeded) == ("session/new", True)


def test_lines_at_once_go_where_they_go_one_by_one():
    lines = [MADE[1], update("A"), b"garbage", update("A"), update("B"), told("_adapter/x"), update("A")]
    one, many = Router(), Router()
    for router in (one, many):
        router.route("client", [NEW[1]])
    assert [seen(to) for to in many.route("agent", lines)] == [
        seen(to) for part in lines for to in one.route("agent", [part])
    ]


@pytest.mark.parametrize("agent", AGENTS)
def test_recorded_traffic_goes_to_the_sessions_that_it_names(agent: str):
    router = Router()
    placed: dict[str, list[dict[str, Any]]] = {}
    unheld = 0
    for number, text in enumerate((TRAFFIC / f"{agent}.ndjson").read_text().splitlines()):
        row = json.loads(text)
        if row["dir"] not in {"c2a", "a2c"}:
            continue
        sender: Sender = "client" if row["dir"] == "c2a" else "agent"
        (to,) = router.route(sender, [json.dumps(row["msg"]).encode()], stamp=number)
        route = Route(to) if isinstance(to, str) else to
        if route.held:
            unheld += 1
            continue
        unheld -= len(route.before)
        messages = [json.loads(held.line) for held in route.before] + [row["msg"]]
        placed.setdefault(route.native or "", []).extend(messages)
    assert unheld == 0
    assert router.held_bytes == 0
    for native, messages in placed.items():
        for message in messages:
            named = message.get("params", {}).get("sessionId")
            if message.get("method") == "session/fork":
                continue  # the session of its response
            assert named in ({None, native} if native else {None}), message
        if native:
            answers = {message["id"] for message in messages if "method" not in message}
            asked = {message["id"] for message in messages if "method" in message and "id" in message}
            assert answers == asked
            assert messages[0].get("method") in {"session/new", "session/fork"}
    methods = {message.get("method") for message in placed[""]}
    assert methods <= {None, "initialize", "authenticate", "session/list", "_auth/status_update"}
    assert len(placed) == (3 if agent == "claude" else 2)
